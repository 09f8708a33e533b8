"""Learning a teacher's soft scores, alone or with its assignments.

Shapes: B views, P priors of the batch's grid, C classes, N priors whose teacher box overlaps an
object by more than the student's threshold m. Boxes are xyxy in pixels of the view.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.models.detectors import PAA
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS, TRANSFORMS
from mmdet.structures import SampleList
from torch import Tensor

from pipeline.heads.paa import HeadOutputs, LabelAssignment, by_prior
from pipeline.loading.transforms import LabelTransform
from pipeline.project.transfer import send
from pipeline.store.coding import Coding, decode_distances, decode_fraction, encode_fraction
from pipeline.store.reader import LabelStore
from pipeline.students.assignment import CachedLADHead
from pipeline.training.batch_grid import BatchGrid
from pipeline.views.plan import Shape

SOFT = "soft"
SOFT_CODES = "soft_codes"


@dataclass(frozen=True, eq=False)
class SoftTargets:
    """What a view's soft scores say beside its class probabilities.

    Attributes:
        padded: (height, width) of the view's own grid, in pixels.
        tail_mean: (C,) float16 mean probability of each class's tail.
        tail_scale: (R,) uint8 codes of its scale for runs of priors.
        priors: (N,) int64 the priors with a teacher box, in the view's own grid.
        max_iou: (N,) uint8 code of the best IoU of that box with an object.
        distances: (N, 4) int8 codes of its distances from the prior's centre.
        iou: (N,) uint8 code of the teacher's IoU prediction.
    """

    padded: Shape
    tail_mean: np.ndarray
    tail_scale: np.ndarray
    priors: np.ndarray
    max_iou: np.ndarray
    distances: np.ndarray
    iou: np.ndarray


@dataclass(frozen=True, eq=False)
class BatchTargets:
    """What a teacher says of a batch, on the batch's grid.

    Attributes:
        valid_flags: (B, P) bool, the priors inside each view's own padded size.
        probabilities: (B * P, C) of the classes; where not valid, anything.
        indices: (N,) int64 where the priors with a teacher box lie among the B * P.
        anchors: (N, 4) these priors as boxes.
        max_iou: (N,) best IoU of the teacher's box with an object.
        boxes: (N, 4) the teacher's boxes.
        iou: (N,) the teacher's IoU prediction.
    """

    valid_flags: Tensor
    probabilities: Tensor
    indices: Tensor
    anchors: Tensor
    max_iou: Tensor
    boxes: Tensor
    iou: Tensor


@TRANSFORMS.register_module()
class AttachSoftScores(LabelTransform):
    """Attaches the cached soft scores of the view to a packed sample.

    Comes after `PackDetInputs`. Added to the sample: soft_codes, (C, P) uint8 codes on the view's
    own grid, and soft, `SoftTargets`.

    Args:
        store: path of the label store.
        min_iou: m, teacher boxes count where they overlap an object by more than this.
    """

    def __init__(self, store: str | Path, min_iou: float) -> None:
        super().__init__()
        self.store = LabelStore(store)
        self.least_iou = int(encode_fraction(torch.tensor(min_iou)))

    def read(self, view: int) -> tuple[torch.Tensor, SoftTargets]:
        """Codes (C, P) uint8 of the class probabilities, and the rest."""
        scores = self.store.soft(view)
        # Rounding keeps the order: what is over the threshold has at least its code.
        kept = np.flatnonzero((scores.max_iou > 0) & (scores.max_iou >= self.least_iou))
        targets = SoftTargets(
            padded=self.store.padded(view),
            tail_mean=scores.tail_mean,
            tail_scale=scores.tail_scale,
            priors=kept,
            max_iou=scores.max_iou[kept],
            distances=scores.distances[kept],
            iou=scores.iou[kept],
        )
        return torch.from_numpy(scores.codes.copy()), targets

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Attach the soft scores."""
        sample = results["data_samples"]
        codes, targets = self.labels(sample.metainfo["view_index"])
        sample.set_field(codes, SOFT_CODES)
        sample.set_field(targets, SOFT)
        return results


@MODELS.register_module()
class SoftLADHead(CachedLADHead):
    """A PAA head with the soft-label losses of LAD (WACV 2022, section 4, its KL baseline).

    Args:
        soft_cls: loss of the classes.
        soft_iou: loss of the IoU branch.
        soft_bbox: loss of the boxes.
        with_assignment: whether LAD's losses on assignments are added (SoLAD).
        coding: of the store's class probabilities; None for a student that has no store.
    """

    def __init__(
        self,
        *args: Any,
        soft_cls: dict[str, Any],
        soft_iou: dict[str, Any],
        soft_bbox: dict[str, Any],
        with_assignment: bool,
        coding: Coding | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.coding = coding
        self.soft_cls = MODELS.build(soft_cls)
        self.soft_iou = MODELS.build(soft_iou)
        self.soft_bbox = MODELS.build(soft_bbox)
        self.with_assignment = with_assignment

    def cached_losses(
        self, features: list[Tensor], samples: SampleList, grid: BatchGrid
    ) -> dict[str, Tensor]:
        """The soft-label losses, and LAD's losses if it is SoLAD.

        Args:
            features: of the neck.
            samples: B samples, as `AttachSoftScores` and the preprocessor leave them.
            grid: of the batch.
        """
        assignment = self.cached_assignment(samples, grid) if self.with_assignment else None
        targets = self.cached_targets(samples, grid)
        return self.losses(HeadOutputs(*self(features)), targets, assignment, samples)

    def losses(
        self,
        outputs: HeadOutputs,
        targets: BatchTargets,
        assignment: LabelAssignment | None,
        samples: SampleList,
    ) -> dict[str, Tensor]:
        """The soft-label losses, and LAD's losses where there is an assignment.

        Args:
            outputs: of this head.
            targets: what the teacher says.
            assignment: what LAD's losses take.
            samples: B samples.
        """
        losses = self.soft_losses(outputs, targets)
        if assignment is not None:
            instances, ignored, metas = unpack_gt_instances(samples)
            losses |= self.loss_by_feat(
                *outputs, instances, metas, ignored, label_assignment_results=assignment
            )
        return losses

    def cached_targets(self, samples: SampleList, grid: BatchGrid) -> BatchTargets:
        """What the samples carry of the teacher, on the batch's grid; in float32 always.

        Args:
            samples: B samples, as `AttachSoftScores` and the preprocessor leave them.
            grid: of the batch.
        """
        targets: list[SoftTargets] = [getattr(sample, SOFT) for sample in samples]
        together = [grid.indices([one.priors for one in targets])]
        together += [
            np.concatenate([getattr(one, name) for one in targets])
            for name in ("max_iou", "distances", "iou")
        ]
        together += [tail for one in targets for tail in (one.tail_mean, one.tail_scale)]
        indices, max_iou, distances, iou, *tails = send(
            [torch.tensor(part) for part in together], grid.device
        )
        codes = [getattr(sample, SOFT_CODES) for sample in samples]
        own = [one.padded for one in targets]
        with torch.autocast(grid.device.type, enabled=False):
            probabilities = self._probabilities(codes, tails[::2], tails[1::2], own, grid)
        return BatchTargets(
            valid_flags=grid.valid_flags,
            probabilities=probabilities,
            indices=indices,
            anchors=grid.anchors(indices),
            max_iou=decode_fraction(max_iou),
            boxes=grid.boxes_at(indices, decode_distances(distances)),
            iou=decode_fraction(iou),
        )

    def soft_losses(self, outputs: HeadOutputs, targets: BatchTargets) -> dict[str, Tensor]:
        """The soft-label losses from the outputs of the head: of the classes, boxes and IoU.

        Args:
            outputs: of this head.
            targets: what the teacher says.
        """
        scores, deltas, iou = (by_prior(levels).flatten(0, 1) for levels in outputs)
        total = targets.max_iou.sum()
        total = torch.where(total > 0, total, torch.ones_like(total))
        losses = {
            "loss_soft_cls": self.soft_cls(
                scores,
                targets.probabilities,
                targets.valid_flags.flatten().float(),
                avg_factor=total,
            )
        }
        indices = targets.indices
        if not len(indices):
            losses["loss_soft_bbox"] = deltas.sum() * 0
            if self.iou_branch:
                losses["loss_soft_iou"] = iou.sum() * 0
            return losses
        losses["loss_soft_bbox"] = self.soft_bbox(
            self.bbox_coder.decode(targets.anchors, deltas[indices]),
            targets.boxes,
            targets.max_iou,
            avg_factor=total,
        )
        if self.iou_branch:
            losses["loss_soft_iou"] = self.soft_iou(iou[indices, 0], targets.iou, avg_factor=total)
        return losses

    def _probabilities(
        self,
        codes: Sequence[Tensor],
        means: Sequence[Tensor],
        scales: Sequence[Tensor],
        own: Sequence[Shape],
        grid: BatchGrid,
    ) -> Tensor:
        """The teacher's class probabilities on the batch's grid, (B * P, C).

        Args:
            codes: of each view, on its own grid.
            means: of its tail.
            scales: of its tail.
            own: its own padded size.
            grid: of the batch.
        """
        assert self.coding, "a head that learns from a store needs the store's coding"
        if all(one == grid.padded for one in own):
            together = (torch.stack(list(parts)) for parts in (codes, means, scales))
            return self.coding.decode(*together).flatten(0, 1)
        placed = torch.zeros(*grid.valid_flags.shape, self.num_classes, device=grid.device)
        places = [torch.from_numpy(grid.grid.places_within(one, grid.padded)) for one in own]
        decoded = map(self.coding.decode, codes, means, scales)
        for view, where, values in zip(placed, send(places, grid.device), decoded, strict=True):
            view[where] = values
        return placed.flatten(0, 1)


@MODELS.register_module()
class SoftLAD(PAA):
    """A PAA detector that learns cached soft scores, alone or with cached assignments."""

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """The losses of `SoftLADHead.cached_losses`.

        Args:
            batch_inputs: (B, 3, H, W) normalised images.
            batch_data_samples: B samples.
        """
        grid = BatchGrid.of(self.bbox_head.grid, batch_data_samples, batch_inputs.device)
        losses: dict[str, Tensor] = self.bbox_head.cached_losses(
            self.extract_feat(batch_inputs), batch_data_samples, grid
        )
        return losses
