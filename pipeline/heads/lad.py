"""The head that learns a given assignment."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from mmdet.models.dense_heads import LADHead
from mmdet.registry import MODELS
from torch import Tensor

from pipeline.heads.objectness import ObjectnessPAAHead
from pipeline.heads.paa import by_prior, prior_grid
from pipeline.views.priors import PriorGrid


@MODELS.register_module()
class ObjectnessLADHead(ObjectnessPAAHead, LADHead):
    """mmdet's `LADHead`, which may have an objectness; see `pipeline.heads.objectness`."""

    @cached_property
    def grid(self) -> PriorGrid:
        """The grid of its priors."""
        return prior_grid(self)

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
        rows = (by_prior(levels).flatten(0, 1) for levels in (cls_scores, bbox_preds, iou_preds))
        maps = ([row.T[None, ..., None]] for row in rows)
        losses: dict[str, Tensor] = super().loss_by_feat(*maps, *args, **kwargs)
        return losses
