"""Losses between what a student predicts and what its teacher did, whatever their heads.

Shapes: B views, P priors of the batch's grid, C classes, N priors for which the teacher's box
counts. Boxes are xyxy in pixels of the view.
"""

from dataclasses import dataclass
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.dist import all_reduce
from torch import Tensor, nn

from pipeline.heads.batch_grid import BatchGrid
from pipeline.heads.family import HeadFamily, Outputs


@dataclass(frozen=True, eq=False)
class BatchTargets:
    """What a teacher says of a batch, on the batch's grid.

    Attributes:
        grid: of the batch.
        probabilities: (B * P, C) of the classes; where not valid, anything.
        indices: (N,) int64 where the priors whose box counts lie among the B * P.
        max_iou: (N,) best IoU of the teacher's box with an object.
        boxes: (N, 4) the teacher's boxes.
        quality: (N,) the teacher's IoU prediction or centerness.
    """

    grid: BatchGrid
    probabilities: Tensor
    indices: Tensor
    max_iou: Tensor
    boxes: Tensor
    quality: Tensor

    @property
    def valid(self) -> Tensor:
        """(B * P,) 1.0 inside each view's own padded size, else 0."""
        return self.grid.valid_flags.flatten().float()


@MODELS.register_module()
class SoftLabelDistillation(nn.Module):
    """The soft-label losses of LAD (WACV 2022, section 4, its KL baseline).

    Args:
        soft_cls: loss of the classes.
        soft_bbox: loss of the boxes.
        soft_quality: loss of what student and teacher predict beside them; None where that is not
            the same thing.
    """

    def __init__(
        self,
        soft_cls: dict[str, Any],
        soft_bbox: dict[str, Any],
        soft_quality: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.soft_cls = MODELS.build(soft_cls)
        self.soft_bbox = MODELS.build(soft_bbox)
        self.soft_quality = MODELS.build(soft_quality) if soft_quality else None

    def forward(
        self,
        family: HeadFamily,
        outputs: Outputs,
        targets: BatchTargets,
        positives: Tensor | int | None,
    ) -> dict[str, Tensor]:
        """The losses: `loss_soft_cls`, `loss_soft_bbox` and, if there is one, `loss_soft_QUALITY`.

        Args:
            family: of the student's head.
            outputs: of that head.
            targets: what the teacher says.
            positives: does not count here.
        """
        total = targets.max_iou.sum()
        total = torch.where(total > 0, total, torch.ones_like(total))
        logits = family.class_logits(outputs).flatten(0, 1)
        losses = {
            "loss_soft_cls": self.soft_cls(
                logits, targets.probabilities, targets.valid, avg_factor=total
            )
        }
        indices = targets.indices
        boxes = family.boxes(outputs, targets.grid.priors, indices)
        losses["loss_soft_bbox"] = (
            self.soft_bbox(boxes, targets.boxes, targets.max_iou, avg_factor=total)
            if len(indices)
            else nothing(outputs)
        )
        if self.soft_quality:
            quality = family.quality_logits(outputs)
            assert quality is not None
            losses[f"loss_soft_{family.quality}"] = (
                self.soft_quality(quality.flatten()[indices], targets.quality, avg_factor=total)
                if len(indices)
                else nothing(outputs)
            )
        return losses


@MODELS.register_module()
class BCKD(nn.Module):
    """BCKD (Yang et al., ICCV 2023, arXiv 2308.14286, section 3): classes and boxes.

    Both sums are divided by the number of positives of the head's own losses. A prior where the
    teacher's box is not stored has no part in the loss of the boxes.

    Args:
        kd_cls: loss of the classes.
        kd_bbox: loss of the boxes.
    """

    def __init__(self, kd_cls: dict[str, Any], kd_bbox: dict[str, Any]) -> None:
        super().__init__()
        self.kd_cls = MODELS.build(kd_cls)
        self.kd_bbox = MODELS.build(kd_bbox)

    def forward(
        self,
        family: HeadFamily,
        outputs: Outputs,
        targets: BatchTargets,
        positives: Tensor | int | None,
    ) -> dict[str, Tensor]:
        """The losses: `loss_kd_cls` and `loss_kd_bbox`.

        Args:
            family: of the student's head.
            outputs: of that head.
            targets: what the teacher says.
            positives: how many the head's own losses have in this process.
        """
        logits = family.class_logits(outputs).flatten(0, 1)
        factor = mean_count(positives, logits.device)
        losses = {
            "loss_kd_cls": self.kd_cls(
                logits, targets.probabilities, targets.valid, avg_factor=factor
            )
        }
        indices = targets.indices
        if not len(indices):
            return losses | {"loss_kd_bbox": nothing(outputs)}
        difference = targets.probabilities[indices] - logits.detach()[indices].sigmoid()
        losses["loss_kd_bbox"] = self.kd_bbox(
            family.boxes(outputs, targets.grid.priors, indices),
            targets.boxes,
            difference.abs().amax(1),
            avg_factor=factor,
        )
        return losses


def mean_count(count: Tensor | int | None, device: torch.device) -> Tensor:
    """A count's mean over the processes of a training, at least 1, as mmdet's losses take it."""
    mean = torch.as_tensor(count or 0, dtype=torch.float32, device=device).clone()
    all_reduce(mean, op="mean")
    return mean.clamp(min=1)


def nothing(outputs: Outputs) -> Tensor:
    """A loss of 0 in which all outputs take part, as other processes of a training expect."""
    return torch.stack([level.sum() for levels in outputs for level in levels]).sum() * 0
