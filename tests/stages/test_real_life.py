"""What goes wrong in real projects, as a user sees it: one message, status 1, and nothing lost."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import stages.cli
from pipeline.data.dataset import load_split
from pipeline.detector.checkpoint import read_weights
from pipeline.detector.model_folder import save_model
from pipeline.store.reader import LabelStore
from pipeline.store.schema import unfinished
from tests.coco_builder import annotation, contents, image, write_coco
from tests.heads.zoo import random_network, zoo_model


@pytest.fixture
def project(labelled, tmp_path):
    return labelled.copy(tmp_path)


@pytest.fixture
def lad(project, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """Runs `lad ...` in the project's folder: exit status, output and error output."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(project.folder)
        monkeypatch.setattr(sys, "argv", ["lad", *arguments])
        capsys.readouterr()
        status = 0
        try:
            stages.cli.main()
        except SystemExit as end:
            status = int(end.code or 0)
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


def last_line(shown: str) -> str:
    """The last line of an output, which must be one of its own."""
    assert "Traceback" not in shown
    return shown.rstrip("\n").split("\n")[-1]


# What `lad data` leaves ------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "{}", "[]", "null", "{", '{"images": [{}]}'])
@pytest.mark.parametrize("file", ["annotations.json", "split.json", "about.json"])
@pytest.mark.parametrize("command", ["teacher", "labels", "student lad", "verify", "evaluate"])
def test_emptied_data(project, lad, content: str, file: str, command: str) -> None:
    for split in ("train", "val"):
        (project.paths.split(split) / file).write_text(content)
    before = contents(project.paths.labels)
    arguments = "evaluate teacher" if command == "evaluate" else command
    status, out, err = lad(*arguments.split())
    assert "Traceback" not in err + out
    assert re.search(rf"{file}.*run `lad data`", err + out)
    if command == "verify":
        assert "not compared with the data set" in out  # the store alone can still be checked
    else:
        assert status == 1
        assert last_line(err).startswith("Error: ")
    assert contents(project.paths.labels) == before


# Messages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fill", [lambda f: None, lambda f: (f / "zarr.json").write_text("{")])
def test_labels_on_what_is_no_store(project, lad, fill: Callable[[Path], Any]) -> None:
    """The advice is never the command that has just failed."""
    shutil.rmtree(project.paths.labels)
    project.paths.labels.mkdir()
    fill(project.paths.labels)
    status, _, err = lad("labels")
    assert status == 1
    assert "make it again with `lad labels --replace`" in err
    assert "`lad labels`" not in err
    status, out, _ = lad("labels", "--replace")
    assert status == 0
    assert "wrote out/labels.zarr" in out


@pytest.mark.parametrize("command", ["student paa", "labels", "evaluate teacher"])
def test_an_error_during_a_progress_bar_is_the_last_line(project, lad, command: str) -> None:
    for split in ("train", "val"):
        folder = load_split(project.paths, split).images_folder
        file = project.paths.split(split) / "about.json"
        copied = project.folder / f"copied_{split}"
        shutil.copytree(folder, copied)
        content = json.loads(file.read_text()) | {"images_folder": str(copied)}
        file.write_text(json.dumps(content))
        last = sorted(copied.glob(f"{split}/*.jpg"))[-1]
        last.write_bytes(b"")
    shutil.rmtree(project.paths.labels)
    status, _, err = lad(*command.split())
    assert status == 1
    assert last_line(err).startswith("Error: the image ")
    assert last_line(err).endswith("run `lad data`, which checks all of them")


# Teachers --------------------------------------------------------------------------------------


def with_weights(project, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    from mmengine.config import Config

    folder = project.paths.teacher
    state = read_weights(folder / "weights.pth")
    change(state)
    training = json.loads((folder / "training.json").read_text())
    save_model(folder, Config.fromfile(folder / "config.py").model, state, training)


@pytest.mark.parametrize("soft", [True, False])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "weights.pth are not finite in 1 of .*: its training has diverged"),
        (3e38, "the teacher's outputs are not finite"),
    ],
)
def test_a_teacher_that_is_not_finite_labels_nothing(
    project, lad, soft: bool, value: float, message: str
) -> None:
    with_weights(project, lambda state: state["bbox_head.atss_cls.weight"].fill_(value))
    project.change(labels={"soft": soft})
    before = contents(project.paths.labels)
    status, _, err = lad("labels", "--replace")
    assert status == 1
    assert re.search(message, err)
    assert contents(project.paths.labels) == before
    if value == value:  # a new store was begun
        assert LabelStore(unfinished(project.paths.labels)).missing_shards() == 12


def test_views_that_are_too_small_for_group_norm(project, lad) -> None:
    model = zoo_model("GFL")  # 32 channels in 32 groups
    state = random_network(model).state_dict()
    save_model(project.paths.teacher, model, state, {"name": "teacher", "method": "own"})
    project.change(views={"scales": [[100, 75]]}, teacher_pass={"batch_size": 1})
    status, _, err = lad("labels", "--replace")
    assert status == 1
    assert last_line(err).endswith(
        "expected views with a side over 128 pixels (views.scales), or a teacher_pass.batch_size "
        "above 1"
    )


def test_a_store_in_which_most_objects_have_no_positive_says_so(project, lad, capsys) -> None:
    model = zoo_model("RetinaNet")
    model.train_cfg.assigner.update(pos_iou_thr=0.95, match_low_quality=False)
    state = random_network(model).state_dict()
    save_model(project.paths.teacher, model, state, {"name": "teacher", "method": "own"})
    status, _, err = lad("labels", "--replace")
    assert status == 0
    said = re.search(r"no prior learns ([\d,]+) of ([\d,]+) objects: students would learn", err)
    assert said
    annotations = json.loads(load_split(project.paths, "train").annotations.read_text())
    objects = [one for one in annotations["annotations"] if not one["iscrowd"]]
    assert int(said[2].replace(",", "")) == 4 * len(objects)
    status, out, _ = lad("verify")
    assert status == 0
    assert f"note: {said[0]}" in out
    status, out, _ = lad("store", "info")
    assert f"note: {said[0]}" in out


def test_a_sound_store_says_no_such_thing(project, lad) -> None:
    for command in (["labels"], ["verify", "--no-teacher"], ["store", "info"]):
        status, out, err = lad(*command)
        assert status == 0
        assert "no prior learns" not in out + err


# Metrics ---------------------------------------------------------------------------------------


def test_sizes_without_objects_have_no_metric(project, lad) -> None:
    file = load_split(project.paths, "val").annotations
    content = json.loads(file.read_text())
    content["annotations"] = [one for one in content["annotations"] if one["area"] > 32**2]
    sizes = {"APm" if one["area"] <= 96**2 else "APl" for one in content["annotations"]}
    file.write_text(json.dumps(content))
    status, out, _ = lad("evaluate", "teacher")
    assert status == 0
    assert re.fullmatch(r"AP 0\.\d{3}  AP50 0\.\d{3}  AP75 0\.\d{3}\n", out)
    metrics = json.loads(project.paths.metrics("teacher").read_text())
    assert metrics.keys() == {"AP", "AP50", "AP75"} | sizes
    assert min(metrics.values()) >= 0

    content["annotations"] = []
    file.write_text(json.dumps(content))
    status, out, err = lad("evaluate", "teacher")
    assert status == 1
    assert re.search(r"val/annotations.json has no object to measure; run `lad data`", err)
    assert "-1" not in out


def test_a_model_that_detects_nothing_has_an_ap_of_0(project, lad) -> None:
    with_weights(project, lambda state: state["bbox_head.atss_cls.bias"].fill_(-100))
    status, out, _ = lad("evaluate", "teacher")
    assert status == 0
    assert last_line(out) == "AP 0.000  AP50 0.000  AP75 0.000"
    metrics = json.loads(project.paths.metrics("teacher").read_text())
    assert metrics == {"AP": 0, "AP50": 0, "AP75": 0}


# Large images ----------------------------------------------------------------------------------


def test_images_of_more_than_179_megapixels(tmp_path: Path) -> None:
    from pipeline.ingest.check import check_split

    width, height = 20_000, 9_000
    file, images = write_coco(
        tmp_path,
        images=[image(1), image(2, file_name="large.png", width=width, height=height)],
        annotations=[annotation(1, image_id=2)],
    )
    Image.fromarray(np.zeros((height, width), bool)).save(images / "large.png")
    split = check_split(file, images, "fail")
    assert split.annotations["images"][1]["width"] == width
