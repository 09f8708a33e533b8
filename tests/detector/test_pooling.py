"""The quick max pooling, against torch's."""

import pytest
import torch
from torch import nn

from pipeline.detector.model_folder import load_model
from pipeline.detector.pooling import QuickMaxPool, pool_quickly
from pipeline.teacher_pass.teacher import Teacher
from tests.conftest import DEVICES


def maps(*shape: int) -> torch.Tensor:
    """With ties, infinities and numbers that are none."""
    torch.manual_seed(0)
    x = torch.randint(-3, 3, shape).float()
    x[torch.rand(shape) < 0.02] = torch.nan
    x[torch.rand(shape) < 0.02] = -torch.inf
    return x


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(16, 24), (15, 24), (16, 7), (1, 1), (2, 1), (1, 8), (3, 2)])
@torch.no_grad()
def test_equals_torchs(device: str, size: tuple[int, int]) -> None:
    x = maps(2, 3, *size).to(device)
    before = x.clone()
    expected = nn.MaxPool2d(3, 2, 1)(x)
    found = QuickMaxPool()(x)
    assert torch.equal(found.nan_to_num(9), expected.nan_to_num(9))
    assert found.is_contiguous()
    assert torch.equal(x.nan_to_num(9), before.nan_to_num(9))


@torch.no_grad()
def test_maps_of_another_layout_keep_it() -> None:
    x = maps(2, 3, 16, 24).contiguous(memory_format=torch.channels_last)
    found = QuickMaxPool()(x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found.nan_to_num(9), nn.MaxPool2d(3, 2, 1)(x).nan_to_num(9))


def test_gradients_are_torchs() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 24, requires_grad=True)
    (found,) = torch.autograd.grad(QuickMaxPool()(x).square().sum(), x)
    (expected,) = torch.autograd.grad(nn.MaxPool2d(3, 2, 1)(x).square().sum(), x)
    assert torch.equal(found, expected)


def test_another_pooling_stays() -> None:
    network = nn.Sequential(
        nn.MaxPool2d(3, 2, 1),
        nn.Sequential(nn.MaxPool2d(2, 2)),
        nn.Sequential(nn.MaxPool2d(3, 2, 1)),
    )
    pool_quickly(network)
    assert [type(one) for one in (network[0], network[1][0], network[2][0])] == [
        QuickMaxPool,
        nn.MaxPool2d,
        QuickMaxPool,
    ]


def test_a_teacher_says_what_its_network_says(labelled) -> None:
    detector, _ = load_model(labelled.paths.teacher, "")
    teacher = Teacher(load_model(labelled.paths.teacher, "")[0])
    assert type(teacher.detector.backbone.maxpool) is QuickMaxPool
    images = torch.randn(2, 3, 192, 256)
    with torch.no_grad():
        expected = detector.bbox_head(detector.extract_feat(images))
    for ours, theirs in zip(teacher.forward(images), expected, strict=True):
        assert all(map(torch.equal, ours, theirs))
