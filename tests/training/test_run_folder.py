"""The folder of a training that runs: what is continued, begun anew, kept beside and removed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.hooks import Hook

import pipeline.project.code
from pipeline.data.dataset import CheckedSplit
from pipeline.detector.checkpoint import read_weights
from pipeline.project.digests import differences
from pipeline.project.errors import UserError
from pipeline.training.run import TrainingRun
from pipeline.training.run_folder import (
    discard_old_run,
    discard_run,
    has_checkpoint,
    start_or_continue,
)
from pipeline.training.settings import Training
from pipeline.views.plan import FixedPlan, View
from tests.conftest import ROOT, with_hook

A = {"processes": 1, "code": "c", "training": {"lr": 0.1, "seed": 0, "epochs": 3, "amp": False}}
B = A | {"training": A["training"] | {"lr": 0.2}}
C = A | {"training": A["training"] | {"seed": 7}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs/lad"


@pytest.fixture
def old(folder: Path) -> Path:
    return folder.with_name("lad.old")


def save_checkpoint(folder: Path, name: str) -> None:
    """What mmengine leaves in the folder."""
    (folder / name).write_text("weights")
    (folder / "last_checkpoint").write_text(str(folder / name))


def files(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in sorted(folder.iterdir())}


def notes(capsys: pytest.CaptureFixture) -> list[str]:
    """What was said since the last time, on the standard error alone."""
    shown = capsys.readouterr()
    assert not shown.out
    return shown.err.splitlines()


def test_a_run_begins_with_its_record(folder: Path, old: Path, capsys) -> None:
    start_or_continue(folder, A)
    assert files(folder).keys() == {"run.json"}
    assert json.loads((folder / "run.json").read_text()) == A
    assert not has_checkpoint(folder)
    assert not old.exists()
    assert not notes(capsys)


def test_what_a_killed_run_of_no_record_left_is_removed(folder: Path, old: Path, capsys) -> None:
    folder.mkdir(parents=True)
    (folder / "20260101_000000").mkdir()
    start_or_continue(folder, A)
    assert files(folder).keys() == {"run.json"}
    assert not old.exists()
    assert not notes(capsys)


def test_the_same_record_is_continued(folder: Path, old: Path, capsys) -> None:
    # Tuples and paths are what JSON makes of them.
    record = A | {"views": ({"scale": (256, 192)},), "file": Path("a/weights.pth")}
    start_or_continue(folder, record)
    save_checkpoint(folder, "epoch_1.pth")
    before = files(folder)
    start_or_continue(folder, record)
    assert files(folder) == before
    assert has_checkpoint(folder)
    assert not old.exists()
    assert not notes(capsys)


def begun(folder: Path, record: dict[str, Any]) -> dict[str, str]:
    """A run with a checkpoint; its files."""
    start_or_continue(folder, record)
    save_checkpoint(folder, "epoch_1.pth")
    return files(folder)


def test_another_record_begins_anew_and_says_what_changed(folder: Path, old: Path, capsys) -> None:
    before = begun(folder, A)
    start_or_continue(folder, B)
    assert notes(capsys) == [
        f"note: the training in {folder} begins anew, as it was begun with others of these: "
        f"training.lr: expected 0.2, found 0.1; the old run stays in {old} until the new one has "
        "a checkpoint"
    ]
    assert files(folder).keys() == {"run.json"}
    assert json.loads((folder / "run.json").read_text()) == B
    assert files(old) == before


def test_what_changed_is_one_line(folder: Path, capsys) -> None:
    begun(folder, A)
    start_or_continue(folder, {"training": {"lr": 0.2, "seed": 1}, "code": "d"})
    (line,) = notes(capsys)
    assert (
        "of these: code: expected d, found c; processes: expected nothing, found 1; "
        "training.amp: expected nothing, found False; and 3 more; the old run stays" in line
    )


def test_a_change_that_is_undone_goes_on_with_the_old_run(folder: Path, old: Path, capsys) -> None:
    before = begun(folder, A)
    start_or_continue(folder, B)
    start_or_continue(folder, B)  # of the new one nothing is saved yet
    assert files(old) == before
    notes(capsys)
    start_or_continue(folder, A)
    assert files(folder) == before
    assert not old.exists()
    assert notes(capsys) == [
        f"note: the training in {folder} goes on where it was before the last change"
    ]


def test_the_old_run_outlives_changes_that_came_to_no_checkpoint(
    folder: Path, old: Path, capsys
) -> None:
    before = begun(folder, A)
    start_or_continue(folder, B)
    notes(capsys)
    start_or_continue(folder, C)
    assert not notes(capsys)  # B had come to nothing, so nothing is lost
    assert json.loads((folder / "run.json").read_text()) == C
    assert files(old) == before
    start_or_continue(folder, A)
    assert files(folder) == before


def test_the_last_run_with_a_checkpoint_stays(folder: Path, old: Path, capsys) -> None:
    begun(folder, A)
    start_or_continue(folder, B)
    save_checkpoint(folder, "epoch_2.pth")
    before = files(folder)
    notes(capsys)
    start_or_continue(folder, C)
    assert files(old) == before
    assert "training.seed: expected 7, found 0" in notes(capsys)[0]


def test_a_broken_record_begins_anew(folder: Path, old: Path, capsys) -> None:
    begun(folder, A)
    (folder / "run.json").write_text('{"processes": 1, "cod')
    start_or_continue(folder, A)
    assert "begins anew" in notes(capsys)[0]
    assert (old / "epoch_1.pth").exists()
    assert not has_checkpoint(folder)


def test_runs_are_discarded(folder: Path, old: Path) -> None:
    begun(folder, A)
    start_or_continue(folder, B)
    discard_old_run(folder)
    assert folder.exists()
    assert not old.exists()
    save_checkpoint(folder, "epoch_1.pth")
    start_or_continue(folder, A)
    assert old.exists()
    discard_run(folder)
    assert not any(folder.parent.iterdir())


# What decides a result -------------------------------------------------------------------------


@pytest.fixture
def run(folder: Path) -> TrainingRun:
    return TrainingRun(
        name="lad",
        model=ConfigDict(type="PAA", backbone=dict(depth=18)),
        training=Training(),
        plan=FixedPlan((View((256, 192), False),)),
        split=CheckedSplit(("one", "two"), Path("a.json"), Path("images"), "12", "34"),
        folder=folder,
        code=("pipeline.students.train", "pipeline.methods.lad"),
        inputs={"teacher": "56"},
    )


def test_what_can_not_change_a_result_does_not_count(run: TrainingRun) -> None:
    split = replace(run.split, annotations=Path("b.json"), images_folder=Path("elsewhere"))
    moved = replace(
        run,
        name="other",
        folder=Path("elsewhere"),
        split=split,
        training=Training(workers=7, checkpoint_every=5),
    )
    assert moved.decides_result(1) == run.decides_result(1)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": ConfigDict(type="PAA", backbone=dict(depth=50))}, "model.backbone.depth"),
        ({"training": Training(lr=0.5)}, "training.lr"),
        ({"training": Training(channels_last=True)}, "training.channels_last"),
        ({"plan": FixedPlan((View((256, 192), True),))}, "views"),
        ({"inputs": {"teacher": "78"}}, "inputs.teacher"),
        ({"code": ("pipeline.online.train", "pipeline.methods.lad")}, "code"),
        ({"code": ("pipeline.students.train", "pipeline.methods.solad")}, "code"),
        ({"split": CheckedSplit(("one",), Path(), Path(), "12", "34")}, "classes"),
        ({"split": CheckedSplit(("one", "two"), Path(), Path(), "0", "34")}, "annotations"),
        ({"split": CheckedSplit(("one", "two"), Path(), Path(), "12", "0")}, "images"),
    ],
)
def test_what_can_change_a_result_counts(run: TrainingRun, changes: dict, field: str) -> None:
    (line,) = differences(replace(run, **changes).decides_result(1), run.decides_result(1))
    assert line.startswith(f"{field}: expected ")


def test_the_number_of_processes_counts(run: TrainingRun) -> None:
    assert differences(run.decides_result(2), run.decides_result(1)) == [
        "processes: expected 2, found 1"
    ]


def test_a_comment_begins_nothing_anew_and_code_does(
    run: TrainingRun, folder: Path, old: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    library = tmp_path / "library"
    shutil.copytree(ROOT / "pipeline", library / "pipeline")
    monkeypatch.setattr(pipeline.project.code, "ROOT", library)
    before = begun(folder, run.decides_result(1))
    for file, begin in (
        ("training/optimiser.py", "milestones = sorted("),
        ("students/train.py", "run = TrainingRun("),
        ("methods/lad.py", "METHOD = "),
    ):
        file = library / "pipeline" / file
        lines = file.read_text().splitlines()
        (place,) = (n for n, line in enumerate(lines) if line.strip().startswith(begin))
        lines[place] += "  # for a good reason"
        file.write_text("\n".join([*lines, "# and nothing else", ""]))
        text = file.read_text().replace('"""', '"""Once more: ', 1)
        file.write_text(text)
        start_or_continue(folder, run.decides_result(1))
        assert files(folder) == before
    assert not old.exists()
    assert not notes(capsys)
    file = library / "pipeline/training/optimiser.py"
    file.write_text(file.read_text().replace("start_factor=1e-3", "start_factor=1e-2"))
    start_or_continue(folder, run.decides_result(1))
    assert "these: code: expected " in notes(capsys)[0]
    assert files(old) == before


# Real trainings --------------------------------------------------------------------------------

EPOCH = 3
"""Steps: 24 images in batches of 8."""


@pytest.fixture
def project(labelled, tmp_path: Path):
    return labelled.copy(tmp_path / "project")


def weights(project) -> dict[str, torch.Tensor]:
    return read_weights(project.paths.model("lad") / "weights.pth")


def assert_equal_weights(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def train(project, stop_after: int | None = None) -> list[tuple[int, bool]]:
    """Train; for each step that it took its number, and whether the old run was there.

    Args:
        project: to train in.
        stop_after: the step in which the training is interrupted.
    """
    old = project.paths.run("lad.old")
    steps = []

    class Watch(Hook):
        def before_train_iter(self, runner, *_, **__) -> None:
            steps.append((runner.iter, old.exists()))

        def after_train_iter(self, runner, *_, **__) -> None:
            if runner.iter + 1 == stop_after:
                raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        with_hook(patch, Watch)
        if stop_after is None:
            project.train("lad")
        else:
            with pytest.raises(KeyboardInterrupt):
                project.train("lad")
    return steps


def test_a_training_with_other_settings_begins_anew(project, labelled, tmp_path, capsys) -> None:
    train(project, stop_after=EPOCH + 1)
    folder, old = project.paths.run("lad"), project.paths.run("lad.old")
    assert has_checkpoint(folder)
    project.change(training={"lr": 0.002})
    capsys.readouterr()
    steps = train(project)
    (line,) = (one for one in capsys.readouterr().err.splitlines() if one.startswith("note: "))
    assert "begins anew" in line
    assert "these: training.lr: expected 0.002, found 0.003; the old run stays in " in line
    # From the first step on; the old run is there until the first epoch is saved.
    assert steps == [(step, step < EPOCH) for step in range(2 * EPOCH)]
    assert not folder.exists()
    assert not old.exists()
    fresh = labelled.copy(tmp_path / "fresh").change(training={"lr": 0.002})
    fresh.train("lad")
    assert_equal_weights(weights(project), weights(fresh))


def test_a_change_that_is_undone_costs_no_step(project, labelled, tmp_path, capsys) -> None:
    train(project, stop_after=EPOCH + 1)
    project.change(training={"lr": 0.002})
    assert train(project, stop_after=2) == [(0, True), (1, True)]
    project.change(training={"lr": 0.003})
    capsys.readouterr()
    assert train(project) == [(step, False) for step in range(EPOCH, 2 * EPOCH)]
    folder = project.paths.run("lad")
    assert (
        f"note: the training in {folder} goes on where it was before the last change"
        in capsys.readouterr().err.splitlines()
    )
    assert not folder.exists()
    fresh = labelled.copy(tmp_path / "fresh")
    fresh.train("lad")
    assert_equal_weights(weights(project), weights(fresh))


def losses(project) -> list[float]:
    return json.loads((project.paths.model("lad") / "training.json").read_text())["curves"]["loss"]


def test_a_copied_project_goes_on_from_its_own_checkpoint(project, tmp_path: Path) -> None:
    """mmengine writes down where a checkpoint is by its full path."""
    train(project, stop_after=EPOCH + 1)
    copy = project.copy(tmp_path / "copy")
    train(project)
    # The first project's checkpoints are gone now: were they there, they would be another's.
    assert not project.paths.run("lad").exists()
    assert [step for step, _ in train(copy)] == list(range(EPOCH, 2 * EPOCH))
    assert_equal_weights(weights(copy), weights(project))
    assert losses(copy) == losses(project)


@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    project, labelled, tmp_path: Path, damage: str, capsys
) -> None:
    project.change(training={"epochs": 3})
    train(project, stop_after=2 * EPOCH + 1)
    last = project.paths.run("lad") / "epoch_2.pth"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.unlink()
    if damage != "gone":
        last.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    capsys.readouterr()
    assert [step for step, _ in train(project)] == list(range(EPOCH, 3 * EPOCH))
    assert "epoch_2.pth is damaged or gone: the training goes on from epoch_1.pth" in (
        capsys.readouterr().err
    )
    whole = labelled.copy(tmp_path / "whole").change(training={"epochs": 3})
    train(whole)
    assert_equal_weights(weights(project), weights(whole))


def test_a_checkpoint_that_was_being_written_is_left_aside(project, capsys) -> None:
    """A kill can leave part of one that is not recorded yet; the last recorded one is whole."""
    train(project, stop_after=EPOCH + 1)
    folder = project.paths.run("lad")
    (folder / "epoch_2.pth").write_bytes((folder / "epoch_1.pth").read_bytes()[:999])
    capsys.readouterr()
    assert [step for step, _ in train(project)] == list(range(EPOCH, 2 * EPOCH))
    assert "damaged" not in capsys.readouterr().err


def test_no_checkpoint_that_is_whole_names_the_folder(project) -> None:
    train(project, stop_after=EPOCH + 1)
    folder = project.paths.run("lad")
    (folder / "epoch_1.pth").write_bytes(b"")
    with pytest.raises(UserError, match=rf"no checkpoint .* is whole .*remove {folder} to train"):
        project.train("lad")
    assert (folder / "last_checkpoint").is_file()
