"""Methods: a file in pipeline/methods is one, and nothing else has to know it."""

import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.dataset import pseudo_collate
from pydantic import ValidationError

from pipeline.data.dataset import load_split
from pipeline.detector.build import build_detector, load_model_config, without_downloads
from pipeline.loading.dataset import view_dataset
from pipeline.online.settings import OnlineStudent
from pipeline.store.reader import LabelStore
from pipeline.students.cached import cached_model, student_labels
from pipeline.students.method import Method, load_method, method_module, method_of
from pipeline.students.settings import METHODS, Student
from pipeline.views.plan import view_plan
from tests.conftest import ROOT

NAMES = sorted(file.stem for file in METHODS.glob("*.py") if file.stem != "__init__")


def accepted() -> list[str]:
    """What the setting `method` takes, as its refusal of something else lists it."""
    with pytest.raises(ValidationError) as error:
        Student(config="x", method="no such method")
    return str(error.value.errors()[0]["msg"]).rpartition("there are: ")[2].split(", ")


def test_a_method_is_a_file() -> None:
    assert METHODS == ROOT / "pipeline/methods"
    assert {"own", "lad", "soft", "solad", "bckd"} <= set(NAMES)
    assert accepted() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_method_loads_and_is_accepted(name: str) -> None:
    method = load_method(name)
    assert isinstance(method, Method)
    assert Path(inspect.getfile(sys.modules[method_module(name)])) == METHODS / f"{name}.py"
    student = Student(config="x", method=name)
    learns_of_a_teacher = method.assignment == "teacher" or method.distillation is not None
    assert method.has_teacher == learns_of_a_teacher
    assert student.labels_from == ("cached" if learns_of_a_teacher else "own")
    assert method_of(student) == method
    lenient = method_of(Student(config="x", method=name, min_iou=0.7))
    assert lenient == replace(method, min_iou=None if method.min_iou is None else 0.7)
    if learns_of_a_teacher:
        assert OnlineStudent(config="x", method=name).labels_from == "online"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("own", Method(assignment="own")),
        ("lad", Method(assignment="teacher")),
        ("soft", ("SoftLabelDistillation", 10.0, 10.0, 1.3, 0.1, None)),
        ("solad", ("SoftLabelDistillation", 2.0, 10.0, 1.3, 0.5, "teacher")),
    ],
)
def test_the_methods_of_the_paper(name: str, expected: Any) -> None:
    """What LAD, its soft-label baseline and SoLAD learn, with which weights and threshold."""
    method = load_method(name)
    if soft := method.distillation:
        weights = [soft[loss]["loss_weight"] for loss in ("soft_cls", "soft_quality", "soft_bbox")]
        assert (soft["type"], *weights, method.min_iou, method.assignment) == expected
    else:
        assert method == expected


NEW_METHOD = '''
from mmdet.registry import MODELS

import pipeline.students.losses
from pipeline.students.distillation import SoftLabelDistillation
from pipeline.students.method import Method


@MODELS.register_module(force=True)
class LouderDistillation(SoftLabelDistillation):
    """Counts all soft losses twice."""

    def forward(self, *args):
        found = super().forward(*args)
        return {name: 2 * value for name, value in found.items()}


METHOD = Method(
    distillation=dict(
        type="LouderDistillation",
        soft_cls=dict(type="SoftLabelLoss", loss_weight=10.0),
        soft_quality=dict(type="SoftLabelLoss", loss_weight=10.0),
        soft_bbox=dict(type="GIoULoss", loss_weight=1.3),
    ),
    min_iou=0.1,
)
'''


@pytest.fixture
def louder(tmp_path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A new file among the methods, with a distillation of its own; the name of the method.

    The folder of methods has a second place, so that the file need not be put into the library.
    """
    import pipeline.methods

    folder = tmp_path / "methods"
    folder.mkdir()
    for name in NAMES:
        (folder / f"{name}.py").symlink_to(METHODS / f"{name}.py")
    (folder / "louder.py").write_text(NEW_METHOD)
    (folder / "__init__.py").touch()
    monkeypatch.setattr(pipeline.students.settings, "METHODS", folder)
    monkeypatch.setattr(pipeline.methods, "__path__", [*pipeline.methods.__path__, str(folder)])
    yield "louder"
    sys.modules.pop("pipeline.methods.louder", None)


def test_a_new_file_is_a_new_method(louder: str) -> None:
    assert accepted() == sorted([*NAMES, louder])
    assert Student(config="x", method=louder).labels_from == "cached"
    assert OnlineStudent(config="x", method=louder).labels_from == "online"
    assert load_method(louder).distillation["type"] == "LouderDistillation"


def losses_of(labelled, method: str, views: list[int]) -> dict[str, torch.Tensor]:
    """The losses of a student with the random weights of a seed."""
    torch.manual_seed(0)
    train = load_split(labelled.paths, "train")
    student = Student(config=labelled.params.students["lad"].config, method=method)
    store = LabelStore(labelled.paths.labels)
    model = without_downloads(load_model_config(student.config, len(train.classes)))
    network = build_detector(cached_model(model, student, store)).train()
    network.init_weights()
    labels = student_labels(student, store)
    dataset = view_dataset(train, view_plan(labelled.params.views), labels)
    batch = network.data_preprocessor(pseudo_collate([dataset[view] for view in views]))
    return network.loss(batch["inputs"], batch["data_samples"])


def test_a_new_method_brings_a_distillation_of_its_own(labelled, louder: str) -> None:
    views = [0, 5, 10, 15]
    once, twice = (losses_of(labelled, method, views) for method in ("soft", louder))
    assert once.keys() == twice.keys()
    for name, value in once.items():
        assert value > 0
        torch.testing.assert_close(twice[name], 2 * value)


def test_a_student_of_a_new_method_trains(labelled, tmp_path) -> None:
    """With a copy of the library that has one file more."""
    project = labelled.copy(tmp_path / "project")
    student = {"config": project.params.students["lad"].config, "method": "louder"}
    project.change(students={"it": student}, training={"epochs": 1})
    copy = tmp_path / "copy"
    for package in ("pipeline", "stages"):
        shutil.copytree(ROOT / package, copy / package)
    (copy / "pipeline/methods/louder.py").write_text(NEW_METHOD)
    places = ["--params", project.folder / "params.yaml", "--out", project.paths.root]
    done = subprocess.run(
        [sys.executable, "-m", "stages.cli", *places, "student", "it"],
        cwd=copy,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads((project.paths.model("it") / "training.json").read_text())
    assert record["method"] == record["settings"]["method"] == "louder"
    assert record["labels"] == "cached"
    assert {"loss_soft_cls", "loss_soft_iou", "loss_soft_bbox"} <= record["curves"].keys()
