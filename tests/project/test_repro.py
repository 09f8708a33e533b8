"""What `dvc repro` runs after a change of code, data or settings; its `lad` does no work."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from dvc.repo import Repo

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

LAD = """#!/bin/sh
# Results that depend on the same inputs as those of the real commands.
set -e
echo "$*" >> calls
section() { sed -n "/^$1:/,/^[a-z]/p" params.yaml | grep -v "^[a-z]"; }
case "$1" in
data)
    for s in train val; do
        mkdir -p out/data/$s
        cp source/$s.json out/data/$s/annotations.json
        cp source/$s.json out/data/$s/split.json
        date +%N > out/data/$s/about.json
    done ;;
teacher)
    mkdir -p out/teacher
    { cat out/data/train/split.json; section teacher; } > out/teacher/weights.pth
    cp out/teacher/weights.pth out/teacher/config.py
    date +%N > out/teacher/training.json ;;
labels)
    mkdir -p out/labels.zarr
    { cat out/data/train/split.json out/teacher/weights.pth; section views; section labels; } > new
    mv new out/labels.zarr/x
    echo {} > out/labels.json ;;
verify) cksum < out/labels.zarr/x > out/verify.json ;;
student | online) mkdir -p out/students/$2; date +%N > out/students/$2/x ;;
colearn) for n in one two; do mkdir -p out/students/$2.$n; date +%N > out/students/$2.$n/x; done ;;
evaluate)
    mkdir -p out/metrics
    model=out/students/$2/x
    test "$2" != teacher || model=out/teacher/weights.pth
    cat out/data/val/split.json $model | cksum > out/metrics/$2.json ;;
compare) mkdir -p out/compare; touch out/compare/table.md ;;
esac
"""
CONFIG = "configs/paa_r18_quarter.py"


class Workspace:
    """A copy of the project in which DVC runs stubs, with a student of each kind."""

    students = ("lad", "solad")
    online = ("online_lad",)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("pipeline", "stages", "configs", "benchmarks", "studies"):
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        for name in ("dvc.yaml", ".dvcignore"):
            shutil.copy(ROOT / name, folder)
        (folder / "source").mkdir()
        for split in ("train", "val"):
            (folder / f"source/{split}.json").write_text(json.dumps({"annotations": [split]}))
        settings = yaml.safe_load((ROOT / "params.yaml").read_text())
        settings["data"] = {"source": "source"}
        settings["students"] = {n: {"config": CONFIG, "method": n} for n in self.students}
        settings["online"] = {"online_lad": {"config": CONFIG, "method": "lad"}}
        (folder / "params.yaml").write_text(yaml.safe_dump(settings))
        (folder / "bin").mkdir()
        (folder / "bin/lad").write_text(LAD)
        (folder / "bin/lad").chmod(0o755)
        Repo.init(str(folder), no_scm=True)

    def settings(self) -> dict[str, Any]:
        return yaml.safe_load((self.folder / "params.yaml").read_text())

    def repro(self, **changes: dict[str, Any]) -> set[str]:
        """Change settings; the commands that `dvc repro` then runs, without their options."""
        settings = self.settings()
        for section, values in changes.items():
            settings[section] |= values
        (self.folder / "params.yaml").write_text(yaml.safe_dump(settings))
        calls = self.folder / "calls"
        calls.write_text("")
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        with chdir(self.folder), mock.patch.dict(os.environ, PATH=path), Repo() as repo:
            repo.reproduce()
        lines = calls.read_text().splitlines()
        return {" ".join(word for word in line.split() if word[0] != "-") for line in lines}

    def append(self, file: str, text: str) -> "Workspace":
        """Write more at the end of a file."""
        with (self.folder / file).open("a") as stream:
            stream.write(text)
        return self

    def code_digest(self, *modules: str) -> str:
        """What an unfinished run is bound to."""
        program = (
            "import sys; from pipeline.project.code import code_digest; "
            "print(code_digest(*sys.argv[1:]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", program, *modules],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()


def trained(*names: str) -> set[str]:
    """What runs for students that are trained anew."""
    return {f"{work} {name}" for name in names for work in ("student", "evaluate")} | {"compare"}


def evaluated(*names: str) -> set[str]:
    return {f"evaluate {name}" for name in names} | {"compare"}


ONLINE = {"online online_lad", "evaluate online_lad", "compare"}
LEARNING = trained(*Workspace.students) | ONLINE


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One in which everything is up to date."""
    made = Workspace(tmp_path_factory.mktemp("workspace"))
    first = {"data", "teacher", "labels", "verify", "evaluate teacher"}
    assert made.repro() == first | LEARNING
    return made


FROM_LABELS = {"labels", "verify"}
FROM_TEACHER = {"teacher", "evaluate teacher", *FROM_LABELS, *LEARNING}
EDITS = {
    "the loss of solad": (["pipeline/methods/solad.py"], trained("solad")),
    # Whether labels are what they were is for `verify` to say.
    "the class that labels": (["pipeline/teacher_pass/teacher.py"], {"verify"} | ONLINE),
    "what writes rows of a store": (["pipeline/store/writer.py"], {"verify"} | LEARNING),
    # Trained again it is the same teacher, which took another time.
    "an allowed value of trainings": (
        ["pipeline/training/settings.py"],
        {"teacher", "evaluate teacher", *LEARNING},
    ),
    "the check of the data set, and a plot": (
        ["pipeline/ingest/check.py", "pipeline/comparison/plots.py"],
        {"data", "compare"},
    ),
    "what no stage uses": (
        [
            "benchmarks/steps.py",
            "studies/codings.py",
            "stages/params.py",
            "pipeline/inspection/estimate.py",
        ],
        set(),
    ),
}


@pytest.mark.parametrize(("files", "expected"), EDITS.values(), ids=EDITS)
def test_an_edit_runs_what_it_can_affect(workspace, files: list[str], expected: set[str]) -> None:
    for file in files:
        workspace.append(file, "\n# A comment.\n")
    assert workspace.repro() == expected


def test_a_new_method_runs_its_students(workspace) -> None:
    workspace.append("pipeline/methods/new.py", "METHOD = None\n")
    student = {"new": {"config": CONFIG, "method": "new"}}
    assert workspace.repro(students=student) == trained("new")


def test_a_validation_annotation_runs_evaluations(workspace) -> None:
    workspace.append("source/val.json", "\n")
    names = [*workspace.settings()["students"], *Workspace.online, "teacher"]
    assert workspace.repro() == {"data"} | evaluated(*names)


def test_another_batch_size_makes_no_labels(workspace) -> None:
    assert workspace.repro(teacher_pass={"batch_size": 3, "workers": 1}) == set()


def test_another_coding_makes_labels(workspace) -> None:
    assert workspace.repro(labels={"min_iou": 0.3}) >= {"labels", "verify"}


def test_another_view_plan_and_back_runs_what_it_must_once(workspace) -> None:
    before = workspace.settings()["views"]
    assert workspace.repro(views={"scales": [[96, 64]]}) >= FROM_LABELS | LEARNING
    assert workspace.repro(views=before) == set()


def test_a_data_set_that_lies_elsewhere_is_checked_and_nothing_follows(workspace) -> None:
    shutil.copytree(workspace.folder / "source", workspace.folder / "elsewhere")
    assert workspace.repro(data={"source": "elsewhere"}) == {"data"}
    assert workspace.repro(data={"source": "source"}) == set()


def test_another_training_annotation_runs_everything(workspace) -> None:
    workspace.append("source/train.json", "\n")
    assert workspace.repro() >= {"data"} | FROM_TEACHER


def test_another_view_plan_makes_labels(workspace) -> None:
    ran = workspace.repro(views={"flips": ["none"]})
    assert ran >= FROM_LABELS | LEARNING
    assert "data" not in ran


def test_another_student_setting_makes_no_labels(workspace) -> None:
    student = workspace.settings()["students"]["lad"] | {"training": {"epochs": 1}}
    assert workspace.repro(students={"lad": student}) == trained("lad")


def test_networks_that_learn_together_run_alone(workspace) -> None:
    configs = ["configs/paa_r18_third.py", "configs/paa_r18_cop.py"]
    networks = [{"name": n, "config": c} for n, c in zip(("one", "two"), configs, strict=True)]
    ran = workspace.repro(colearn={"pair": {"networks": networks}})
    everything = {"colearn pair"} | evaluated("pair.one", "pair.two")
    assert ran == everything
    assert workspace.append(configs[1], "# changed").repro() == everything


def test_a_changed_store_is_brought_back_before_a_student_trains(workspace) -> None:
    file = workspace.folder / "out/labels.zarr/x"
    whole = file.read_text()
    file.unlink()
    file.write_text("damage")
    assert workspace.repro() == set()
    assert file.read_text() == whole


def test_an_unfinished_run_is_bound_to_the_code_that_it_uses(workspace) -> None:
    """What `lad` itself compares, on the workspace's copy of the code."""
    student = ("pipeline.students.train", "pipeline.methods.lad")
    before = workspace.code_digest(*student)
    workspace.append("benchmarks/steps.py", "\nX = 1\n")
    workspace.append("pipeline/methods/solad.py", "\nX = 1\n")
    workspace.append("pipeline/teacher_pass/teacher.py", "\nX = 1\n")
    workspace.append("pipeline/training/run.py", "\n# A comment.\n")
    assert workspace.code_digest(*student) == before
    workspace.append("pipeline/training/run.py", "\nX = 1\n")
    assert workspace.code_digest(*student) != before
