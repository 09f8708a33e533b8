"""The ops of mmcv that detectors need, where mmcv has no compiled ones.

`pipeline/__init__.py` puts them in the place of the module `mmcv._ext`: NMS and the deformable
convolutions from torchvision and the sigmoid focal loss in torch, on CPU and GPU. Every other op
raises when it is called.

The deformable convolutions are version 1 (Dai et al., ICCV 2017, arXiv 1703.06211) and version 2
(Zhu et al., CVPR 2019, arXiv 1811.11168), whose samples have weights, the mask. Their shapes:
B images of C channels and H x W pixels; N channels of P x Q positions come out; the kernel has
K x L taps and C / `group` channels; each of G deformable groups of channels has its own samples.
"""

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import NoReturn

import torch
import torchvision
from torch import Tensor
from torch.nn.functional import logsigmoid

# How mmcv calls the settings that torchvision's op has, by version.
_SETTINGS_V1 = {
    "stride": ("dH", "dW"),
    "padding": ("padH", "padW"),
    "dilation": ("dilationH", "dilationW"),
}
_SETTINGS_V2 = {
    "stride": ("stride_h", "stride_w"),
    "padding": ("pad_h", "pad_w"),
    "dilation": ("dilation_h", "dilation_w"),
}


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


def deform_conv_forward(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **settings: int,
) -> None:
    """The deformable convolution, version 1, written to `output`.

    Args:
        x: float (B, C, H, W).
        weight: float (N, C / group, K, L).
        offset: float (B, G * K * L * 2, P, Q), in pixels of `x`: how far the sample of a tap is
            from the tap's place, first down and then right.
        output: float (B, N, P, Q).
        columns: room for the compiled op, not used.
        ones: the same.
        settings: `dH` and `dW` (the stride), `padH`, `padW`, `dilationH` and `dilationW`; the
            others follow from the shapes.
    """
    output.copy_(_deform_conv(settings, x, weight, offset))


def deform_conv_backward_input(
    x: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **settings: int,
) -> None:
    """The derivatives by `x`, added to `grad_input`, and by the offset, written to `grad_offset`.

    Of a sample exactly one pixel above or left of the image, where the slope jumps, the derivative
    by the offset is that of moving into the image; the compiled op has 0 there.

    The other arguments are those of `deform_conv_forward`; each gradient has its operand's shape.
    """
    by_x, _, by_offset = _deform_conv_grads(settings, grad_output, x, weight, offset)
    grad_input += by_x
    grad_offset.copy_(by_offset)


def deform_conv_backward_parameters(
    x: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    scale: float,
    **settings: int,
) -> None:
    """The derivative by the weight times `scale`, added to `grad_weight`.

    The other arguments are those of `deform_conv_forward`; each gradient has its operand's shape.
    """
    # The convolution is linear in its weight: the derivative is the same at any weight.
    _, by_weight, _ = _deform_conv_grads(settings, grad_output, x, grad_weight, offset)
    grad_weight += scale * by_weight


def modulated_deform_conv_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    with_bias: bool,
    **settings: int,
) -> None:
    """The deformable convolution, version 2, written to `output`.

    Args:
        x: float (B, C, H, W).
        weight: float (N, C / group, K, L).
        bias: float (N), or anything without `with_bias`.
        ones: room for the compiled op, not used.
        offset: float (B, G * K * L * 2, P, Q), as in `deform_conv_forward`.
        mask: float (B, G * K * L, P, Q), a factor for each sample.
        output: float (B, N, P, Q).
        columns: room for the compiled op, not used.
        with_bias: whether `bias` is added.
        settings: `stride_h`, `stride_w`, `pad_h`, `pad_w`, `dilation_h` and `dilation_w`; the
            others follow from the shapes.
    """
    output.copy_(_deform_conv(settings, x, weight, offset, mask, bias if with_bias else None))


def modulated_deform_conv_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *,
    with_bias: bool,
    **settings: int,
) -> None:
    """The derivatives by `x`, weight and bias, added to what is there, and by offset and mask.

    Those by offset and mask are written over what is there. The other arguments are those of
    `modulated_deform_conv_forward`; each gradient has its operand's shape.
    """
    operands = [x, weight, offset, mask] + [bias] * with_bias
    grads = _deform_conv_grads(settings, grad_output, *operands)
    grad_input += grads[0]
    grad_weight += grads[1]
    grad_offset.copy_(grads[2])
    grad_mask.copy_(grads[3])
    if with_bias:
        grad_bias += grads[4]


def _deform_conv(
    settings: Mapping[str, int],
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Either version, float (B, N, P, Q); torchvision has mmcv's order of the offsets.

    Half precision is computed in float32, which is what torchvision does under autocast.
    """
    names = _SETTINGS_V1 if mask is None else _SETTINGS_V2
    dtype = torch.promote_types(x.dtype, torch.float32)
    result: Tensor = torchvision.ops.deform_conv2d(
        x.to(dtype),
        offset.to(dtype),
        weight.to(dtype),
        mask=None if mask is None else mask.to(dtype),
        bias=None if bias is None else bias.to(dtype),
        **{name: tuple(settings[one] for one in pair) for name, pair in names.items()},
    )
    return result


def _deform_conv_grads(
    settings: Mapping[str, int], grad_output: Tensor, *operands: Tensor
) -> Sequence[Tensor]:
    """The derivatives by the operands of `_deform_conv`, each of its operand's shape."""
    with torch.enable_grad():
        leaves = [operand.detach().requires_grad_() for operand in operands]
        output = _deform_conv(settings, *leaves)
    return torch.autograd.grad(output, leaves, grad_output.to(output.dtype))


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
        deform_conv_forward=deform_conv_forward,
        deform_conv_backward_input=deform_conv_backward_input,
        deform_conv_backward_parameters=deform_conv_backward_parameters,
        modulated_deform_conv_forward=modulated_deform_conv_forward,
        modulated_deform_conv_backward=modulated_deform_conv_backward,
        __getattr__=_missing,
    )
    return module
