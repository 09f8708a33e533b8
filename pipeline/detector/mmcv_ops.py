"""The ops of mmcv that detectors need, where mmcv has no compiled ones.

`pipeline/__init__.py` puts them in the place of the module `mmcv._ext`: NMS from torchvision and
the sigmoid focal loss in torch, on CPU and GPU. Every other op raises when it is called.
"""

from collections.abc import Callable
from types import ModuleType
from typing import NoReturn

import torch
import torchvision
from torch import Tensor
from torch.nn.functional import logsigmoid


class MissingOpError(RuntimeError):
    """A model called an op that only the compiled mmcv has."""


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Non-maximum suppression.

    Args:
        boxes: float [boxes, 4], xyxy in pixels.
        scores: float [boxes].
        iou_threshold: a box whose IoU with a kept, higher scored one is above this is dropped.
        offset: 1 if pixel coordinates are inclusive, so that a width is x2 - x1 + 1; else 0.

    Returns:
        Indices of the kept boxes, highest score first; int64 [kept].
    """
    corners = boxes.float() + torch.tensor([0, 0, offset, offset], device=boxes.device)
    kept: Tensor = torchvision.ops.nms(corners, scores.float(), iou_threshold)
    return kept


def sigmoid_focal_loss_forward(
    logits: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """The sigmoid focal loss of every logit, written to `output`.

    Args:
        logits: float [samples, classes].
        target: int64 [samples], the class; the number of classes stands for background.
        weight: float [classes], a factor by target class (background has 1), or empty.
        output: float [samples, classes].
        gamma: the exponent that makes easy samples count less.
        alpha: the weight of the positive class; the others have 1 - alpha.
    """
    x = logits.float()
    log_p, log_not_p = logsigmoid(x), logsigmoid(-x)
    loss = torch.where(
        _is_target(logits, target),
        -alpha * (gamma * log_not_p).exp() * log_p,
        -(1 - alpha) * (gamma * log_p).exp() * log_not_p,
    )
    output.copy_(loss * _sample_weight(target, weight))


def sigmoid_focal_loss_backward(
    logits: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """The derivative of every loss by its logit, written to `grad_input`.

    The arguments are those of `sigmoid_focal_loss_forward`.
    """
    x = logits.float()
    log_p, log_not_p = logsigmoid(x), logsigmoid(-x)
    p, not_p = x.sigmoid(), (-x).sigmoid()
    grad = torch.where(
        _is_target(logits, target),
        -alpha * (gamma * log_not_p).exp() * (not_p - gamma * p * log_p),
        (1 - alpha) * (gamma * log_p).exp() * (p - gamma * not_p * log_not_p),
    )
    grad_input.copy_(grad * _sample_weight(target, weight))


def _is_target(logits: Tensor, target: Tensor) -> Tensor:
    return target[:, None] == torch.arange(logits.size(1), device=logits.device)


def _sample_weight(target: Tensor, weight: Tensor) -> Tensor:
    """A factor for each sample, [samples, 1]."""
    if weight.numel() == 0:
        return torch.ones_like(target, dtype=torch.float32)[:, None]
    return torch.cat([weight.float(), weight.new_ones(1).float()])[target][:, None]


def _missing(name: str) -> Callable[..., NoReturn]:
    """What stands for the op `name`: mmcv asks for it at import, and few models call it."""
    if name.startswith("__"):
        raise AttributeError(f"the module of mmcv's ops has no attribute {name!r}")

    def call(*args: object, **kwargs: object) -> NoReturn:
        raise MissingOpError(
            f"this model calls the mmcv op {name!r}, which the installed mmcv has not compiled; "
            "compile it: `pip install --no-build-isolation --force-reinstall --no-deps onedl-mmcv`"
        )

    return call


def stand_in(name: str) -> ModuleType:
    """A module of this name with the ops.

    Args:
        name: of mmcv's module of compiled ops.
    """
    module = ModuleType(name, "Stands for the compiled ops of mmcv.")
    vars(module).update(
        nms=nms,
        sigmoid_focal_loss_forward=sigmoid_focal_loss_forward,
        sigmoid_focal_loss_backward=sigmoid_focal_loss_backward,
        __getattr__=_missing,
    )
    return module
