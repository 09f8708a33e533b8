"""The ops in the place of the compiled ones, through mmcv, against the formulas of the papers."""

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmcv.ops
import mmdet
import pytest
import torch
from mmcv.ops import batched_nms
from mmdet.models.backbones import ResNet
from mmdet.models.dense_heads import TOODHead
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData
from torch import Tensor
from torch.nn.functional import conv2d

import pipeline.detector.mmcv_ops as ops
from tests.conftest import DEVICES, ROOT

stand_in = pytest.mark.skipif(
    hasattr(sys.modules["mmcv._ext"], "__file__"), reason="mmcv has its compiled ops"
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def random_boxes(count: int = 150, **options: Any) -> tuple[Tensor, Tensor]:
    corners = torch.rand(count, 2) * 40
    boxes = torch.cat([corners, corners + 2 + torch.rand(count, 2) * 30], dim=1).round()
    scores = torch.randperm(count) / count
    return boxes.to(**options), scores.to(**options)


def slow_nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> list[int]:
    def area(x1: float, y1: float, x2: float, y2: float) -> float:
        return max(0, x2 - x1 + offset) * max(0, y2 - y1 + offset)

    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        one = boxes[i].tolist()
        for j in kept:
            two = boxes[j].tolist()
            overlap = area(*map(max, one[:2], two[:2]), *map(min, one[2:], two[2:]))
            if overlap / (area(*one) + area(*two) - overlap) > iou_threshold:
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.7])
def test_nms(device: str, offset: int, threshold: float):
    boxes, scores = random_boxes(device=device)
    dets, kept = mmcv.ops.nms(boxes, scores, threshold, offset=offset)
    expected = slow_nms(boxes, scores, threshold, offset)
    assert 1 < len(expected) < len(boxes)
    assert kept.tolist() == expected
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], dim=1)[kept])


def test_offset_matters():
    boxes, scores = random_boxes(200)
    kept = [mmcv.ops.nms(boxes, scores, 0.3, offset=offset)[1].tolist() for offset in (0, 1)]
    assert kept[0] != kept[1]


@pytest.mark.parametrize("device", DEVICES)
def test_nms_without_boxes(device: str):
    boxes, scores = random_boxes(0, device=device)
    dets, kept = mmcv.ops.nms(boxes, scores, 0.5)
    assert dets.shape == (0, 5)
    assert kept.shape == (0,)
    assert kept.dtype == torch.long


@pytest.mark.parametrize("device", DEVICES)
def test_batched_nms(device: str):
    boxes, scores = random_boxes(device=device)
    classes = torch.arange(len(boxes), device=device) % 3
    _, kept = batched_nms(boxes, scores, classes, {"type": "nms", "iou_threshold": 0.5})
    expected = []
    for label in range(3):
        own = torch.nonzero(classes == label).squeeze(1)
        expected += [own[i].item() for i in slow_nms(boxes[own], scores[own], 0.5, 0)]
    assert sorted(kept.tolist()) == sorted(expected)
    assert scores[kept].tolist() == sorted(scores[kept].tolist(), reverse=True)


def focal_loss(
    loss: Callable[..., Tensor], logits: Tensor, upstream: Tensor, *args: Any, **options: Any
) -> tuple[Tensor, Tensor]:
    """The loss of every logit, and the gradient."""
    logits = logits.clone().requires_grad_()
    value = loss(logits, *args, **options)
    value.backward(upstream)
    assert logits.grad is not None
    return value.detach(), logits.grad


def logits_and_target(device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """For 4 classes; the target 4 is background."""
    logits = torch.cat([torch.randn(40, 4) * 3, torch.tensor([[50.0, -50, 50, -50]] * 5)])
    target = torch.cat([torch.arange(40) % 5, torch.arange(5)])
    return logits.to(device, dtype), target.to(device)


needs_stand_in_on_cpu = [
    pytest.param("cpu", marks=stand_in),
    DEVICES[1],
]


@pytest.mark.parametrize("device", needs_stand_in_on_cpu)
@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (1.5, 0.6), (0.0, 0.5)])
def test_focal_loss_is_that_of_mmdet(device: str, gamma: float, alpha: float):
    logits, target = logits_and_target(device)
    upstream = torch.rand_like(logits)
    one_hot = torch.nn.functional.one_hot(target, 5)[:, :4]
    found = focal_loss(
        mmcv.ops.sigmoid_focal_loss, logits, upstream, target, gamma, alpha, None, "none"
    )
    expected = focal_loss(
        py_sigmoid_focal_loss,
        logits.double(),
        upstream.double(),
        one_hot,
        gamma=gamma,
        alpha=alpha,
        reduction="none",
    )
    for one, other in zip(found, expected, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("device", needs_stand_in_on_cpu)
def test_focal_loss_of_class_weights(device: str):
    logits, target = logits_and_target(device)
    weight = torch.tensor([0.5, 2.0, 0.0, 1.0], device=device)
    upstream = torch.ones_like(logits)
    args = (mmcv.ops.sigmoid_focal_loss, logits, upstream, target, 2.0, 0.25)
    plain = focal_loss(*args, None, "none")
    weighted = focal_loss(*args, weight, "none")
    foreground = target < 4
    factor = weight[target[foreground]][:, None]
    for one, other in zip(weighted, plain, strict=True):
        torch.testing.assert_close(one[foreground], other[foreground] * factor)


@pytest.mark.parametrize("device", needs_stand_in_on_cpu)
def test_focal_loss_is_averaged_over_samples(device: str):
    logits, target = logits_and_target(device)
    one = torch.ones((), device=device)
    args = (target, 2.0, 0.25, None)
    each = focal_loss(mmcv.ops.sigmoid_focal_loss, logits, torch.ones_like(logits), *args, "none")
    mean = focal_loss(mmcv.ops.sigmoid_focal_loss, logits, one, *args, "mean")
    torch.testing.assert_close(mean[0], each[0].sum() / len(target))
    torch.testing.assert_close(mean[1], each[1] / len(target))


@stand_in
@pytest.mark.parametrize("device", DEVICES)
def test_focal_loss_in_half_precision(device: str):
    logits, target = logits_and_target(device, torch.float16)
    upstream = torch.ones_like(logits)
    args = (target, 2.0, 0.25, None, "none")
    half = focal_loss(mmcv.ops.sigmoid_focal_loss, logits, upstream, *args)
    full = focal_loss(mmcv.ops.sigmoid_focal_loss, logits.float(), upstream.float(), *args)
    for one, other in zip(half, full, strict=True):
        assert one.dtype == torch.float16
        torch.testing.assert_close(one, other.half())


# The settings of a convolution of 6 channels into 4, none of which is the default.
CONV = dict(stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)
DEFORM_GROUPS = 3
VERSIONS = [1, 2]


def conv_operands(version: int, device: str = "cpu") -> list[Tensor]:
    """x, offset, (mask,) weight and (bias) for `CONV`; samples are in and outside of the image."""
    x, weight, bias = torch.randn(3, 6, 7, 5), torch.randn(4, 3, 3, 2), torch.randn(4)
    places = conv2d(x, weight, **CONV).shape[2:]
    offset = torch.randn(3, DEFORM_GROUPS * 3 * 2 * 2, *places) * 2
    mask = torch.rand(3, DEFORM_GROUPS * 3 * 2, *places)
    operands = [x, offset, weight] if version == 1 else [x, offset, mask, weight, bias]
    return [operand.to(device, torch.float64).requires_grad_() for operand in operands]


def mmcv_deform_conv(*operands: Tensor) -> Tensor:
    version = mmcv.ops.deform_conv2d if len(operands) == 3 else mmcv.ops.modulated_deform_conv2d
    return version(*operands, *CONV.values(), DEFORM_GROUPS)


def slow_deform_conv(*operands: Tensor) -> Tensor:
    """The sum over the taps of weight times sample; a sample is the sum over all pixels q of
    G(q, p) x(q), which is equation 3 of the paper on version 1."""
    x, offset, *mask, weight = operands[:4] if len(operands) == 5 else operands
    batch, _, height, width = x.shape
    taps = weight.shape[2:]
    places = offset.shape[2:]
    offset = offset.reshape(batch, DEFORM_GROUPS, *taps, 2, *places)

    def bilinear(axis: int, size: int) -> Tensor:
        """g of equation 4, between the sample of every tap and place and every pixel."""
        tap = torch.arange(taps[axis], device=x.device) * CONV["dilation"][axis]
        tap = tap[:, None, None, None] if axis == 0 else tap[:, None, None]
        place = torch.arange(places[axis], device=x.device) * CONV["stride"][axis]
        place = place[:, None] if axis == 0 else place
        at = place - CONV["padding"][axis] + tap + offset.select(4, axis)
        return (1 - (at[..., None] - torch.arange(size, device=x.device)).abs()).clamp(min=0)

    samples = torch.einsum(
        "bdchw,bdklpqh,bdklpqw->bdcklpq",
        x.unflatten(1, (DEFORM_GROUPS, -1)),
        bilinear(0, height),
        bilinear(1, width),
    )
    if mask:
        samples = samples * mask[0].reshape(batch, DEFORM_GROUPS, 1, *taps, *places)
    groups = CONV["groups"]
    output = torch.einsum(
        "bgcklpq,gnckl->bgnpq",
        samples.flatten(1, 2).unflatten(1, (groups, -1)),
        weight.unflatten(0, (groups, -1)),
    ).flatten(1, 2)
    return output + operands[4][:, None, None] if len(operands) == 5 else output


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("version", VERSIONS)
def test_deform_conv_is_the_sum_over_bilinear_samples(device: str, version: int):
    operands = conv_operands(version, device)
    found, expected = mmcv_deform_conv(*operands), slow_deform_conv(*operands)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, operands, upstream),
        torch.autograd.grad(expected, operands, upstream),
        strict=True,
    ):
        assert other.abs().sum() > 0
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("version", VERSIONS)
def test_gradients_of_deform_conv_are_those_of_finite_differences(version: int):
    assert torch.autograd.gradcheck(mmcv_deform_conv, conv_operands(version), fast_mode=True)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("version", VERSIONS)
def test_deform_conv_without_offsets_is_a_convolution(device: str, version: int):
    options = dict(**CONV, deform_groups=DEFORM_GROUPS, bias=version == 2)
    kind = mmcv.ops.DeformConv2d if version == 1 else mmcv.ops.ModulatedDeformConv2d
    layer = kind(6, 4, (3, 2), **options).to(device).double()
    x, offset, *mask = conv_operands(version, device)[:-version]
    if version == 2:
        torch.nn.init.normal_(layer.bias)
    found = layer(x, torch.zeros_like(offset), *map(torch.ones_like, mask))
    bias = layer.bias if version == 2 else None
    torch.testing.assert_close(found, conv2d(x, layer.weight, bias, **CONV))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("version", VERSIONS)
def test_deform_conv_that_finds_its_own_offsets(device: str, version: int):
    kind = mmcv.ops.DeformConv2dPack if version == 1 else mmcv.ops.ModulatedDeformConv2dPack
    layer = kind(6, 4, (3, 2), **CONV, deform_groups=DEFORM_GROUPS).to(device).double()
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.1)
    x = conv_operands(version, device)[0]
    if version == 1:
        operands = [x, layer.conv_offset(x), layer.weight]
    else:
        down, right, mask = layer.conv_offset(x).chunk(3, dim=1)
        operands = [x, torch.cat([down, right], 1), mask.sigmoid(), layer.weight, layer.bias]
    found, expected = layer(x), slow_deform_conv(*operands)
    torch.testing.assert_close(found, expected)
    learned = [x, *layer.parameters()]
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), learned),
        torch.autograd.grad(expected.square().sum(), learned),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@stand_in
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_deform_conv_in_half_precision(device: str, version: int, dtype: torch.dtype):
    halves = [one.detach().to(dtype).requires_grad_() for one in conv_operands(version, device)]
    floats = [one.detach().float().requires_grad_() for one in halves]
    half, full = mmcv_deform_conv(*halves), mmcv_deform_conv(*floats)
    assert half.dtype == dtype
    torch.testing.assert_close(half, full.to(dtype))
    upstream = torch.randn_like(half)
    for one, other in zip(
        torch.autograd.grad(half, halves, upstream),
        torch.autograd.grad(full, floats, upstream.float()),
        strict=True,
    ):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other.to(dtype))


def buffers_and_gradients(
    operands: list[Tensor],
) -> tuple[Tensor, list[Tensor], tuple[Tensor, ...]]:
    """An upstream gradient, a buffer of ones for each operand, and the operands' gradients."""
    output = slow_deform_conv(*operands)
    upstream = torch.randn_like(output)
    expected = torch.autograd.grad(output, operands, upstream)
    return upstream, [torch.ones_like(operand) for operand in operands], expected


@pytest.mark.parametrize("device", DEVICES)
def test_some_gradients_of_version_1_are_added_to_what_is_there(device: str):
    operands = conv_operands(1, device)
    upstream, found, expected = buffers_and_gradients(operands)
    x, offset, weight = (operand.detach() for operand in operands)
    unused = x.new_empty(0)
    sizes = dict(dH=2, dW=1, padH=1, padW=2, dilationH=1, dilationW=2)
    into_x, into_offset, _ = found
    ops.deform_conv_backward_input(
        x, offset, upstream, into_x, into_offset, weight, unused, **sizes
    )
    ops.deform_conv_backward_parameters(
        x, offset, upstream, found[2], unused, unused, scale=0.5, **sizes
    )
    torch.testing.assert_close(found[0], 1 + expected[0])
    torch.testing.assert_close(found[1], expected[1])
    torch.testing.assert_close(found[2], 1 + expected[2] / 2)


@pytest.mark.parametrize("device", DEVICES)
def test_some_gradients_of_version_2_are_added_to_what_is_there(device: str):
    operands = conv_operands(2, device)
    upstream, found, expected = buffers_and_gradients(operands)
    x, offset, mask, weight, bias = (operand.detach() for operand in operands)
    unused = x.new_empty(0)
    ops.modulated_deform_conv_backward(
        *(x, weight, bias, unused, offset, mask, unused),
        *(found[0], found[3], found[4], found[1], found[2], upstream),
        **dict(stride_h=2, stride_w=1, pad_h=1, pad_w=2, dilation_h=1, dilation_w=2),
        with_bias=True,
    )
    for one, other, added in zip(found, expected, [1, 0, 0, 1, 1], strict=True):
        torch.testing.assert_close(one, added + other)


def assert_every_parameter_gets_a_gradient(model: torch.nn.Module):
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("epoch", [0, 4])
def test_tood_head(device: str, epoch: int, monkeypatch: pytest.MonkeyPatch):
    """That of mmdet, but small; from epoch 4 on its assignment is by its own predictions."""
    file = Path(mmdet.__file__).parent / ".mim/configs/tood/tood_r50_fpn_1x_coco.py"
    model = Config.fromfile(file).model
    settings = dict(num_classes=3, in_channels=32, feat_channels=32, stacked_convs=2, num_dcn=1)
    model.bbox_head.update(settings)
    model.bbox_head.pop("type")
    head = TOODHead(**model.bbox_head, train_cfg=model.train_cfg, test_cfg=model.test_cfg)
    head.to(device).init_weights()
    monkeypatch.setattr(MessageHub, "get_info", lambda hub, key: epoch)
    image = DetDataSample(metainfo=dict(img_shape=(64, 64), pad_shape=(64, 64)))
    boxes = torch.tensor([[8.0, 8, 40, 48], [30, 20, 60, 60]], device=device)
    image.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 2], device=device))
    features = [torch.randn(2, 32, size, size, device=device) for size in (8, 4, 2, 1, 1)]
    losses = head.loss(features, [image, image])
    sum(sum(values) for values in losses.values()).backward()
    assert_every_parameter_gets_a_gradient(head)
    for conv in (head.inter_convs[0].conv, head.reg_offset_module[-1]):
        assert conv.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("device", DEVICES)
def test_resnet_of_deformable_convolutions(device: str):
    model = ResNet(
        depth=50,
        base_channels=4,
        dcn=dict(type="DCNv2", deform_groups=1, fallback_on_stride=False),
        stage_with_dcn=(False, True, True, True),
    ).to(device)
    model.init_weights()
    kinds = [type(block.conv2) for stage in (model.layer1, model.layer2) for block in stage]
    assert kinds == [torch.nn.Conv2d] * 3 + [mmcv.ops.ModulatedDeformConv2dPack] * 4
    features = model(torch.randn(2, 3, 32, 32, device=device))
    assert [level.shape for level in features] == [
        (2, 16 * 2**i, 8 // 2**i, 8 // 2**i) for i in range(4)
    ]
    sum(level.square().sum() for level in features).backward()
    assert_every_parameter_gets_a_gradient(model)


@stand_in
def test_other_ops_raise_when_called():
    with pytest.raises(ops.MissingOpError, match=r"mmcv op 'roi_align_forward', .*`pip install"):
        mmcv.ops.roi_align(torch.rand(1, 1, 8, 8), torch.tensor([[0.0, 0, 0, 4, 4]]), 2)


@stand_in
def test_stand_in_is_a_module_like_others():
    module = importlib.import_module("mmcv._ext")
    spec = importlib.util.find_spec("mmcv._ext")
    assert spec is not None
    assert spec.name == "mmcv._ext"
    for name in ("__path__", "__file__", "__wrapped__"):
        assert not hasattr(module, name)


def test_compiled_ops_are_not_replaced(tmp_path: Path):
    """A plain package of the name mmcv that has the module, in a new process."""
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv/__init__.py").touch()
    (tmp_path / "mmcv/_ext.py").touch()
    program = "import pipeline, mmcv._ext; print(mmcv._ext.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(tmp_path / "mmcv/_ext.py")
