"""PAA that assigns all objects of a batch at once, where mmdet's goes object by object."""

import copy
from typing import Any

from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox_overlaps
from mmengine.config import ConfigDict
from torch import Tensor

from pipeline.heads.lad import ObjectnessLADHead
from pipeline.heads.paa import HeadOutputs, LabelAssignment, by_prior, check_rule
from pipeline.training.batch_assignment import assign_batch, count_fallbacks
from pipeline.training.batch_grid import BatchGrid

SMALLEST_WEIGHT = 1e-12
"""Of a positive's box loss: mmdet's EPS."""


@MODELS.register_module()
class BatchedPAAHead(ObjectnessLADHead):
    """A drop-in for mmdet's `PAAHead`: the same losses, all objects assigned at once.

    Raises:
        UserError: the assignment settings are not those of PAA.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_rule(self, "the network")

    def loss(self, x: list[Tensor], batch_data_samples: SampleList) -> dict[str, Tensor]:
        """The losses of `PAAHead`: loss_cls, loss_bbox, loss_iou; and the count of fallbacks.

        Args:
            x: features of the neck.
            batch_data_samples: B samples, as the preprocessor leaves them.
        """
        outputs = HeadOutputs(*self(x))
        grid = BatchGrid.of(self.grid, batch_data_samples, outputs.device)
        assignment = assign_batch(self, outputs, batch_data_samples, grid)
        instances, ignored, metas = unpack_gt_instances(batch_data_samples)
        losses: dict[str, Tensor] = self.loss_by_feat(
            *outputs, instances, metas, ignored, label_assignment_results=assignment.labels
        )
        if assignment.labels.num_pos:
            losses["loss_bbox"] = self._box_loss(outputs, assignment.labels)
        return losses | count_fallbacks(assignment)

    def _box_loss(self, outputs: HeadOutputs, labels: LabelAssignment) -> Tensor:
        """PAA's box loss, which weighs a positive by its IoU; LAD's does not."""
        deltas = by_prior(outputs.bbox_preds).flatten(0, 1)[labels.pos_inds]
        predicted = self.bbox_coder.decode(labels.pos_anchors, deltas)
        targets = labels.bboxes_target[labels.pos_inds]
        iou = bbox_overlaps(predicted.detach(), targets, is_aligned=True)
        loss: Tensor = self.loss_bbox(
            predicted, targets, iou.clamp(min=SMALLEST_WEIGHT), avg_factor=iou.sum()
        )
        return loss


def batched_paa(model: ConfigDict) -> ConfigDict:
    """The config of a PAA with the rule for whole batches.

    Args:
        model: of type PAA.
    """
    model = copy.deepcopy(model)
    model.bbox_head.type = BatchedPAAHead.__name__
    return model
