"""The teacher: a PAA detector that decides which prior learns which object.

Shapes: B views on one grid of P priors, C classes. Boxes are xyxy in pixels of the view.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models.detectors import PAA
from torch import Tensor

from pipeline.assignment.iou import max_iou
from pipeline.assignment.paa import BACKGROUND, list_candidates, select_positives
from pipeline.data.ground_truth import GroundTruth
from pipeline.detector.pooling import pool_quickly
from pipeline.heads.paa import HeadOutputs, candidate_costs, check_rule, prior_grid
from pipeline.teacher_pass.settings import Labels
from pipeline.views.plan import Shape


@dataclass(frozen=True)
class Assignment:
    """What a teacher decided for a batch.

    Attributes:
        assigned_gt_inds: (B, P) int64, for each prior the index of its object or `BACKGROUND`.
        fallbacks: how many objects had costs that allow no mixture.
    """

    assigned_gt_inds: Tensor
    fallbacks: int


@dataclass(frozen=True)
class SoftPredictions:
    """A teacher's soft scores for a batch; the last three are 0 where no box is kept.

    Attributes:
        probabilities: (B, P, C) of the classes.
        max_iou: (B, P) best IoU of the decoded box with an object.
        distances: (B, P, 4) of the box's left, top, right and bottom from the prior's centre, in
            strides.
        iou: (B, P) probability of the IoU branch.
    """

    probabilities: Tensor
    max_iou: Tensor
    distances: Tensor
    iou: Tensor


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


class Teacher:
    """Computes LAD's label assignment (WACV 2022, section 3.2) for batches of one bucket.

    Args:
        detector: a PAA, put into eval mode on its device.
        numerics: how it computes.

    Raises:
        UserError: the detector's assignment settings are not those of PAA.
    """

    def __init__(self, detector: PAA, numerics: Numerics = FLOAT32) -> None:
        self.detector = detector.eval()
        self.numerics = numerics
        if numerics.channels_last:
            self.detector.to(memory_format=torch.channels_last)
        pool_quickly(self.detector)
        self.head = detector.bbox_head
        self.grid = prior_grid(self.head)
        check_rule(self.head, "the teacher")

    @property
    def device(self) -> torch.device:
        """The device of its weights."""
        device: torch.device = next(self.detector.parameters()).device
        return device

    @torch.inference_mode()
    def forward(self, images: Tensor) -> HeadOutputs:
        """Run the network.

        Args:
            images: (B, 3, H, W) float32, normalised and padded.

        Returns:
            What the head returns, float32.
        """
        if self.numerics.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            found = HeadOutputs(*self.head(self.detector.extract_feat(images)))
        return found.float()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.numerics.dtype == FLOAT32.dtype:
            return nullcontext()  # where a student trains in mixed precision, so does its teacher
        return torch.autocast(self.device.type, getattr(torch, self.numerics.dtype))

    @torch.inference_mode()
    def assign(self, outputs: HeadOutputs, truth: GroundTruth, padded: Shape) -> Assignment:
        """The label assignment of a batch of views with the same padded size.

        Args:
            outputs: of the head.
            truth: the objects of the views, on the same device.
            padded: (height, width) in pixels.
        """
        priors = self.grid.priors(padded, outputs.device)
        candidates = list_candidates(priors, truth)
        positives = select_positives(
            candidate_costs(self.head, outputs, candidates),
            candidates.group,
            candidates.level,
            len(self.grid.strides),
        )
        assigned = torch.full(
            (len(truth.boxes), len(priors.boxes)), BACKGROUND, device=outputs.device
        )
        assigned[candidates.image, candidates.prior] = torch.where(
            positives.chosen, candidates.object, BACKGROUND
        )
        return Assignment(assigned, len(positives.fallbacks))

    @torch.inference_mode()
    def predict_soft(
        self, outputs: HeadOutputs, truth: GroundTruth, padded: Shape, min_iou: float
    ) -> SoftPredictions:
        """The soft scores of a batch of views with the same padded size.

        Args:
            outputs: of the head.
            truth: as in `assign`; crowds do not count.
            padded: (height, width) in pixels.
            min_iou: boxes are kept where they overlap an object by more than this.
        """
        priors = self.grid.priors(padded, outputs.device)
        scores, deltas, iou = outputs.joined()
        decoded = self.head.bbox_coder.decode(
            priors.boxes.repeat(len(deltas), 1), deltas.flatten(0, 1)
        ).view(deltas.shape)
        best = max_iou(decoded, truth)
        kept = best > min_iou
        return SoftPredictions(
            probabilities=scores.sigmoid(),
            max_iou=best * kept,
            distances=priors.distances(decoded) * kept[..., None],
            iou=iou[..., 0].sigmoid() * kept,
        )
