"""Assigners that stand in for a head's own: one replays an assignment, one counts positives.

mmdet's heads ask an assigner which prior of a view learns which object, and compute their targets
from its answer. Shapes: P priors of a view, M objects, C classes.
"""

from typing import Any

import torch
from mmdet.models.task_modules import AssignResult, BaseAssigner
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData
from torch import Tensor

ASSIGNED = "assigned"
"""The key under which the meta data of a view's `gt_instances` carries its assignment."""


@TASK_UTILS.register_module()
class ReplayingAssigner(BaseAssigner):
    """Answers with the assignment that the objects of a view carry.

    It is (P,) int64 as mmdet has it: -1 is ignored, 0 background, k the object k - 1. Targets of
    quality, where the head has any, come from the head's own boxes, as in LAD's IoU branch.
    """

    def assign(
        self, pred_instances: InstanceData, *args: Any, gt_instances: Any = None, **_: Any
    ) -> AssignResult:
        """What mmdet's assigners return, with `assign_metrics` as TOOD's has them.

        Args:
            pred_instances: `priors` (P, 4), and of some heads `bboxes` (P, 4) and `scores` (P, C).
            *args: what heads hand over by position: the objects, what is to be ignored and the
                exponents of TOOD's metric, score ** alpha * IoU ** beta; some heads begin with the
                number of priors of each level.
            gt_instances: the M objects, if they are not among these.
        """
        if gt_instances is None:
            gt_instances = next(arg for arg in args if isinstance(arg, InstanceData))
        alpha, beta = args[2:4] if len(args) == 4 else (1, 6)
        gt_inds: Tensor = gt_instances.get(ASSIGNED)
        count = len(pred_instances.priors)
        if len(gt_inds) != count:
            raise ValueError(f"an assignment of {len(gt_inds)} priors for {count} of them")
        labels = torch.full_like(gt_inds, -1)
        max_overlaps = pred_instances.priors.new_zeros(count)
        metrics = torch.zeros_like(max_overlaps)
        if len(gt_instances):
            positive = gt_inds > 0
            objects = (gt_inds - 1).clamp(min=0)
            classes = gt_instances.labels[objects]
            labels = torch.where(positive, classes, labels)
            if "bboxes" in pred_instances:
                boxes = pred_instances.bboxes.detach()
                overlaps = bbox_overlaps(boxes, gt_instances.bboxes[objects], is_aligned=True)
                max_overlaps = overlaps * positive
                scores = pred_instances.scores.detach().gather(1, classes[:, None])[:, 0]
                metrics = scores**alpha * max_overlaps**beta
        result = AssignResult(len(gt_instances), gt_inds, max_overlaps, labels=labels)
        result.assign_metrics = metrics
        return result


@TASK_UTILS.register_module()
class RecordingAssigner(BaseAssigner):
    """Asks a head's own assigner, and keeps what it says.

    Args:
        assigner: mmdet's config of it.

    Attributes:
        results: what it said since they were last taken.
    """

    def __init__(self, assigner: dict[str, Any]) -> None:
        self.assigner = TASK_UTILS.build(assigner)
        self.results: list[AssignResult] = []

    def assign(self, *args: Any, **kwargs: Any) -> AssignResult:
        """What the head's own assigner says."""
        result = self.assigner.assign(*args, **kwargs)
        self.results.append(result)
        return result

    def take(self) -> list[AssignResult]:
        """What was said since this was last asked, view after view."""
        results, self.results = self.results, []
        return results
