"""The teacher: a detector that decides which prior learns which object.

Shapes: B views on one grid of P priors, C classes. Boxes are xyxy in pixels of the view.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models.detectors import SingleStageDetector
from torch import Tensor

from pipeline.assignment.iou import max_iou
from pipeline.data.ground_truth import GroundTruth
from pipeline.detector.pooling import pool_quickly
from pipeline.heads.batch_grid import BatchGrid
from pipeline.heads.family import Outputs
from pipeline.heads.positives import Assignment
from pipeline.heads.registry import family_of
from pipeline.teacher_pass.settings import Labels


@dataclass(frozen=True)
class SoftPredictions:
    """A teacher's soft scores for a batch.

    Attributes:
        probabilities: (B, P, C) of the classes.
        max_iou: (B, P) best IoU of the decoded box with an object; 0 where that is at most the
            least IoU that is asked for.
        kept: (B, P) bool, where a box is kept.
        distances: (B, P, 4) of the box's left, top, right and bottom from the prior's centre, in
            strides; 0 where none is.
        quality: (B, P) what the head predicts beside classes and box, as a probability; 0 where
            `max_iou` is, and for a head that has none.
    """

    probabilities: Tensor
    max_iou: Tensor
    kept: Tensor
    distances: Tensor
    quality: Tensor


@dataclass(frozen=True)
class Numerics:
    """How a teacher's network computes; what follows from its outputs is always float32.

    Attributes:
        dtype: float32, or what torch's autocast computes in: bfloat16 or float16.
        channels_last: the memory format of images and weights.
    """

    dtype: str = "float32"
    channels_last: bool = False

    @classmethod
    def of(cls, labels: Labels) -> "Numerics":
        """From the section `labels`."""
        return cls(labels.autocast or cls.dtype, labels.channels_last)


FLOAT32 = Numerics()


@dataclass(frozen=True)
class Least:
    """Which boxes of a teacher are kept: those that overlap an object, or of a likely class.

    Attributes:
        iou: they overlap an object by more than this,
        score: or a class has at least this probability.
    """

    iou: float
    score: float


class Teacher:
    """Computes label assignments and soft scores of batches.

    Args:
        detector: put into eval mode on its device.
        numerics: how it computes.

    Raises:
        UserError: its head can't teach, or assigns in a way that a store can't hold.
    """

    def __init__(self, detector: SingleStageDetector, numerics: Numerics = FLOAT32) -> None:
        self.detector = detector.eval()
        self.numerics = numerics
        if numerics.channels_last:
            self.detector.to(memory_format=torch.channels_last)
        pool_quickly(self.detector)
        self.head = detector.bbox_head
        self.family = family_of(self.head)
        self.family.check("the teacher")
        self.grid = self.family.grid

    @property
    def device(self) -> torch.device:
        """The device of its weights."""
        device: torch.device = next(self.detector.parameters()).device
        return device

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Outputs:
        """Run the network.

        Args:
            images: (B, 3, H, W) float32, normalised and padded.

        Returns:
            What the head returns, float32.
        """
        if self.numerics.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            outputs = self.head(self.detector.extract_feat(images))
        return [[level.float() for level in levels] for levels in outputs]

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.numerics.dtype == FLOAT32.dtype:
            return nullcontext()  # where a student trains in mixed precision, so does its teacher
        return torch.autocast(self.device.type, getattr(torch, self.numerics.dtype))

    @torch.inference_mode()
    def assign(self, outputs: Outputs, truth: GroundTruth, grid: BatchGrid) -> Assignment:
        """The label assignment of a batch.

        Args:
            outputs: of the head.
            truth: the objects of the views, on the same device.
            grid: of the batch.
        """
        return self.family.assign(outputs, truth, grid)

    @torch.inference_mode()
    def predict_soft(
        self, outputs: Outputs, truth: GroundTruth, grid: BatchGrid, least: Least
    ) -> SoftPredictions:
        """The soft scores of a batch.

        Args:
            outputs: of the head.
            truth: as in `assign`; crowds do not count.
            grid: of the batch.
            least: which boxes are kept.
        """
        priors = grid.priors
        probabilities = self.family.class_probabilities(outputs)
        decoded = self.family.boxes(outputs, priors).view(*probabilities.shape[:2], 4)
        best = max_iou(decoded, truth)
        overlaps = best > least.iou
        kept = overlaps | (probabilities.amax(2) >= least.score)
        quality = self.family.quality_logits(outputs)
        return SoftPredictions(
            probabilities=probabilities,
            max_iou=best * overlaps,
            kept=kept,
            distances=priors.distances(decoded) * kept[..., None],
            quality=torch.zeros_like(best) if quality is None else quality.sigmoid() * overlaps,
        )
