"""The head that learns a given assignment."""

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.dense_heads import LADHead
from mmdet.registry import MODELS
from torch import Tensor

from pipeline.heads.objectness import ObjectnessPAAHead


@MODELS.register_module()
class ObjectnessLADHead(ObjectnessPAAHead, LADHead):
    """mmdet's `LADHead`, which may have an objectness; see `pipeline.heads.objectness`."""

    def loss_by_feat(
        self,
        cls_scores: Sequence[Tensor],
        bbox_preds: Sequence[Tensor],
        iou_preds: Sequence[Tensor],
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """The losses of `LADHead`, which are of all priors of a batch alike.

        To put them in a row, mmdet takes maps apart by level and image. Here they come in a row,
        as one image of one level.
        """
        rows = (_rows(levels) for levels in (cls_scores, bbox_preds, iou_preds))
        maps = ([row.T[None, ..., None]] for row in rows)
        losses: dict[str, Tensor] = super().loss_by_feat(*maps, *args, **kwargs)
        return losses


def _rows(levels: Sequence[Tensor]) -> Tensor:
    """Maps (B, channels, H, W) of all levels as (B * P, channels)."""
    return torch.cat([level.permute(0, 2, 3, 1).flatten(1, 2) for level in levels], 1).flatten(0, 1)
