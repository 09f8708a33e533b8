"""What `dvc repro` runs after a change, with a `lad` that does no work."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]

LAD = """#!/bin/sh
# Results that depend on the same inputs as those of the real commands.
set -e
echo "$*" >> calls
section() { sed -n "/^$1:/,/^[a-z]/p" params.yaml | grep -v "^[a-z]"; }
case "$1" in
data) mkdir -p out/data; section data > out/data/x ;;
teacher) mkdir -p out/teacher; { cat out/data/x; section teacher; } > out/teacher/x ;;
labels)
    mkdir -p out/labels.zarr
    { cat out/data/x out/teacher/x; section views; } > new
    cmp -s new out/labels.zarr/x || cp new out/labels.zarr/x
    test -f out/labels.json || echo {} > out/labels.json ;;
verify) cksum < out/labels.zarr/x > out/verify.json ;;
student) mkdir -p out/students/$2; date +%N > out/students/$2/x ;;
colearn) for n in one two; do mkdir -p out/students/$2.$n; date +%N > out/students/$2.$n/x; done ;;
evaluate) mkdir -p out/metrics; echo '{}' > out/metrics/$2.json ;;
compare) mkdir -p out/compare; touch out/compare/table.md ;;
esac
"""


class Workspace:
    """A copy of the project in which DVC runs stubs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("pipeline", "stages", "configs"):
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        shutil.copy(ROOT / "dvc.yaml", folder)
        settings = yaml.safe_load((ROOT / "params.yaml").read_text())
        settings["students"] = dict(list(settings["students"].items())[:2])
        (folder / "params.yaml").write_text(yaml.safe_dump(settings))
        (folder / "bin").mkdir()
        (folder / "bin/lad").write_text(LAD)
        (folder / "bin/lad").chmod(0o755)
        self.dvc("init", "--no-scm")
        self.dvc("config", "core.analytics", "false")
        self.students = list(self.settings()["students"])

    def settings(self) -> dict[str, Any]:
        return yaml.safe_load((self.folder / "params.yaml").read_text())

    def dvc(self, *arguments: str) -> None:
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments, "-q"],
            cwd=self.folder,
            env=os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def repro(self, **changes: dict[str, Any]) -> set[str]:
        """Change settings; the commands that `dvc repro` then runs, without their options."""
        settings = self.settings()
        for section, values in changes.items():
            settings[section] |= values
        (self.folder / "params.yaml").write_text(yaml.safe_dump(settings))
        calls = self.folder / "calls"
        calls.write_text("")
        self.dvc("repro")
        return {line.removesuffix(" --replace") for line in calls.read_text().splitlines()}

    def of_students(self) -> set[str]:
        """What runs for every student."""
        return {f"{work} {name}" for work in ("student", "evaluate") for name in self.students}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One in which everything is up to date."""
    made = Workspace(tmp_path_factory.mktemp("workspace"))
    all_ = {"data", "teacher", "labels", "verify", "evaluate teacher", "compare"}
    assert made.repro() == all_ | made.of_students()
    return made


def test_another_batch_size_makes_no_labels(workspace) -> None:
    """The command leaves a finished store alone (tests/teacher_pass/test_fingerprint.py), so nothing follows."""
    assert workspace.repro(labels={"batch_size": 3, "workers": 1}) == {"labels"}


def test_another_teacher_makes_labels(workspace) -> None:
    config = {"config": "configs/paa_r18_third.py"}
    follows = {"teacher", "evaluate teacher", "labels", "verify", "compare"}
    assert workspace.repro(teacher=config) == follows | workspace.of_students()


def test_other_data_make_labels(workspace) -> None:
    digits = workspace.settings()["data"]["digits"] | {"seed": 1}
    follows = {"data", "teacher", "evaluate teacher", "labels", "verify", "compare"}
    assert workspace.repro(data={"digits": digits}) == follows | workspace.of_students()


def test_another_view_plan_makes_labels(workspace) -> None:
    ran = workspace.repro(views={"flips": ["none"]})
    assert ran >= {"labels", "verify"} | {f"student {name}" for name in workspace.students}
    assert "data" not in ran


def test_another_student_setting_makes_no_labels(workspace) -> None:
    name = workspace.students[0]
    student = workspace.settings()["students"][name] | {"training": {"epochs": 1}}
    ran = workspace.repro(students={name: student})
    assert ran == {f"student {name}", f"evaluate {name}", "compare"}


def test_networks_that_learn_together_run_alone(workspace) -> None:
    configs = ["configs/paa_r18_third.py", "configs/paa_r18_quarter.py"]
    networks = [{"name": n, "config": c} for n, c in zip(("one", "two"), configs, strict=True)]
    ran = workspace.repro(colearn={"pair": {"networks": networks}})
    everything = {"colearn pair", "evaluate pair.one", "evaluate pair.two", "compare"}
    assert ran == everything
    config = workspace.folder / configs[1]
    config.write_text(config.read_text() + "# changed")
    assert workspace.repro() >= everything
    assert workspace.repro() == set()


def test_a_damaged_store_is_mended_before_a_student_trains(workspace) -> None:
    file = workspace.folder / "out/labels.zarr/x"
    file.write_text("damage")
    assert workspace.repro() == {"labels"}
    assert file.read_text() != "damage"
