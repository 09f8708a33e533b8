"""The preprocessor with fewer copies, against mmdet's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from pipeline.detector.build import build_detector, load_model_config
from pipeline.detector.preprocessor import FewCopiesPreprocessor, with_few_copies
from tests.conftest import DEVICES

CONFIG = Path(__file__).parents[2] / "configs/paa_r18_quarter.py"
USUAL = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], pad_size_divisor=32)
SAME, MIXED = [(3, 50, 70), (3, 50, 70)], [(3, 50, 70), (3, 64, 33), (3, 20, 96)]


def both(settings: dict[str, Any]) -> tuple[Any, Any]:
    given = ConfigDict(data_preprocessor=dict(type="DetDataPreprocessor", **settings))
    theirs = MODELS.build(given.data_preprocessor)
    ours = MODELS.build(with_few_copies(given).data_preprocessor)
    assert type(theirs) is DetDataPreprocessor
    assert type(ours) is FewCopiesPreprocessor
    return ours, theirs


def batch(shapes: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    torch.manual_seed(0)
    images = [torch.randint(256, shape, dtype=torch.uint8) for shape in shapes]
    samples = [DetDataSample(metainfo={"img_shape": shape[1:]}) for shape in shapes]
    for sample in samples:
        boxes = HorizontalBoxes(torch.rand(2, 4))
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 1]))
    return {"inputs": images, "data_samples": samples}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shapes", [SAME, MIXED], ids=["same size", "mixed sizes"])
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(USUAL, id="usual"),
        pytest.param(USUAL | {"bgr_to_rgb": True}, id="channels turned around"),
        pytest.param(USUAL | {"pad_value": 7.5, "pad_size_divisor": 1}, id="padded with a value"),
        pytest.param({"pad_size_divisor": 32}, id="not normalised"),
    ],
)
def test_equals_mmdets(device: str, shapes: list[tuple[int, ...]], settings: dict) -> None:
    ours, theirs = (one.to(device)(batch(shapes), training=True) for one in both(settings))
    assert ours.keys() == theirs.keys()
    assert torch.equal(ours["inputs"], theirs["inputs"])
    assert ours["inputs"].device.type == device
    for mine, other in zip(ours["data_samples"], theirs["data_samples"], strict=True):
        assert mine.metainfo == other.metainfo
        boxes = mine.gt_instances.bboxes
        assert type(boxes) is torch.Tensor
        assert torch.equal(boxes, other.gt_instances.bboxes)


def test_images_that_are_a_tensor_already() -> None:
    images = torch.randint(256, (2, 3, 50, 70), dtype=torch.uint8)
    ours, theirs = (one({"inputs": images, "data_samples": None}) for one in both(USUAL))
    assert torch.equal(ours["inputs"], theirs["inputs"])


def test_a_network_has_it_and_its_config_does_not() -> None:
    model = load_model_config(CONFIG, 3)
    assert type(build_detector(model).data_preprocessor) is FewCopiesPreprocessor
    assert model.data_preprocessor.type == "DetDataPreprocessor"


def test_another_preprocessor_stays() -> None:
    model = ConfigDict(data_preprocessor=dict(type="BatchFixedSizePad"))
    assert with_few_copies(model) is model
