"""The fingerprint: each field that differs is refused by name, and nothing in the store changes.

And what the fingerprint does not hold: code and library versions, which an unfinished store alone
is bound to.
"""

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from mmengine.config import Config

import pipeline.store.fingerprint
import pipeline.teacher_pass.fingerprint
import pipeline.teacher_pass.run
import pipeline.teacher_pass.shard_labeller
from pipeline.data.dataset import load_split
from pipeline.project.digests import digest, flatten
from pipeline.project.errors import UserError
from pipeline.store.reader import LabelStore
from pipeline.teacher_pass.fingerprint import code_and_versions
from pipeline.teacher_pass.label import load_teacher
from tests.teacher_pass.test_run import assert_same_stores
from tests.unfinished import unfinish


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


def rewrite(store: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the attributes of a store, with the right digest."""
    file = store / "zarr.json"
    content = json.loads(file.read_text())
    attributes = content["attributes"]
    del attributes["digest"]
    change(attributes)
    attributes["digest"] = digest(attributes)
    file.write_text(json.dumps(content))


def restamp(store: Path, field: str, value: Any, part: str = "fingerprint") -> None:
    """Have a store say that it was made from something else, with right digests."""

    def change(attributes: dict[str, Any]) -> None:
        *places, last = field.split(".")
        place = attributes[part]
        for name in places:
            place = place[name]
        place[last] = value

    rewrite(store, change)


def refused_fields(call, *args, **kwargs) -> tuple[set[str], str]:
    """The fields that the refusal names, and its message."""
    with pytest.raises(UserError) as error:
        call(*args, **kwargs)
    message = str(error.value)
    lines = [line for line in message.splitlines() if line.startswith("  ")]
    assert all(": expected " in line and ", found " in line for line in lines)
    return {line.split(":")[0].strip() for line in lines}, message


def test_the_fingerprint_has_every_part(labelled) -> None:
    store = LabelStore(labelled.paths.labels)
    names = {name for name, _ in flatten(store.fingerprint)}
    assert names >= {
        "labels_version",
        "teacher.weights",
        "teacher.model.backbone.depth",
        "teacher.model.bbox_head.anchor_generator.strides",
        "teacher.model.bbox_head.loss_cls.gamma",
        "data.classes",
        "data.annotations",
        "data.images",
        "views",
        "priors.strides",
        "priors.centre",
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
        "coding.min_score",
        "numerics.device",
        "numerics.dtype",
        "numerics.channels_last",
    }
    assert not any("init_cfg" in name or "test_cfg" in name for name in names)
    # They bind an unfinished store alone.
    others = {
        "code",
        "versions.torch",
        "versions.onedl-mmdetection",
        "versions.opencv-python-headless",
    }
    assert not any(name.split(".")[0] in ("code", "versions") for name in names)
    assert {name for name, _ in flatten(store.made_with)} >= others


def test_a_teacher_pass_refuses_a_store_in_which_any_field_differs(project, monkeypatch) -> None:
    store = project.paths.labels
    loaded = load_teacher(project.paths, load_split(project.paths, "train"))
    monkeypatch.setattr(pipeline.teacher_pass.run, "load_teacher", lambda *_: loaded)
    maker = code_and_versions()  # half a second each time
    monkeypatch.setattr(pipeline.teacher_pass.run, "code_and_versions", lambda: maker)
    pristine = (store / "zarr.json").read_bytes()
    for field, value in flatten(LabelStore(store).fingerprint):
        restamp(store, field, other(value))
        before = files(store)
        fields, message = refused_fields(project.fill_store)
        assert fields == {field}
        assert f"{field}: expected {value}, found {other(value)}" in message
        assert "--replace" in message
        assert files(store) == before, field
        (store / "zarr.json").write_bytes(pristine)
    project.fill_store()


def test_a_student_refuses_a_store_in_which_a_field_that_concerns_it_differs(project) -> None:
    store = project.paths.labels
    pristine = (store / "zarr.json").read_bytes()
    parts = ("labels_version", "data", "views", "padding")
    for field, value in flatten(LabelStore(store).fingerprint):
        if field.split(".")[0] in parts:
            restamp(store, field, other(value))
            fields, message = refused_fields(project.train, "lad")
            assert fields == {field}
            assert f"{field}: expected {value}, found {other(value)}" in message
            assert "--replace" in message
            (store / "zarr.json").write_bytes(pristine)


@pytest.mark.parametrize("field", ["strides", "centre"])
def test_a_student_refuses_a_store_of_other_priors(project, field: str) -> None:
    priors = LabelStore(project.paths.labels).fingerprint["priors"]
    found = priors | {field: other(priors[field])}
    restamp(project.paths.labels, f"priors.{field}", found[field])
    with pytest.raises(UserError) as error:
        project.train("lad")
    message = f"its PAAHead has the priors {priors}, the teacher's PAAHead {found}; take a head or"
    assert message in str(error.value)


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
    project.check_data()


def change_class_order(project) -> None:
    change_data(project, lambda content: content["categories"].reverse())


def change_a_box(project) -> None:
    def edit(content) -> None:
        content["annotations"][3]["bbox"][2] -= 0.5

    change_data(project, edit)


def change_an_image(project) -> None:
    first = json.loads(load_split(project.paths, "train").annotations.read_text())["images"][0]
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
    "another min_score": (change_settings(labels={"min_score": 0.2}), {"coding.min_score"}),
}


@pytest.mark.parametrize(("change", "fields"), CHANGES.values(), ids=CHANGES)
def test_a_real_change_is_refused(project, change, fields: set[str]) -> None:
    change(project)
    before = files(project.paths.labels)
    found, message = refused_fields(project.fill_store)
    assert found == fields
    assert "--replace" in message
    assert files(project.paths.labels) == before


def test_a_store_without_soft_scores_is_another(project) -> None:
    project.change(labels={"soft": False})
    _, message = refused_fields(project.fill_store)
    assert "coding" in message


def test_another_version_of_labels_is_refused(project, labelled, monkeypatch) -> None:
    """As if a commit had changed what decides labels, and had raised the number."""
    monkeypatch.setattr(pipeline.store.fingerprint, "LABELS_VERSION", 2)
    before = files(project.paths.labels)
    for call in (project.fill_store, lambda: project.train("lad")):
        fields, message = refused_fields(call)
        assert fields == {"labels_version"}
        assert "labels_version: expected 2, found 1" in message
        assert "--replace" in message
    assert files(project.paths.labels) == before
    project.fill_store(replace=True)
    assert LabelStore(project.paths.labels).fingerprint["labels_version"] == 2
    assert_same_stores(project.paths.labels, labelled.paths.labels)
    project.change(training={"epochs": 1}).train("lad")


def upgrade_torch(project, monkeypatch) -> str:
    """Have the code believe that it runs with another torch; the field in which stores differ."""
    version = pipeline.teacher_pass.fingerprint.version
    monkeypatch.setattr(
        pipeline.teacher_pass.fingerprint,
        "version",
        lambda name: "99.1" if name == "torch" else version(name),
    )
    return "versions.torch"


def made_with_older_torch(project, monkeypatch) -> str:
    """Have the store say that it was made with another torch; the field."""
    restamp(project.paths.labels, "versions.torch", "1.0", "made_with")
    return "versions.torch"


def made_with_other_code(project, monkeypatch) -> str:
    """Have the store say that it was made with other code; the field."""
    restamp(project.paths.labels, "code", "other", "made_with")
    return "code"


OTHERS = [upgrade_torch, made_with_older_torch, made_with_other_code]


@pytest.mark.parametrize("other_maker", OTHERS)
def test_a_finished_store_stays_valid_with_other_code_or_versions(
    project, monkeypatch, capsys, other_maker
) -> None:
    field = other_maker(project, monkeypatch)
    monkeypatch.setattr(pipeline.teacher_pass.shard_labeller, "run_network", None)
    before = files(project.paths.labels)
    report = project.fill_store()
    assert report == json.loads(project.paths.labels_report.read_text())
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    # The teacher of a copied project lies elsewhere.
    assert {note.split(":")[1].strip() for note in notes} == {field, "teacher"}
    assert all(note.endswith(" in the store; its labels stay valid") for note in notes)
    record = project.change(training={"epochs": 1}).train("lad")
    assert record["labels"] == "cached"
    assert files(project.paths.labels) == before


@pytest.mark.parametrize("other_maker", OTHERS)
def test_an_unfinished_store_is_not_continued_with_other_code_or_versions(
    project, labelled, monkeypatch, capsys, other_maker
) -> None:
    field = other_maker(project, monkeypatch)
    begun = unfinish(project.paths.labels, 0).path
    before = files(begun)
    fields, message = refused_fields(project.fill_store)
    assert fields == {field}
    assert "unfinished" in message
    assert "--replace" in message
    assert files(begun) == before
    run_network = pipeline.teacher_pass.shard_labeller.run_network
    batches: list[int] = []

    def counted(*args):
        batches.append(1)
        return run_network(*args)

    monkeypatch.setattr(pipeline.teacher_pass.shard_labeller, "run_network", counted)
    capsys.readouterr()
    project.fill_store(replace=True)
    said = f"a new store is begun: the unfinished store {begun} was begun with"
    assert f"note: {said} other code or versions" in capsys.readouterr().err
    assert len(batches) == 96 / 4  # every view, in batches of 4
    assert_same_stores(project.paths.labels, labelled.paths.labels)
    made_with = LabelStore(project.paths.labels).made_with
    assert made_with["code"] == LabelStore(labelled.paths.labels).made_with["code"]
    assert made_with["versions"]["torch"] == pipeline.teacher_pass.fingerprint.version("torch")


def test_an_unfinished_store_is_continued_with_the_same_code_and_versions(
    project, labelled, monkeypatch
) -> None:
    made = files(project.paths.labels)
    assert files(unfinish(project.paths.labels, 0).path) != made
    run_network = pipeline.teacher_pass.shard_labeller.run_network
    batches: list[int] = []

    def counted(*args):
        batches.append(1)
        return run_network(*args)

    monkeypatch.setattr(pipeline.teacher_pass.shard_labeller, "run_network", counted)
    project.fill_store()
    assert len(batches) == 2  # one shard of 8 views in batches of 4
    assert files(project.paths.labels) == made


def test_what_can_not_change_labels_is_shown_and_changes_nothing(
    project, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(pipeline.teacher_pass.shard_labeller, "run_network", None)
    before = files(project.paths.labels)
    project.change(teacher_pass={"batch_size": 3, "workers": 1, "shard_rows": 5})
    project.fill_store(replace=True)
    shown = capsys.readouterr().err
    assert "note: batch_size: expected 3, found 4 in the store; its labels stay valid" in shown
    assert "note: workers: expected 1, found 0 in the store" in shown
    assert files(project.paths.labels) == before
