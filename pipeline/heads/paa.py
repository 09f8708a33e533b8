"""PAA (Kim and Lee, ECCV 2020, arXiv 2007.08103), with the fast rule of `pipeline.assignment`."""

from typing import Any

import torch
from mmdet.models.utils import unpack_gt_instances
from mmdet.structures import SampleList
from mmengine.config import ConfigDict
from torch import Tensor

from pipeline.assignment.paa import list_candidates, select_positives
from pipeline.data.ground_truth import BACKGROUND, GroundTruth
from pipeline.heads.batch_grid import BatchGrid
from pipeline.heads.batched_paa import BatchedPAAHead
from pipeline.heads.family import HeadFamily, Outputs, register
from pipeline.heads.lad import ObjectnessLADHead
from pipeline.heads.paa_costs import HeadOutputs, LabelAssignment, candidate_costs, check_rule
from pipeline.heads.positives import Assignment, Positives
from pipeline.project.errors import UserError


@register
class PAA(HeadFamily):
    """mmdet's `PAAHead` and `LADHead`, and ours with an objectness.

    A student of given assignments has the losses of `LADHead` (LAD, WACV 2022).
    """

    heads = ("PAAHead", "LADHead", "ObjectnessPAAHead", "ObjectnessLADHead", "BatchedPAAHead")
    quality = "iou"
    rule = "batched"

    @classmethod
    def quality_of(cls, config: ConfigDict) -> str | None:
        """`iou`, but for heads without IoU branch."""
        return "iou" if config.get("iou_branch", True) else None

    def quality_logits(self, outputs: Outputs) -> Tensor | None:
        """The logits of the IoU branch, (B, P); None for a head without."""
        return super().quality_logits(outputs) if getattr(self.head, "iou_branch", True) else None

    def check(self, whose: str) -> None:
        """Refuse another rule than PAA's; see `HeadFamily.check`."""
        check_rule(self.head, whose)
        if len(self.grid.cell) > 1:
            raise UserError(f"{whose}'s anchor generator must give one anchor per cell")

    def assign(self, outputs: Outputs, truth: GroundTruth, grid: BatchGrid) -> Assignment:
        """LAD's label assignment (WACV 2022, section 3.2); see `HeadFamily.assign`."""
        valid_flags = None if grid.alike else grid.valid_flags
        candidates = list_candidates(grid.priors, truth, valid_flags)
        positives = select_positives(
            candidate_costs(self.head, HeadOutputs(*outputs), candidates),
            candidates.group,
            candidates.level,
            len(self.grid.strides),
        )
        assigned = torch.full((len(truth.boxes), grid.count), BACKGROUND, device=grid.device)
        assigned[candidates.image, candidates.prior] = torch.where(
            positives.chosen, candidates.object, BACKGROUND
        )
        return Assignment(assigned, len(positives.fallbacks))

    @classmethod
    def own(cls, model: ConfigDict) -> ConfigDict:
        """The config of the same network with the rule for whole batches; see `HeadFamily.own`."""
        model.bbox_head.type = BatchedPAAHead.__name__
        return model

    @classmethod
    def recording(cls, model: ConfigDict) -> ConfigDict:
        """The same as `own`, which knows its positives."""
        return cls.own(model)

    @classmethod
    def replaying(cls, model: ConfigDict) -> ConfigDict:
        """The config of a network that learns given assignments; see `HeadFamily.replaying`."""
        model.bbox_head.type = ObjectnessLADHead.__name__
        return model

    def own_losses(
        self, outputs: Outputs, samples: SampleList
    ) -> tuple[dict[str, Any], Tensor | int]:
        """PAA's losses, and the number of its positives; see `HeadFamily.own_losses`."""
        found: tuple[dict[str, Any], int] = self.head.own_losses(HeadOutputs(*outputs), samples)
        return found

    def losses(self, outputs: Outputs, samples: SampleList, positives: Positives) -> dict[str, Any]:
        """The losses of `LADHead` with a given assignment; see `HeadFamily.losses`."""
        grid, pos_inds = positives.grid, positives.pos_inds
        learning = grid.valid_flags
        if len(positives.ignored):
            learning = learning.flatten().clone()
            learning[positives.ignored] = False
        objects = [sample.gt_instances for sample in samples]
        assignment = LabelAssignment.of_positives(
            self.head.num_classes,
            learning,
            pos_inds=pos_inds,
            labels=positives.of_objects([one.labels for one in objects]),
            boxes=positives.of_objects([one.bboxes for one in objects]),
            anchors=grid.anchors(pos_inds),
        )
        instances, ignored, metas = unpack_gt_instances(samples)
        losses: dict[str, Any] = self.head.loss_by_feat(
            *outputs, instances, metas, ignored, label_assignment_results=assignment
        )
        return losses
