"""Students that learn a teacher's soft scores: `soft`, and `solad` with assignments, too.

Shapes: B views, P priors of the batch's grid, C classes, N priors whose teacher box overlaps an
object by more than the student's threshold m.
"""

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

from pipeline.loading.replay import LabelTransform
from pipeline.store.coding import Coding, decode_share, decode_sides, encode_share
from pipeline.store.reader import LabelStore
from pipeline.students.assignment import CachedLADHead
from pipeline.training.batch_grid import by_prior, level_shapes_of, own_grid
from pipeline.views.plan import Shape
from pipeline.views.priors import PriorGrid

SOFT = "soft"
SOFT_CODES = "soft_codes"


@dataclass(frozen=True, eq=False)
class SoftTargets:
    """What a view's soft scores say beside its class probabilities.

    Attributes:
        padded: (height, width) of the view's own grid.
        tail_mean: (C,) float16 mean probability of each class's tail.
        tail_scale: (R,) uint8 codes of its scale for runs of priors.
        cells: (N, 3) int16 level, row, column of the priors with a teacher box.
        overlap: (N,) uint8 code of the best IoU of that box with an object.
        boxes: (N, 4) int8 codes of left, top, right, bottom from the prior's centre in strides.
        iou: (N,) uint8 code of the teacher's IoU prediction.
    """

    padded: Shape
    tail_mean: np.ndarray
    tail_scale: np.ndarray
    cells: np.ndarray
    overlap: np.ndarray
    boxes: np.ndarray
    iou: np.ndarray


@dataclass(frozen=True, eq=False)
class BatchTargets:
    """What a teacher says of a batch, on the batch's grid.

    Attributes:
        inside: (B, P) bool, the priors of each view's own grid.
        probabilities: (B * P, C) of the classes; where not inside, anything.
        places: (N,) int64 where the priors with a teacher box lie among the B * P.
        anchors: (N, 4) these priors as boxes, xyxy in pixels.
        strides: (N,) pixels per cell of these priors.
        overlap: (N,) best IoU of the teacher's box with an object.
        boxes: (N, 4) left, top, right, bottom from the prior's centre, in strides.
        iou: (N,) the teacher's IoU prediction.
    """

    inside: Tensor
    probabilities: Tensor
    places: Tensor
    anchors: Tensor
    strides: Tensor
    overlap: Tensor
    boxes: Tensor
    iou: Tensor


@TRANSFORMS.register_module()
class AttachSoftScores(LabelTransform):
    """Attaches the cached soft scores of the view to a packed sample.

    Comes after `PackDetInputs`. Added to the sample: soft_codes, (C, P) uint8 codes on the view's
    own grid, and soft, `SoftTargets`.

    Args:
        store: path of the label store.
        grid: the priors of the student's head.
        min_iou: m, teacher boxes count where they overlap an object by more than this.
    """

    def __init__(self, store: str | Path, grid: PriorGrid, min_iou: float) -> None:
        super().__init__()
        self.store = LabelStore(store)
        self.grid = grid
        self.least_overlap = int(encode_share(torch.tensor(min_iou)))

    def read(self, view: int) -> tuple[torch.Tensor, SoftTargets]:
        """Codes (C, P) uint8 of the class probabilities, and the rest."""
        scores = self.store.soft(view)
        padded = self.store.padded(view)
        # Rounding keeps the order: what is over the threshold has at least its code.
        kept = np.flatnonzero((scores.overlap > 0) & (scores.overlap >= self.least_overlap))
        targets = SoftTargets(
            padded=padded,
            tail_mean=scores.tail_mean,
            tail_scale=scores.tail_scale,
            cells=self.grid.cells(kept, padded),
            overlap=scores.overlap[kept],
            boxes=scores.boxes[kept],
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

    def cached_losses(self, features: list[Tensor], samples: SampleList) -> dict[str, Tensor]:
        """The soft-label losses, and LAD's losses if it is SoLAD.

        Args:
            features: of the neck.
            samples: B samples, as `AttachSoftScores` and the preprocessor leave them.
        """
        shapes, device = level_shapes_of(features), features[0].device
        assignment = None
        if self.with_assignment:
            assignment = self.cached_assignment(samples, shapes, device)
        targets = self.cached_targets(samples, shapes, device)
        return self.losses(self(features), targets, assignment, samples)

    def losses(
        self,
        outputs: tuple[list[Tensor], ...],
        targets: BatchTargets,
        assignment: tuple | None,
        samples: SampleList,
    ) -> dict[str, Tensor]:
        """The soft-label losses, and LAD's losses where there is an assignment.

        Args:
            outputs: of the head, as in `soft_losses`.
            targets: what the teacher says.
            assignment: as `LADHead.get_label_assignment` returns it.
            samples: B samples.
        """
        losses = self.soft_losses(outputs, targets)
        if assignment is not None:
            instances, ignored, metas = unpack_gt_instances(samples)
            losses |= self.loss_by_feat(
                *outputs, instances, metas, ignored, label_assignment_results=assignment
            )
        return losses

    def cached_targets(
        self, samples: SampleList, shapes: list[Shape], device: torch.device
    ) -> BatchTargets:
        """What the samples carry of the teacher, on the batch's grid.

        Args:
            samples: B samples, as `AttachSoftScores` and the preprocessor leave them.
            shapes: (rows, columns) of the batch's feature maps.
            device: of the result.
        """
        targets: list[SoftTargets] = [getattr(sample, SOFT) for sample in samples]
        level, row, column = np.concatenate([one.cells for one in targets], dtype=np.int64).T
        counts = [len(one.cells) for one in targets]
        overlap, boxes, iou = (
            decode(
                torch.from_numpy(np.concatenate([getattr(one, name) for one in targets])).to(device)
            )
            for name, decode in (
                ("overlap", decode_share),
                ("boxes", decode_sides),
                ("iou", decode_share),
            )
        )
        strides = torch.tensor([stride for stride, _ in self.prior_generator.strides])
        return BatchTargets(
            inside=own_grid(self, samples, shapes, device),
            probabilities=self._probabilities(samples, targets, shapes),
            places=torch.from_numpy(self.places(level, row, column, counts, shapes)).to(device),
            anchors=self.anchors(level, row, column).to(device),
            strides=strides[torch.from_numpy(level)].to(device),
            overlap=overlap,
            boxes=boxes,
            iou=iou,
        )

    def soft_losses(
        self, outputs: tuple[list[Tensor], ...], targets: BatchTargets
    ) -> dict[str, Tensor]:
        """The soft-label losses from the outputs of the head: of the classes, boxes and IoU.

        Args:
            outputs: of each level the class logits (B, C, H, W), the encoded boxes (B, 4, H, W)
                and the logits of the IoU branch (B, 1, H, W).
            targets: what the teacher says.
        """
        scores, deltas, iou = (by_prior(levels).flatten(0, 1) for levels in outputs)
        total = targets.overlap.sum()
        total = torch.where(total > 0, total, torch.ones_like(total))
        losses = {
            "loss_soft_cls": self.soft_cls(
                scores,
                targets.probabilities,
                targets.inside.flatten().float(),
                avg_factor=total,
            )
        }
        places, anchors = targets.places, targets.anchors
        if not len(places):
            losses["loss_soft_bbox"] = deltas.sum() * 0
            if self.iou_branch:
                losses["loss_soft_iou"] = iou.sum() * 0
            return losses
        distances = targets.boxes * targets.strides[:, None]
        centres = (anchors[:, :2] + anchors[:, 2:]) / 2
        believed = torch.cat([centres - distances[:, :2], centres + distances[:, 2:]], 1)
        losses["loss_soft_bbox"] = self.soft_bbox(
            self.bbox_coder.decode(anchors, deltas[places]),
            believed,
            targets.overlap,
            avg_factor=total,
        )
        if self.iou_branch:
            losses["loss_soft_iou"] = self.soft_iou(iou[places, 0], targets.iou, avg_factor=total)
        return losses

    def _probabilities(
        self, samples: SampleList, targets: list[SoftTargets], shapes: list[Shape]
    ) -> Tensor:
        """The teacher's class probabilities on the batch's grid, (B * P, C)."""
        assert self.coding, "a head that learns from a store needs the store's coding"
        codes = [getattr(sample, SOFT_CODES) for sample in samples]
        device = codes[0].device
        tails = [
            [torch.tensor(part, device=device) for part in (one.tail_mean, one.tail_scale)]
            for one in targets
        ]
        if all(one.padded == samples[0].metainfo["batch_input_shape"] for one in targets):
            mean, scale = (torch.stack(parts) for parts in zip(*tails, strict=True))
            return self.coding.decode(torch.stack(codes), mean, scale).flatten(0, 1)
        priors = sum(rows * columns for rows, columns in shapes)
        placed = torch.zeros(len(codes), priors, self.num_classes, device=device)
        for image, (own, tail, one) in enumerate(zip(codes, tails, targets, strict=True)):
            decoded = self.coding.decode(own, *tail)
            placed[image, self._own_places(one.padded, shapes).to(device)] = decoded
        return placed.flatten(0, 1)

    def _own_places(self, padded: Shape, shapes: list[Shape]) -> Tensor:
        """Where the priors of a view's own grid lie in the batch's grid."""
        strides = [stride for stride, _ in self.prior_generator.strides]
        places, start = [], 0
        for (rows, columns), stride in zip(shapes, strides, strict=True):
            own_rows, own_columns = (-(-side // stride) for side in padded)
            grid = torch.arange(start, start + rows * columns).view(rows, columns)
            places.append(grid[:own_rows, :own_columns].flatten())
            start += rows * columns
        return torch.cat(places)


@MODELS.register_module()
class SoftLAD(PAA):
    """A PAA detector that learns cached soft scores, alone or with cached assignments."""

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """The losses of `SoftLADHead.cached_losses`.

        Args:
            batch_inputs: (B, 3, H, W) normalised images.
            batch_data_samples: B samples.
        """
        losses: dict[str, Tensor] = self.bbox_head.cached_losses(
            self.extract_feat(batch_inputs), batch_data_samples
        )
        return losses
