"""PAA heads with an objectness, implicit (IOP) or conditional (COP): LAD's appendix (WACV 2022).

A class probability is the mean, over the k x k neighbourhood of its cell, of

    sigmoid(class score of the neighbour) x sigmoid(weight of the neighbour),

where the cell predicts the k^2 weights from its box branch. IOP is k = 1, COP is k = 3. The heads
put out the *logit* of that probability, so that every loss, cost and score takes it as it takes
the logit of a plain PAA.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn import Scale
from mmdet.models.dense_heads import PAAHead
from mmdet.registry import MODELS
from mmengine.structures import InstanceData
from torch import Tensor, nn

KERNEL_SIZE = {"implicit": 1, "conditional": 3}
"""k, by the name of the objectness."""
LIMIT = 60.0
"""Scores and weights beyond it count as if they were at it, and learn nothing there."""
CERTAIN = 20.0
"""A logit whose sigmoid is 1 in float32."""
_SHIFT = 40.0


def weighted_logits(scores: Tensor, weights: Tensor) -> Tensor:
    """The logit of the mean over a neighbourhood of sigmoid(score) x sigmoid(weight).

    The mean is over the neighbours inside the map. Padding that a batch adds to an image is inside
    it, as it is for the convolutions before. Computed in no less than float32.

    Args:
        scores: (B, C, H, W) of the classes.
        weights: (B, k * k, H, W) of the neighbours of each cell, row by row; k is odd.

    Returns:
        (B, C, H, W).
    """
    dtype = torch.promote_types(scores.dtype, torch.float32)
    scores, weights = (x.to(dtype).clamp(-LIMIT, LIMIT) for x in (scores, weights))
    rows, columns = scores.shape[-2:]
    size = math.isqrt(weights.shape[1])
    # Sums of p and of 1 - p, which have no cancellation: p / (1 - p) is their ratio, whatever the
    # number of neighbours. Outside the map both terms are 0. No tensor has k * k * C channels.
    yes, no = (F.pad(x.sigmoid(), [size // 2] * 4) for x in (scores, -scores))
    # A product of two tiny probabilities has no place in float32, hence the shift.
    on, off = weights.sigmoid() * math.exp(_SHIFT), (-weights).sigmoid()
    hit = miss = torch.zeros_like(scores)
    for place in range(size * size):
        row, column = divmod(place, size)
        inside = (..., slice(row, row + rows), slice(column, column + columns))
        hit = hit + yes[inside] * on[:, place, None]
        miss = miss + no[inside] + yes[inside] * off[:, place, None]
    return hit.log() - _SHIFT - miss.log()


@MODELS.register_module()
class ObjectnessPAAHead(PAAHead):
    """A PAA head whose class probabilities take an objectness into account.

    Args:
        objectness: `implicit`, `conditional`, or None for a plain PAA head.
        iou_branch: without it there is no IoU loss, and a detection's score is its class
            probability alone.

    Raises:
        ValueError: another objectness, or neither objectness nor IoU branch.
    """

    def __init__(
        self,
        *args: Any,
        objectness: str | None = None,
        iou_branch: bool = True,
        **kwargs: Any,
    ) -> None:
        if objectness not in (None, *KERNEL_SIZE):
            raise ValueError(f"objectness must be one of {[*KERNEL_SIZE]}, got {objectness!r}")
        if not objectness and not iou_branch:
            raise ValueError("a head without IoU branch needs an objectness")
        self.objectness = objectness
        self.iou_branch = iou_branch
        if objectness:
            # The focal loss wants to start at probabilities of 0.01: weights start at 1/2.
            classes = dict(type="Normal", name="atss_cls", std=0.01, bias_prob=0.02)
            start = dict(type="Normal", layer="Conv2d", std=0.01, override=classes)
            kwargs.setdefault("init_cfg", start)
        super().__init__(*args, **kwargs)

    def _init_layers(self) -> None:
        super()._init_layers()
        if self.objectness:
            # What the box branch gives beside boxes: the weights, then the IoU.
            self.atss_centerness = nn.Conv2d(
                self.feat_channels,
                KERNEL_SIZE[self.objectness] ** 2 + self.iou_branch,
                self.pred_kernel_size,
                padding=self.pred_kernel_size // 2,
            )

    def forward_single(self, x: Tensor, scale: Scale) -> tuple[Tensor, Tensor, Tensor]:
        """Logits of the classes (B, C, H, W), encoded boxes (B, 4, H, W), logits of the IoU.

        Args:
            x: (B, channels, H, W) features of a level.
            scale: of the level's boxes.
        """
        scores, deltas, iou = super().forward_single(x, scale)
        if self.objectness:
            weights, iou = iou.tensor_split([KERNEL_SIZE[self.objectness] ** 2], dim=1)
            scores = weighted_logits(scores, weights)
        if not self.iou_branch:
            iou = torch.full_like(deltas[:, :1], CERTAIN)
        return scores, deltas, iou

    def loss_by_feat(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """The losses of the head, without that of an IoU branch that does not exist."""
        losses: dict[str, Tensor] = super().loss_by_feat(*args, **kwargs)
        if not self.iou_branch:
            del losses["loss_iou"]
        return losses

    def _bbox_post_process(self, results: InstanceData, *args: Any, **kwargs: Any) -> InstanceData:
        if not self.iou_branch:
            # mmdet's score is sqrt(probability x IoU), and the IoU is 1.
            results.scores = results.scores.square()
        return super()._bbox_post_process(results, *args, **kwargs)
