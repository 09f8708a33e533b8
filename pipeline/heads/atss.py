"""ATSS (Zhang et al., CVPR 2020, arXiv 1912.02424): anchors, assigned by geometry; centerness."""

import torch
from mmdet.models.task_modules import AssignResult
from mmdet.structures import SampleList
from mmengine.structures import InstanceData
from torch import Tensor

from pipeline.heads.family import HeadFamily, register
from pipeline.heads.positives import Positives


class AssignedByATSS(HeadFamily):
    """A head whose own assigner is ATSS's, which wants to know the levels of the priors."""

    def run_assigner(
        self, predicted: InstanceData, instances: InstanceData, counts: list[int]
    ) -> AssignResult:
        """Call mmdet's assigner for a view; see `HeadFamily.run_assigner`."""
        return self.head.assigner.assign(
            pred_instances=predicted, num_level_priors=counts, gt_instances=instances
        )


@register
class ATSS(AssignedByATSS):
    """mmdet's `ATSSHead`."""

    heads = ("ATSSHead",)
    quality = "centerness"

    def learnable(self, positives: Positives, samples: SampleList) -> Tensor:
        """Centerness exists inside a box alone; PAA's positives may lie outside."""
        boxes = positives.of_objects([sample.gt_instances.bboxes for sample in samples])
        grid = positives.grid
        centres = grid.priors.centres[positives.pos_inds % grid.count]
        sides = torch.cat([centres - boxes[:, :2], boxes[:, 2:] - centres], 1)
        return sides.amin(1) > 0
