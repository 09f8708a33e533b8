"""Checkpoints as people have them: of other makers, wrapped, averaged, broken, no checkpoints."""

import gzip
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from pipeline.detector.build import build_detector, load_model_config, without_downloads
from pipeline.detector.checkpoint import load_weights, matching_weights, read_weights
from pipeline.project.errors import UserError
from tests.conftest import ROOT

STATE = {"backbone.conv1.weight": torch.ones(2, 3), "bbox_head.bias": torch.zeros(4)}


def assert_is_state(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


def prefixed(*prefixes: str) -> dict[str, torch.Tensor]:
    return {"".join(prefixes) + name: weight for name, weight in STATE.items()}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(STATE, id="plain"),
        pytest.param({"state_dict": STATE, "meta": {"epoch": 3}}, id="mmengine"),
        pytest.param({"model": STATE, "optimizer": {}, "epoch": 1}, id="under model"),
        pytest.param({"model_state_dict": STATE, "loss": 0.5}, id="under model_state_dict"),
        pytest.param({"state_dict": prefixed("module.")}, id="data parallel"),
        pytest.param(prefixed("_orig_mod."), id="compiled"),
        pytest.param(prefixed("module.", "_orig_mod."), id="compiled in parallel"),
        pytest.param({"state_dict": prefixed("model.")}, id="lightning"),
        pytest.param(
            {"state_dict": STATE | {"ema_backbone_conv1_weight": torch.full((2, 3), 9.0)}},
            id="averaged by mmdet 2",
        ),
    ],
)
def test_weights_are_found(tmp_path: Path, content: dict[str, Any]) -> None:
    file = tmp_path / "weights.pth"
    torch.save(content, file)
    assert_is_state(read_weights(file))


def test_safetensors(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(prefixed("module."), file)
    assert_is_state(read_weights(file))


class Evil:
    def __reduce__(self):
        return (print, ("ran",))


def saved(content: Any) -> bytes:
    file = Path("made.pth")
    torch.save(content, file)
    return file.read_bytes()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"", "is not a checkpoint: it is empty"),
        (lambda: b"<!DOCTYPE html><html>", "it is a web page or XML; download the file again"),
        (lambda: b"\n <html>", "it is a web page or XML"),
        (lambda: b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS.*lfs pull"),
        (lambda: gzip.compress(saved(STATE)), "compressed by gzip; unpack it first"),
        (lambda: b'{"error": "not found"}', "text .JSON., not weights"),
        (lambda: b"hello", "it is broken or cut off"),
        (lambda: saved(STATE)[:-100], "it is broken or cut off"),
        (lambda: saved([1, 2]), "expected a dict of weights, got list"),
        (lambda: saved({}), "expected weights, got none"),
        (lambda: saved({"state_dict": None}), "expected weights under 'state_dict', got NoneType"),
        (lambda: saved({"state_dict": {}}), "expected weights under 'state_dict', got none"),
        (
            lambda: saved({"state_dict": STATE | {"neck.scale": 1.5}}),
            "expected tensors under 'state_dict', but 'neck.scale' is float",
        ),
        (lambda: saved({"epoch": 3, "lr": 0.1}), "expected tensors, but 'epoch' is int; it has"),
    ],
)
@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_what_is_no_checkpoint_is_said_and_never_to_be_trusted(
    tmp_path: Path, monkeypatch, make, message: str, trust: bool, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    content = make()
    if name.endswith("safetensors") and content.startswith(b"PK"):
        pytest.skip("no file of safetensors")
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UserError, match=f"(?s){message}") as error:
        read_weights(file, trust)
    assert str(file) in str(error.value)
    assert "trust_checkpoint" not in str(error.value)


def test_only_what_holds_more_may_be_trusted(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"state_dict": STATE, "meta": Evil()}, file)
    with pytest.raises(UserError, match="holds more than tensors .*trust_checkpoint: true"):
        read_weights(file)
    assert_is_state(read_weights(file, trust=True))


@pytest.fixture
def detector() -> nn.Module:
    model = load_model_config(ROOT / "configs/gfl_r18_quarter.py", num_classes=3)
    return build_detector(without_downloads(model))


def of_other_classes() -> dict[str, torch.Tensor]:
    model = load_model_config(ROOT / "configs/gfl_r18_quarter.py", num_classes=8)
    return build_detector(without_downloads(model)).state_dict()


def test_weights_of_other_classes_say_what_can_be_done(detector) -> None:
    with pytest.raises(UserError) as error:
        load_weights(detector, of_other_classes(), "zoo.pth")
    assert "bbox_head.gfl_cls.weight has the shape (8, " in str(error.value)
    assert "teacher.load_from instead of teacher.checkpoint" in str(error.value)


def test_what_fits_of_weights_of_other_classes(detector) -> None:
    state = of_other_classes()
    fitting = matching_weights(detector, state, "zoo.pth")
    assert state.keys() - fitting.keys() == {"bbox_head.gfl_cls.weight", "bbox_head.gfl_cls.bias"}
    detector.load_state_dict(fitting, strict=False)
    with pytest.raises(UserError, match="no weight of the backbone in other.pth fits"):
        matching_weights(detector, {"layers.0.weight": torch.zeros(3)}, "other.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(detector, value: float) -> None:
    state = detector.state_dict()
    state["neck.fpn_convs.0.conv.bias"][0] = value
    with pytest.raises(UserError, match=r"weights in x.pth are not finite in 1 of .*training\.lr"):
        load_weights(detector, state, "x.pth")
