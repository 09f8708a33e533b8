"""Losses for soft labels, as registered mmdet losses."""

from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.losses.utils import weight_reduce_loss
from mmdet.registry import MODELS
from torch import Tensor, nn

EPSILON = 1e-6


def focal_divergence(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """KL(t || p) x ((t - p)^2 + 1e-6)^(gamma / 2) of Bernoulli variables, one per element.

    The soft-label loss of LAD (WACV 2022, section 4): a student whose probability p is far from
    the teacher's t learns more. Never less than float32 is computed in, so it may be called under
    autocast; finite with finite gradients for t of exactly 0 and 1 and for any logits.

    Args:
        logits: of any shape; p is their sigmoid.
        target: t, of the same shape, in [0, 1]; no gradient is computed for it.
        gamma: how much a large difference counts for more.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    z, t = logits.to(dtype), target.detach().to(dtype)
    # log p and log(1 - p) each from the logit: t log(t / p) stays exact where t and p are tiny,
    # as most are, and a cross-entropy minus an entropy would cancel. 0 log 0 is 0.
    found = torch.xlogy(t, t) - t * F.logsigmoid(z)
    missed = torch.special.xlog1py(1 - t, -t) - (1 - t) * F.logsigmoid(-z)
    difference = (t - z.sigmoid()).square() + EPSILON
    return (found + missed) * difference ** (gamma / 2)


class DistillationLoss(nn.Module):
    """Base of losses between a student's logits and a teacher's probabilities.

    Args:
        reduction: `none`, `mean` or `sum`.
        loss_weight: factor of the loss.
    """

    def __init__(self, reduction: str = "mean", loss_weight: float = 1.0) -> None:
        super().__init__()
        self.reduction = reduction
        self.loss_weight = loss_weight

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        """The loss of each element."""
        raise NotImplementedError

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """The loss, reduced as mmdet's losses are.

        Args:
            pred: (N, C) or (N,) logits.
            target: probabilities of the same shape.
            weight: of the same shape, or (N,) for all classes of a row.
            avg_factor: what the mean divides the sum by, instead of the number of elements.
            reduction_override: replaces `reduction` in this call.

        Returns:
            A scalar, or the shape of `pred` for the reduction `none`.

        Raises:
            ValueError: shapes that do not fit, an unknown reduction, or `avg_factor` with `sum`.
        """
        reduction = reduction_override or self.reduction
        if reduction not in ("none", "mean", "sum"):
            raise ValueError(f"the reduction must be none, mean or sum, got {reduction!r}")
        if pred.shape != target.shape:
            raise ValueError(f"logits {tuple(pred.shape)}, but targets {tuple(target.shape)}")
        loss = self.elementwise(pred, target)
        if weight is not None:
            if weight.shape not in (loss.shape, loss.shape[:1]):
                raise ValueError(f"logits {tuple(pred.shape)}, but weights {tuple(weight.shape)}")
            weight = weight.view(-1, *[1] * (loss.dim() - 1)) if weight.dim() == 1 else weight
        loss = self.loss_weight * loss
        reduced: Tensor = weight_reduce_loss(loss, weight, reduction, avg_factor)
        return reduced


@MODELS.register_module()
class SoftLabelLoss(DistillationLoss):
    """The loss of LAD's soft labels, of classes or of the IoU branch; see `focal_divergence`.

    Args:
        gamma: how much a large difference counts for more.
        **kwargs: see `DistillationLoss`.
    """

    def __init__(self, gamma: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.gamma = gamma

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        """The loss of each element."""
        return focal_divergence(pred, target, self.gamma)


@MODELS.register_module()
class BinaryDistillationLoss(DistillationLoss):
    """BCE(z, t) x |t - p|, p = sigmoid(z): BCKD's loss of the classes (arXiv 2308.14286).

    A gradient flows through both factors. Never less than float32 is computed in.
    """

    def elementwise(self, pred: Tensor, target: Tensor) -> Tensor:
        """The loss of each element."""
        dtype = torch.promote_types(pred.dtype, torch.float32)
        z, t = pred.to(dtype), target.detach().to(dtype)
        entropy = F.binary_cross_entropy_with_logits(z, t, reduction="none")
        return entropy * (t - z.sigmoid()).abs()
