import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmcv.ops
import pytest
import torch
from mmcv.ops import batched_nms
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
from torch import Tensor

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
