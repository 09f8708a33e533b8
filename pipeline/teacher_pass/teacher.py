"""The teacher: a PAA detector that decides which prior learns which object.

Shapes: B views on one grid of P priors, C classes, N candidates.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from mmdet.models.dense_heads import PAAHead
from mmdet.models.detectors import PAA
from mmdet.models.losses import FocalLoss
from torch import Tensor
from torch.nn.functional import logsigmoid

from pipeline.assignment.iou import best_overlap
from pipeline.assignment.paa import (
    BACKGROUND,
    TOP_K,
    Candidates,
    list_candidates,
    select_positives,
)
from pipeline.data.coco import Objects
from pipeline.detector.build import prior_grid
from pipeline.detector.pooling import pool_quickly
from pipeline.project.errors import UserError
from pipeline.project.params import Labels
from pipeline.views.plan import Shape
from pipeline.views.priors import Priors

_RULE = {"pos_iou_thr": 0.1, "neg_iou_thr": 0.1, "min_pos_iou": 0}


class Outputs(NamedTuple):
    """What a head returns for a batch: a map for each level, of H x W cells.

    Attributes:
        scores: (B, C, H, W) class logits.
        deltas: (B, 4, H, W) encoded boxes.
        iou: (B, 1, H, W) logits of the IoU branch.
    """

    scores: Sequence[Tensor]
    deltas: Sequence[Tensor]
    iou: Sequence[Tensor]

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.scores[0].device

    def float(self) -> "Outputs":
        """The same in float32."""
        return Outputs(*([level.float() for level in maps] for maps in self))

    def joined(self) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits (B, P, C), encoded boxes (B, P, 4) and logits of the IoU branch (B, P, 1).

        They are stored channel by channel, as the maps are: turning them around takes long.
        """
        scores, deltas, iou = (
            torch.cat([level.flatten(2) for level in maps], 2).mT for maps in self
        )
        return scores, deltas, iou

    def at(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """Class logits (N, C) and encoded boxes (N, 4) of candidates, whose priors ascend."""
        counts = candidates.level.bincount(minlength=len(self.scores)).tolist()
        first, places = 0, []
        for level, image, prior in zip(
            self.scores, candidates.image.split(counts), candidates.prior.split(counts), strict=True
        ):
            places.append((image, prior - first))
            first += level[0, 0].numel()
        scores, deltas = (
            torch.cat([m.flatten(2).mT[where] for m, where in zip(maps, places, strict=True)])
            for maps in (self.scores, self.deltas)
        )
        return scores, deltas


@dataclass(frozen=True)
class Assignment:
    """What a teacher decided for a batch.

    Attributes:
        objects: (B, P) int64, for each prior the index of its object or `BACKGROUND`.
        fallbacks: how many objects had costs that allow no mixture.
    """

    objects: Tensor
    fallbacks: int


@dataclass(frozen=True)
class Beliefs:
    """A teacher's soft scores for a batch; the last three are 0 where no box is kept.

    Attributes:
        probabilities: (B, P, C) of the classes.
        overlap: (B, P) best IoU of the decoded box with an object.
        boxes: (B, P, 4) left, top, right, bottom from the prior's centre, in strides.
        iou: (B, P) probability of the IoU branch.
    """

    probabilities: Tensor
    overlap: Tensor
    boxes: Tensor
    iou: Tensor


def check_rule(head: PAAHead, whose: str) -> None:
    """Refuse a head with another assignment than PAA's.

    Args:
        head: of a PAA.
        whose: names the network, for the error.

    Raises:
        UserError: the assignment settings are others.
    """
    assigner = head.assigner
    expected = _RULE | {"topk": TOP_K, "ignore_iof_thr <= 0": True, "allowed_border < 0": True}
    found = {name: getattr(assigner, name, None) for name in _RULE} | {
        "topk": head.topk,
        "ignore_iof_thr <= 0": getattr(assigner, "ignore_iof_thr", -1) <= 0,
        "allowed_border < 0": head.train_cfg.allowed_border < 0,
    }
    if found != expected:
        raise UserError(
            f"{whose}'s config must assign as PAA does (train_cfg, topk): "
            f"expected {expected}, found {found}"
        )


@torch.no_grad()
def candidate_costs(head: PAAHead, outputs: Outputs, candidates: Candidates) -> Tensor:
    """PAA's cost of each candidate, with the head's own losses and without gradient.

    Args:
        head: whose losses count.
        outputs: of that head.
        candidates: of the batch.

    Returns:
        (N,).
    """
    scores, deltas = outputs.at(candidates)
    if not len(scores):
        return scores.new_zeros(0)
    # What `PAAHead.get_pos_loss` computes, without its copies.
    of_class = class_costs(head.loss_cls, scores, candidates.labels)
    decoded = head.bbox_coder.decode(candidates.anchors, deltas)
    of_box: Tensor = head.loss_bbox(decoded, candidates.boxes, reduction_override="none")
    return of_box + of_class


def class_costs(loss_cls: Any, scores: Tensor, labels: Tensor) -> Tensor:
    """The classes' loss of each row, summed over classes: (N,), without gradient.

    Of mmdet's focal loss on the CPU, the operations on a number are those of its own, in their
    order, so the result is the same to the last bit. But its every operation is on all classes
    twice, as one that is there and one that is not; here the label's alone is written over.

    Args:
        loss_cls: of a head.
        scores: (N, C) logits.
        labels: (N,) int64.
    """
    if type(loss_cls) is not FocalLoss or loss_cls.activated or scores.is_cuda:
        result: Tensor = loss_cls(scores, labels, reduction_override="none").sum(1)
        return result
    gamma, alpha = loss_cls.gamma, loss_cls.alpha
    log_p = logsigmoid(scores)
    p = scores.sigmoid()
    label = labels[:, None]
    own = (0 * scores.gather(1, label) - log_p.gather(1, label)) * (
        (1 - p.gather(1, label)).pow_(gamma) * alpha
    )
    losses = torch.sub(scores, log_p, out=log_p).mul_(p.pow_(gamma).mul_(1 - alpha))
    losses.scatter_(1, label, own)
    return losses.mul_(loss_cls.loss_weight).sum(1)


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
        self._priors: tuple[Any, Priors] | None = None
        check_rule(self.head, "the teacher")

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
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
            found = Outputs(*self.head(self.detector.extract_feat(images)))
        return found.float()

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.numerics.dtype == FLOAT32.dtype:
            return nullcontext()  # where a student trains in mixed precision, so does its teacher
        return torch.autocast(self.device.type, getattr(torch, self.numerics.dtype))

    @torch.inference_mode()
    def assign(self, outputs: Outputs, objects: Sequence[Objects], padded: Shape) -> Assignment:
        """The label assignment of a batch of views with the same padded size.

        Args:
            outputs: of the head.
            objects: of each view, all objects in file order; boxes in pixels of the view.
            padded: (H, W).
        """
        device = outputs.device
        boxes, labels, present = (part.to(device) for part in _pad(objects))
        priors = self._priors_of(padded, device)
        candidates = list_candidates(priors, boxes, labels, present)
        positives = select_positives(
            candidate_costs(self.head, outputs, candidates),
            candidates.group,
            candidates.level,
            len(self.grid.strides),
        )
        assigned = torch.full((len(boxes), len(priors.boxes)), BACKGROUND, device=device)
        assigned[candidates.image, candidates.prior] = torch.where(
            positives.chosen, candidates.object, BACKGROUND
        )
        return Assignment(assigned, len(positives.fallbacks))

    @torch.inference_mode()
    def believe(
        self, outputs: Outputs, objects: Sequence[Objects], padded: Shape, min_iou: float
    ) -> Beliefs:
        """The soft scores of a batch of views with the same padded size.

        Args:
            outputs: of the head.
            objects: as in `assign`; crowds do not count.
            padded: (H, W).
            min_iou: boxes are kept where they overlap an object by more than this.
        """
        boxes, _, present = (part.to(outputs.device) for part in _pad(objects))
        return self.believe_padded(outputs, boxes, present, padded, min_iou)

    @torch.inference_mode()
    def believe_padded(
        self, outputs: Outputs, boxes: Tensor, present: Tensor, padded: Shape, min_iou: float
    ) -> Beliefs:
        """The soft scores of a batch, for objects that are on its device already.

        Args:
            outputs: of the head.
            boxes: (B, M, 4), anything where not present.
            present: (B, M) bool, false for padding and for crowds.
            padded: (H, W) of the batch.
            min_iou: as in `believe`.
        """
        device = outputs.device
        priors = self._priors_of(padded, device)
        scores, deltas, iou = outputs.joined()
        decoded = self.head.bbox_coder.decode(
            priors.boxes.repeat(len(boxes), 1), deltas.flatten(0, 1)
        ).view(deltas.shape)
        overlap = best_overlap(decoded, boxes, present)
        kept = overlap > min_iou
        centres = (priors.boxes[:, :2] + priors.boxes[:, 2:]) / 2
        strides = torch.tensor(self.grid.strides, device=device)[priors.levels]
        sides = torch.cat([centres - decoded[..., :2], decoded[..., 2:] - centres], -1)
        return Beliefs(
            probabilities=scores.sigmoid(),
            overlap=overlap * kept,
            boxes=sides / strides[:, None] * kept[..., None],
            iou=iou[..., 0].sigmoid() * kept,
        )

    def _priors_of(self, padded: Shape, device: torch.device) -> Priors:
        """The priors of views; kept, as views of a bucket follow each other."""
        key = tuple(padded), device
        if self._priors is None or self._priors[0] != key:
            self._priors = key, self.grid.priors(padded, device)
        return self._priors[1]


def _pad(objects: Sequence[Objects]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (B, M, 4) float32, labels (B, M) and what is there and no crowd (B, M)."""
    shape = (len(objects), max((len(one.labels) for one in objects), default=0))
    boxes = np.zeros((*shape, 4), np.float32)
    labels = np.zeros(shape, np.int64)
    present = np.zeros(shape, bool)
    for image, one in enumerate(objects):
        count = len(one.labels)
        boxes[image, :count] = one.boxes
        labels[image, :count] = one.labels
        present[image, :count] = ~one.crowd
    return torch.from_numpy(boxes), torch.from_numpy(labels), torch.from_numpy(present)
