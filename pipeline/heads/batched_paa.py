"""PAA's rule in the training step, for all views and objects of a batch at once.

mmdet's `PAAHead` goes object by object. The rule is the teacher pass's (`pipeline.assignment.paa`),
on a batch of mixed view sizes. Shapes: B views on one grid of P priors, N candidates, K positives.
"""

from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

from pipeline.assignment.paa import Candidates, list_candidates, select_positives
from pipeline.heads.batch_grid import BatchGrid, ground_truth
from pipeline.heads.lad import ObjectnessLADHead
from pipeline.heads.logged import counted
from pipeline.heads.paa_costs import HeadOutputs, LabelAssignment, candidate_costs, check_rule
from pipeline.heads.prior_grid import read_grid

SMALLEST_WEIGHT = 1e-12
"""Of a positive's box loss: mmdet's EPS."""


@dataclass(frozen=True)
class BatchAssignment:
    """The assignment of a batch.

    Attributes:
        labels: what the head's losses take.
        fallbacks: how many objects had costs that allow no mixture.
    """

    labels: LabelAssignment
    fallbacks: int


def batch_candidates(samples: SampleList, grid: BatchGrid) -> Candidates:
    """Which prior of a batch is a candidate of which object; crowds have none.

    Args:
        samples: B samples, as the preprocessor leaves them.
        grid: of the batch.
    """
    return list_candidates(grid.priors, ground_truth(samples, grid.device), grid.valid_flags)


def assign_by_costs(
    num_classes: int, costs: Tensor, candidates: Candidates, grid: BatchGrid
) -> BatchAssignment:
    """PAA's assignment of a batch by the costs of its candidates.

    Args:
        num_classes: of the head that learns it.
        costs: (N,).
        candidates: of the batch.
        grid: of the batch.
    """
    positives = select_positives(costs, candidates.group, candidates.level, len(grid.grid.strides))
    kept = positives.chosen.nonzero()[:, 0]
    pos_inds = candidates.image[kept] * grid.count + candidates.prior[kept]
    pos_inds, ascending = pos_inds.sort()
    kept = kept[ascending]
    labels = LabelAssignment.of_positives(
        num_classes,
        grid.valid_flags,
        pos_inds=pos_inds,
        labels=candidates.labels[kept],
        boxes=candidates.boxes[kept],
        anchors=candidates.anchors[kept],
    )
    return BatchAssignment(labels, len(positives.fallbacks))


@MODELS.register_module()
class BatchedPAAHead(ObjectnessLADHead):
    """A drop-in for mmdet's `PAAHead`: the same losses, all objects assigned at once.

    Raises:
        UserError: the assignment settings are not those of PAA.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_rule(self, "the network")
        self.grid = read_grid(self.prior_generator)

    def loss(self, x: list[Tensor], batch_data_samples: SampleList) -> dict[str, Tensor]:
        """The losses of `PAAHead`: loss_cls, loss_bbox, loss_iou; and the count of fallbacks.

        Args:
            x: features of the neck.
            batch_data_samples: B samples, as the preprocessor leaves them.
        """
        return self.own_losses(HeadOutputs(*self(x)), batch_data_samples)[0]

    def own_losses(
        self, outputs: HeadOutputs, samples: SampleList
    ) -> tuple[dict[str, Tensor], int]:
        """What `loss` gives, and the number of positives.

        Args:
            outputs: of the head.
            samples: B samples, as the preprocessor leaves them.
        """
        grid = BatchGrid.of(self.grid, samples, outputs.device)
        candidates = batch_candidates(samples, grid)
        costs = candidate_costs(self, outputs, candidates)
        assignment = assign_by_costs(self.num_classes, costs, candidates, grid)
        labels = assignment.labels
        instances, ignored, metas = unpack_gt_instances(samples)
        losses: dict[str, Tensor] = self.loss_by_feat(
            *outputs, instances, metas, ignored, label_assignment_results=labels
        )
        if labels.num_pos:
            losses["loss_bbox"] = self._box_loss(outputs, labels)
        return losses | counted(fallbacks=assignment.fallbacks), labels.num_pos

    def _box_loss(self, outputs: HeadOutputs, labels: LabelAssignment) -> Tensor:
        """PAA's box loss, which weighs a positive by its IoU; LAD's does not."""
        deltas = torch.cat([level.flatten(2) for level in outputs.bbox_preds], 2).mT.flatten(0, 1)
        predicted = self.bbox_coder.decode(labels.pos_anchors, deltas[labels.pos_inds])
        targets = labels.bboxes_target[labels.pos_inds]
        iou = bbox_overlaps(predicted.detach(), targets, is_aligned=True)
        loss: Tensor = self.loss_bbox(
            predicted, targets, iou.clamp(min=SMALLEST_WEIGHT), avg_factor=iou.sum()
        )
        return loss
