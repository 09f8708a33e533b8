"""The fingerprint: each field that differs is refused by name, and nothing in the store changes."""

import copy
import hashlib
import json
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from mmengine.config import Config

import pipeline.teacher_pass.labelling
import pipeline.teacher_pass.run
import pipeline.teacher_pass.shard_labeller
from pipeline.ingest.prepare import prepare_data
from pipeline.project.errors import UserError
from pipeline.store.fingerprint import digest, flatten
from pipeline.store.reader import LabelStore
from pipeline.students.train import train_student
from pipeline.teacher_pass.labelling import load_teacher
from pipeline.teacher_pass.run import precompute_labels


@pytest.fixture
def project(labelled, tmp_path):
    return labelled.copy(tmp_path)


def files(store: Path) -> dict[str, str]:
    """The digest of every file of a store."""
    return {
        str(file.relative_to(store)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(store.rglob("*"))
        if file.is_file()
    }


def other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value - 1
    if isinstance(value, float):
        return value / 2 or 0.5
    if isinstance(value, list):
        return [*value[1:], "another"]
    return "another"


def restamp(store: Path, field: str, value: Any) -> None:
    """Have a store say that it was made from something else, with right digests."""
    file = store / "zarr.json"
    content = json.loads(file.read_text())
    attributes = content["attributes"]
    *places, last = field.split(".")
    place = attributes["fingerprint"]
    for name in places:
        place = place[name]
    place[last] = value
    del attributes["digest"]
    attributes["digest"] = digest(attributes)
    file.write_text(json.dumps(content))


def refused_fields(call, *args, **kwargs) -> tuple[set[str], str]:
    """The fields that the refusal names, and its message."""
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    message = str(error.value)
    lines = [line for line in message.splitlines() if line.startswith("  ")]
    assert all(": expected " in line and ", found " in line for line in lines)
    return {line.split(":")[0].strip() for line in lines}, message


def test_the_fingerprint_has_every_part(labelled) -> None:
    fingerprint = LabelStore(labelled.paths.labels).fingerprint
    names = {name for name, _ in flatten(fingerprint)}
    assert names >= {
        "teacher.weights",
        "teacher.model.backbone.depth",
        "teacher.model.bbox_head.anchor_generator.strides",
        "teacher.model.bbox_head.loss_cls.gamma",
        "data.classes",
        "data.annotations",
        "data.images",
        "views",
        "priors.strides",
        "priors.scale",
        "padding.pad_size_divisor",
        "preprocessing.mean",
        "preprocessing.std",
        "preprocessing.bgr_to_rgb",
        "preprocessing.pad_value",
        "preprocessing.resize.backend",
        "preprocessing.resize.interpolation",
        "assignment.assigner.type",
        "coding.scores.cut",
        "coding.scores.levels",
        "coding.scores.power",
        "coding.min_iou",
        "numerics.device",
        "numerics.dtype",
        "numerics.channels_last",
        "code",
        "versions.torch",
        "versions.onedl-mmdetection",
        "versions.opencv-python-headless",
    }
    assert not any("init_cfg" in name or "test_cfg" in name for name in names)


def test_a_teacher_pass_refuses_a_store_in_which_any_field_differs(project, monkeypatch) -> None:
    store = project.paths.labels
    loaded = load_teacher(project.paths, pipeline.teacher_pass.run.load_data_info(project.paths))
    monkeypatch.setattr(pipeline.teacher_pass.run, "load_teacher", lambda *_: loaded)
    pristine = (store / "zarr.json").read_bytes()
    for field, value in flatten(LabelStore(store).fingerprint):
        restamp(store, field, other(value))
        before = files(store)
        fields, message = refused_fields(
            precompute_labels, project.params, project.paths, replace=False
        )
        assert fields == {field}
        assert f"{field}: expected {value}, found {other(value)}" in message
        assert "--replace" in message
        assert files(store) == before, field
        (store / "zarr.json").write_bytes(pristine)
    precompute_labels(project.params, project.paths, replace=False)


def test_a_student_refuses_a_store_in_which_a_field_that_concerns_it_differs(project) -> None:
    store = project.paths.labels
    pristine = (store / "zarr.json").read_bytes()
    parts = ("data", "views", "priors", "padding")
    for field, value in flatten(LabelStore(store).fingerprint):
        if field.split(".")[0] in parts:
            restamp(store, field, other(value))
            fields, message = refused_fields(train_student, "lad", project.params, project.paths)
            assert fields == {field}
            assert f"{field}: expected {value}, found {other(value)}" in message
            assert "--replace" in message
            (store / "zarr.json").write_bytes(pristine)


def change_weights(project) -> None:
    file = project.paths.teacher / "weights.pth"
    content = torch.load(file, weights_only=True)
    content["state_dict"]["bbox_head.atss_cls.bias"][3] += 1e-3
    torch.save(content, file)


def change_config(*places: str, value: Any):
    def change(project) -> None:
        file = project.paths.teacher / "config.py"
        config = Config.fromfile(file)
        place = config.model
        for name in places[:-1]:
            place = place[name]
        place[places[-1]] = value
        config.dump(file)

    return change


def change_settings(**sections: Any):
    def change(project) -> None:
        project.change(**copy.deepcopy(sections))

    return change


def change_data(project, edit) -> None:
    """Edit the annotations of both splits, and check the data again."""
    for split in ("train", "val"):
        file = project.folder / "source" / f"{split}.json"
        content = json.loads(file.read_text())
        edit(content)
        file.write_text(json.dumps(content))
    project.change(data={"source": str(project.folder / "source")})
    prepare_data(project.params, project.paths)


def change_class_order(project) -> None:
    change_data(project, lambda content: content["categories"].reverse())


def change_a_box(project) -> None:
    def edit(content) -> None:
        content["annotations"][3]["bbox"][2] -= 0.5

    change_data(project, edit)


def change_an_image(project) -> None:
    first = json.loads((project.paths.data / "train.json").read_text())["images"][0]
    file = project.folder / "source" / "images" / first["file_name"]
    image = cv2.imread(str(file))
    image[0, 0] ^= 1
    cv2.imwrite(str(file), image)
    change_data(project, lambda content: None)


CHANGES = {
    "other weights": (change_weights, {"teacher.weights"}),
    "another loss": (
        change_config("bbox_head", "loss_bbox", "loss_weight", value=2.0),
        {"teacher.model.bbox_head.loss_bbox.loss_weight"},
    ),
    "another mean": (
        change_config("data_preprocessor", "mean", value=[0.0, 0.0, 0.0]),
        {"preprocessing.mean"},
    ),
    "another std": (
        change_config("data_preprocessor", "std", value=[1.0, 2.0, 3.0]),
        {"preprocessing.std"},
    ),
    "other channels": (
        change_config("data_preprocessor", "bgr_to_rgb", value=False),
        {"preprocessing.bgr_to_rgb"},
    ),
    "another padding": (
        change_config("data_preprocessor", "pad_size_divisor", value=64),
        {"preprocessing.pad_size_divisor", "padding.pad_size_divisor"},
    ),
    "another assigner": (
        change_config("train_cfg", "pos_weight", value=2),
        {"assignment.pos_weight"},
    ),
    "another class order": (change_class_order, {"data.annotations", "data.classes"}),
    "another box": (change_a_box, {"data.annotations"}),
    "another image": (change_an_image, {"data.images"}),
    "other flips": (change_settings(views={"flips": ["none"]}), {"views"}),
    "another scale": (change_settings(views={"scales": [[256, 192], [192, 144]]}), {"views"}),
    "another cut": (change_settings(labels={"scores": {"cut": 0.01}}), {"coding.scores.cut"}),
    "other levels": (
        change_settings(labels={"scores": {"levels": 100}}),
        {"coding.scores.levels"},
    ),
    "another dtype": (change_settings(labels={"autocast": "bfloat16"}), {"numerics.dtype"}),
    "another memory format": (
        change_settings(labels={"channels_last": True}),
        {"numerics.channels_last"},
    ),
    "another min_iou": (change_settings(labels={"min_iou": 0.3}), {"coding.min_iou"}),
}


@pytest.mark.parametrize(("change", "fields"), CHANGES.values(), ids=CHANGES)
def test_a_real_change_is_refused(project, change, fields: set[str]) -> None:
    change(project)
    before = files(project.paths.labels)
    found, message = refused_fields(precompute_labels, project.params, project.paths, replace=False)
    assert found == fields
    assert "--replace" in message
    assert files(project.paths.labels) == before


def test_a_store_without_soft_scores_is_another(project) -> None:
    project.change(labels={"soft": False})
    _, message = refused_fields(precompute_labels, project.params, project.paths, replace=False)
    assert "coding" in message


@pytest.mark.parametrize(("found", "refused"), [("2.14.99", False), ("2.99.1", True)])
def test_of_versions_two_numbers_count(
    project, monkeypatch, capsys, found: str, refused: bool
) -> None:
    version = pipeline.teacher_pass.labelling.version

    def changed(name: str) -> str:
        return found if name == "torch" else version(name)

    monkeypatch.setattr(pipeline.teacher_pass.labelling, "version", changed)
    monkeypatch.setattr(pipeline.teacher_pass.run, "version", changed)
    if refused:
        fields, message = refused_fields(
            precompute_labels, project.params, project.paths, replace=False
        )
        assert fields == {"versions.torch"}
        assert "expected 2.99, found 2.14" in message
    else:
        precompute_labels(project.params, project.paths, replace=False)
        assert "note: versions.torch: expected 2.14.99, found " in capsys.readouterr().err


def test_what_can_not_change_labels_is_shown_and_changes_nothing(
    project, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(pipeline.teacher_pass.shard_labeller, "look", None)
    before = files(project.paths.labels)
    project.change(labels={"batch_size": 3, "workers": 1, "shard_rows": 5})
    precompute_labels(project.params, project.paths, replace=True)
    shown = capsys.readouterr().err
    assert "note: batch_size: expected 3, found 4 in the store; its labels stay valid" in shown
    assert "note: workers: expected 1, found 0 in the store" in shown
    assert files(project.paths.labels) == before


def test_comments_and_docstrings_are_no_code() -> None:
    bare = "def f(x):\n    return x + 1"
    text = (
        '"""What\nit is for."""\n\n\ndef f(x):  # why\n'
        '    """Add one."""\n    # more\n    return x + 1\n'
    )
    assert pipeline.teacher_pass.labelling._bare_code(text) == bare
    assert pipeline.teacher_pass.labelling._bare_code(text.replace("x + 1", "x + 2")) != bare
    assert pipeline.teacher_pass.labelling._bare_code('a = "#"  # a hash') == 'a = "#"'
