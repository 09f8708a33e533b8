"""`lad verify`: what is checked with and without a teacher, and what fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import zarr
from click.testing import CliRunner

from pipeline.project.digests import digest
from pipeline.project.errors import UserError
from pipeline.store.fingerprint import column_digests, metadata_digests
from pipeline.store.reader import LabelStore
from pipeline.store.schema import VIEW_COLUMNS
from pipeline.verification.verify import verify_labels
from stages.cli import lad
from tests.conftest import ROOT
from tests.teacher_pass.test_fingerprint import (
    change_a_box,
    change_weights,
    restamp,
)
from tests.unfinished import unfinish


@pytest.fixture
def project(labelled, tmp_path):
    return labelled.copy(tmp_path)


def structure(project) -> list[str]:
    """The problems that are found without a teacher."""
    return verify_labels(project.paths, None, with_teacher=False).problems


def sampled(project, sample: int | None = None) -> list[str]:
    """The problems that are found with the teacher."""
    return verify_labels(project.paths, sample, with_teacher=True).problems


def run(project, *arguments: str):
    """`lad verify` in a project."""
    places = ["--params", str(project.folder / "params.yaml"), "--out", str(project.paths.root)]
    return CliRunner().invoke(lad, [*places, "verify", *arguments])


def edit(project, array: str, view: int, change) -> str:
    """Write other values into an array of a view, with right checksums; names the place."""
    store = LabelStore(project.paths.labels)
    table = store.layout.table
    bucket = store.layout.buckets[table["bucket"][view]].name
    values = zarr.open_group(project.paths.labels, mode="r+")[f"buckets/{bucket}/{array}"]
    row = values[int(table["row"][view])]
    change(row)
    values[int(table["row"][view])] = row
    return store.place(array, view)


def test_a_good_store_passes(project) -> None:
    shown = run(project, "--sample", "all")
    assert shown.exit_code == 0, shown.output
    store = LabelStore(project.paths.labels)
    buckets = f"{len(store.layout.buckets)} buckets"
    assert f"read 576 rows of 96 views in 12 shards and {buckets}" in shown.output
    assert "recomputed 96 views" in shown.output
    priors = sum(bucket.priors * bucket.rows for bucket in store.layout.buckets)
    assert f"assigned_gt: 0 of {priors} entries differ" in shown.output
    report = json.loads((project.paths.root / "verify.json").read_text())
    assert report["passed"]
    assert report["problems"] == []
    assert report["fingerprint"] == digest(store.fingerprint)
    assert report["made_with"] == {name: version(name) for name in report["made_with"]}
    assert {"torch", "onedl-mmdetection", "numpy"} <= report["made_with"].keys()
    assert f"checked with torch {version('torch')}, " in shown.output
    assert "made with" not in shown.output
    assert report["compared"]["cls_scores"] == {"entries": priors * 10, "differ": 0}
    # Students depend on the file: the same store gives the same.
    before = (project.paths.root / "verify.json").read_bytes()
    assert run(project, "--sample", "all").exit_code == 0
    assert (project.paths.root / "verify.json").read_bytes() == before


def made_with_another_torch(project) -> None:
    """Have the store say so, and that other code made it."""
    restamp(project.paths.labels, "versions.torch", "1.0", "made_with")
    restamp(project.paths.labels, "code", "other", "made_with")


def test_a_store_that_others_made_is_judged_by_its_labels(project) -> None:
    made_with_another_torch(project)
    shown = run(project, "--sample", "all")
    assert shown.exit_code == 0, shown.output
    lines = shown.stdout.splitlines()
    assert f"checked with torch {version('torch')}, " in lines[0]
    assert lines[1].startswith("made with torch 1.0, torchvision ")
    assert "recomputed 96 views" in shown.output
    assert "is as it should be" in shown.output
    report = json.loads((project.paths.root / "verify.json").read_text())
    assert report["passed"]
    assert report["recomputed_views"] == 96
    assert report["made_with"]["torch"] == "1.0"

    place = edit(project, "assigned_gt", some_view(project), move_a_label)
    shown = run(project, "--sample", "all")
    assert shown.exit_code == 1
    assert "made with torch 1.0, " in shown.output
    report = json.loads((project.paths.root / "verify.json").read_text())
    assert not report["passed"]
    (problem,) = report["problems"]
    assert problem.startswith(f"{place}: 1 of ")


def test_a_sample_is_some_batches_and_always_the_same(project) -> None:
    assert "recomputed 12 views" in run(project, "--sample", "9").output
    before = (project.paths.root / "verify.json").read_bytes()
    run(project, "--sample", "9")
    assert (project.paths.root / "verify.json").read_bytes() == before
    assert run(project, "--sample", "few").exit_code == 2


def test_another_batch_size_in_the_settings_makes_no_difference(project) -> None:
    project.change(teacher_pass={"batch_size": 1})
    assert sampled(project, 20) == []


def test_without_a_teacher(project) -> None:
    shutil.rmtree(project.paths.teacher)
    shown = run(project, "--no-teacher")
    assert shown.exit_code == 0
    assert "nothing was recomputed" in shown.output
    shown = run(project)
    assert shown.exit_code == 1
    assert "teacher is missing; run `lad teacher`" in shown.output


def test_without_the_data_set(project) -> None:
    shutil.rmtree(project.paths.data)
    shown = run(project, "--no-teacher")
    assert shown.exit_code == 0
    assert "not compared with the data set" in shown.output


def test_without_a_store(project) -> None:
    shutil.rmtree(project.paths.labels)
    with pytest.raises(UserError, match="there is no label store at .*; run `lad labels`"):
        structure(project)


def some_view(project) -> int:
    """A view with positives and kept boxes, of an image whose first object is a crowd."""
    store = LabelStore(project.paths.labels)
    for view, image_id in enumerate(store.layout.table["image_id"]):
        soft = store.soft(view)
        if image_id % 4 == 0 and store.assigned(view).max() > 0 and soft.max_iou.any():
            assert soft.max_iou[0] == 0
            assert not soft.distances[0].any()
            return view
    raise AssertionError("no such view")


def set_to(place, value):
    def change(row: np.ndarray) -> None:
        row[place] = value

    return change


@pytest.mark.parametrize(
    ("array", "change", "what"),
    [
        ("assigned_gt", set_to(5, 99), "object 99 of an image with"),
        ("assigned_gt", set_to(5, 0), "object 0 is a crowd"),
        ("assigned_gt", set_to(5, -3), "it was never written"),
        ("cls_scores", set_to((3, 2), 255), "code 255, expected <= 63"),
        ("tail_mean", set_to(1, np.nan), "no means of probabilities"),
        ("tail_mean", set_to(1, -0.5), "no means of probabilities"),
        ("tail_scale", set_to(3, 20), "codes outside 96 to 160"),
        ("box_quality", set_to((0, 0), 13), "max_iou between 0 and min_iou"),
        ("box_quality", set_to((1, 0), 128), "quality that is not 0 where max_iou is 0"),
        ("distances", set_to((0, 1), -128), "codes under -127"),
        ("distances", set_to((0, 1), 3), "a box where max_iou is 0 and no class has min_score"),
    ],
)
def test_values_that_no_teacher_pass_writes(project, array: str, change, what: str) -> None:
    place = edit(project, array, some_view(project), change)
    problems = structure(project)
    assert any(problem.startswith(f"{place}: ") and what in problem for problem in problems)


def move_a_label(row: np.ndarray) -> None:
    row[np.flatnonzero(row >= 0)[0]] = -1


def lower_the_best_code(row: np.ndarray) -> None:
    row.flat[row.argmax()] -= 2


def lower_what_is_kept(row: np.ndarray) -> None:
    row[row > 30] -= 2  # 26 is the code of the threshold


def test_what_the_teacher_does_not_say(project) -> None:
    """Written with right checksums and in range: only the teacher knows."""
    changes = {
        "assigned_gt": move_a_label,
        "cls_scores": lower_the_best_code,
        "tail_mean": set_to(2, 0.004),
        "tail_scale": set_to(5, 150),
        "distances": lower_what_is_kept,
        "box_quality": lower_what_is_kept,
    }
    view = some_view(project)
    places = [edit(project, array, view, change) for array, change in changes.items()]
    assert structure(project) == []
    shown = run(project, "--sample", "all")
    assert shown.exit_code == 1
    assert "is as it should be" not in shown.output
    report = json.loads((project.paths.root / "verify.json").read_text())
    assert not report["passed"]
    assert report["problem_count"] == len(changes)
    for place, array, problem in zip(places, changes, report["problems"], strict=True):
        assert problem.startswith(f"{place}: ")
        differ = report["compared"][array]["differ"]
        # Means are compared under the scale that is stored: a wrong one moves them, too.
        assert differ == 1 if array in ("assigned_gt", "cls_scores", "tail_scale") else differ > 1


def test_another_teacher(project) -> None:
    change_weights(project)
    (problem,) = sampled(project)
    assert "does not fit this teacher" in problem
    assert "teacher.weights: expected " in problem


def test_another_data_set(project) -> None:
    change_a_box(project)
    problems = structure(project)
    assert any("data.annotations: expected" in problem for problem in problems)
    assert any("views/gt_digest: view 0 of image" in problem for problem in problems)


def test_fewer_images(project) -> None:
    content = json.loads((project.folder / "source/train.json").read_text())
    gone = content["images"].pop()["id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != gone]
    (project.folder / "source/train.json").write_text(json.dumps(content))
    project.change(data={"source": str(project.folder / "source")})
    project.check_data()
    assert "the data set has 92 views, the store 96" in structure(project)


@pytest.mark.parametrize(
    ("column", "value", "what"),
    [
        ("image_id", 1, "not every image has each of the 4 views once"),
        ("view", 3, "not every image has each of the 4 views once"),
        ("row", 0, "is of one view"),
    ],
)
def test_a_view_table_that_is_wrong(project, column: str, value: int, what: str) -> None:
    """Written so by a writer with a bug: all digests are right."""
    store = project.paths.labels
    group = zarr.open_group(store, mode="r+")
    group[f"views/{column}"][9] = value
    attributes = dict(group.attrs)
    del attributes["digest"]
    attributes["table"] = column_digests({n: group[f"views/{n}"][:] for n in VIEW_COLUMNS})
    attributes["metadata"] = metadata_digests(store)
    group.attrs.update(attributes | {"digest": digest(attributes)})
    problems = structure(project)
    assert any(what in problem for problem in problems)
    assert any(f"views/{column}: view " in problem for problem in problems)


def test_an_unfinished_store(project) -> None:
    begun = unfinish(project.paths.labels, 0, 2).path
    with pytest.raises(UserError, match="is not finished; `lad labels` continues it"):
        structure(project)
    begun.rename(project.paths.labels)
    (problem,) = structure(project)
    assert "lacks 2 of 12 shards; run `lad labels` to continue it" in problem


def test_damage_everywhere_is_counted_and_listed_in_part(project) -> None:
    for file in project.paths.labels.glob("buckets/*/*/c/**/0"):
        if file.is_file():
            file.write_bytes(b"damage")
    shown = run(project, "--no-teacher")
    assert shown.exit_code == 1
    assert "more" in shown.output
    assert "Traceback" not in shown.output
    report = json.loads((project.paths.root / "verify.json").read_text())
    assert len(report["problems"]) == 100
    assert report["problem_count"] > 100


def test_a_damaged_root(project) -> None:
    restamp(project.paths.labels, "numerics.device", "cuda")
    (problem,) = sampled(project)
    assert "numerics.device: expected cpu, found cuda" in problem
    (project.paths.labels / "zarr.json").write_text("{}")
    (problem,) = structure(project)
    assert "has format version None" in problem
    (project.paths.labels / "zarr.json").write_text("{")
    (problem,) = structure(project)
    assert "is damaged: zarr.json" in problem


def test_kills_and_damage_in_short() -> None:
    """`make torture` in little: both at once, as each uses one core."""
    tortures = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.torture", what, "--count", count, "--images", "7"],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for what, count in (("kills", "6"), ("flips", "60"))
    ]
    for torture in tortures:
        shown, errors = torture.communicate()
        assert torture.returncode == 0, shown + errors


LONG_COMMAND = """
import signal, time, click, stages.cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell in the background ignores it
@click.command()
def wait():
    print("waiting", flush=True)
    time.sleep(60)
stages.cli.LazyGroup.get_command = lambda *_: wait
stages.cli.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_ends_with_one_line(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LONG_COMMAND, "wait"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        command.stdout.readline()
        command.send_signal(number)
        assert command.communicate()[1].strip() == (
            f"Stopped by {number.name}; run it again to go on."
        )
        assert command.returncode == 128 + number


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is of Linux")
def test_a_stage_ends_with_the_dvc_that_started_it() -> None:
    starter = (
        "import os, subprocess, sys\n"
        "os.environ['DVC_STAGE'] = 'labels'\n"
        "child = subprocess.Popen([sys.executable, '-c', sys.argv[1], 'wait'],"
        " stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "child.wait()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", starter, LONG_COMMAND], cwd=ROOT, stdout=subprocess.PIPE
    ) as dvc:
        stage = int(dvc.stdout.readline())
        dvc.kill()
    # An orphan is reaped by init; where there is none it stays as a zombie.
    until = time.monotonic() + 10
    while time.monotonic() < until:
        status = Path(f"/proc/{stage}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] in "ZX":
            return
        time.sleep(0.02)
    os.kill(stage, signal.SIGKILL)
    pytest.fail("the stage outlived its dvc")
