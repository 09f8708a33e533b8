"""The teacher: a PAA detector that decides which prior learns which object."""

import pipeline.mmcv_ops  # noqa: F401

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from mmdet.models.detectors import PAA
from mmdet.models.utils import levels_to_images
from torch import Tensor

from pipeline.assignment.paa import BACKGROUND, TOP_K, find_candidates, select_positives
from pipeline.coco import Objects
from pipeline.detector import prior_grid
from pipeline.errors import UserError
from pipeline.views import Shape

_RULE = {"pos_iou_thr": 0.1, "neg_iou_thr": 0.1, "min_pos_iou": 0}


@dataclass(frozen=True)
class Assignment:
    """What a teacher decided for a batch.

    Attributes:
        objects: (B, P) int64, for each prior the index of its object or `BACKGROUND`.
        fallbacks: how many objects had costs that allow no mixture.
    """

    objects: Tensor
    fallbacks: int


class Teacher:
    """Computes LAD's label assignment (WACV 2022, section 3.2) for batches of one bucket.

    Args:
        detector: a PAA, put into eval mode on its device.

    Raises:
        UserError: the detector's assignment settings are not those of PAA.
    """

    def __init__(self, detector: PAA) -> None:
        self.detector = detector.eval()
        self.head = detector.bbox_head
        self.grid = prior_grid(self.head)
        self._check_rule()
        self.device = next(detector.parameters()).device

    def _check_rule(self) -> None:
        assigner = self.head.assigner
        found = {name: getattr(assigner, name, None) for name in _RULE}
        expected = _RULE | {"topk": TOP_K, "ignore_iof_thr <= 0": True}
        found |= {
            "topk": self.head.topk,
            "ignore_iof_thr <= 0": getattr(assigner, "ignore_iof_thr", -1) <= 0,
        }
        if found != expected:
            raise UserError(
                "the teacher's config must assign as PAA does (train_cfg.assigner, topk): "
                f"expected {expected}, found {found}"
            )

    @torch.inference_mode()
    def assign(self, images: Tensor, objects: Sequence[Objects], padded: Shape) -> Assignment:
        """The label assignment of a batch of views with the same padded size.

        Args:
            images: (B, 3, H, W) float32, normalised and padded.
            objects: of each view, all objects in file order; boxes in pixels of the view.
            padded: (H, W).
        """
        outputs = self.detector.bbox_head(self.detector.extract_feat(images))
        scores, deltas = (torch.stack(levels_to_images(levels)) for levels in outputs[:2])
        return self.assign_from_outputs(scores, deltas, objects, padded)

    def assign_from_outputs(
        self, scores: Tensor, deltas: Tensor, objects: Sequence[Objects], padded: Shape
    ) -> Assignment:
        """The label assignment that follows from the outputs of the head.

        Args:
            scores: (B, P, C) class logits.
            deltas: (B, P, 4) encoded boxes.
            objects: as in `assign`.
            padded: (H, W) of the views.
        """
        device = scores.device
        boxes, labels, present = (part.to(device) for part in _pad(objects))
        priors = self.grid.boxes(padded, device)
        candidate = find_candidates(priors, boxes, present)
        image, prior = (candidate != BACKGROUND).nonzero(as_tuple=True)
        if not len(prior):
            return Assignment(candidate, 0)
        taken = candidate[image, prior]
        costs = self._costs(
            scores[image, prior],
            deltas[image, prior],
            priors[prior],
            labels[image, taken],
            boxes[image, taken],
        )
        positives = select_positives(
            costs,
            image * boxes.shape[1] + taken,
            self.grid.levels(padded, device)[prior],
            len(self.grid.strides),
        )
        candidate[image, prior] = torch.where(positives.chosen, taken, BACKGROUND)
        return Assignment(candidate, len(positives.fallbacks))

    def _costs(
        self, scores: Tensor, deltas: Tensor, priors: Tensor, labels: Tensor, boxes: Tensor
    ) -> Tensor:
        """PAA's cost of each candidate, (N,), with the head's own losses."""
        (costs,) = self.head.get_pos_loss(
            [priors],
            scores,
            deltas,
            labels,
            torch.ones_like(labels, dtype=scores.dtype),
            boxes,
            torch.ones_like(boxes),
            torch.arange(len(labels), device=labels.device),
        )
        return costs


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
