"""The command line: what a user sees who makes a mistake, stage by stage."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import stages.cli


def run(project, monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    """Exit status and error output of `lad ...` in the project's folder."""
    monkeypatch.chdir(project.folder)
    monkeypatch.setattr(sys, "argv", ["lad", *arguments])
    with pytest.raises(SystemExit) as exit_:
        stages.cli.main()
    return exit_.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("remove", "arguments", "message"),
    [
        ("params.yaml", ["data"], "no params.yaml here"),
        ("source", ["data"], "source"),
        ("out/data", ["teacher"], "not checked yet; run `lad data`"),
        ("out/data", ["labels"], "not checked yet; run `lad data`"),
        ("out/teacher", ["labels"], "teacher is missing; run `lad teacher`"),
        ("out/labels.zarr", ["student", "lad"], "no label store .* run `lad labels`"),
        (None, ["student", "ladd"], "no 'ladd' in the section students .*did you mean 'lad'"),
        (None, ["online", "lad"], "no 'lad' in the section online .*there are: none"),
        (None, ["colearn", "lad"], "no 'lad' in the section colearn .*there are: none"),
        (None, ["evaluate", "lad"], "no model 'lad'; there are: teacher; `lad student lad`"),
        (None, ["compare"], "training.json is missing; run `lad student"),
    ],
)
def test_a_mistake_is_one_message(
    labelled, tmp_path, monkeypatch, capsys, remove, arguments, message
) -> None:
    project = labelled.copy(tmp_path)
    project.change(data={"source": "source"})
    if remove:
        gone = project.folder / remove
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    status, shown = run(project, monkeypatch, capsys, *arguments)
    assert status == 1
    assert re.search(f"Error: .*{message}", shown, re.DOTALL)
    assert "Traceback" not in shown


def test_nothing_stands_beside_the_message(tmp_path) -> None:
    """Neither what mmdet prints when it is imported nor its warnings."""
    done = subprocess.run(
        [sys.executable, "-m", "stages.cli", "--params", tmp_path / "no.yaml", "labels"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch("Error: no .*no.yaml here.*\n", done.stderr)


def test_help_is_quick_and_names_every_stage() -> None:
    started = time.perf_counter()
    shown = subprocess.run(
        [sys.executable, "-m", "stages.cli", "--help"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    ).stdout
    assert all(name in shown for name in stages.cli.COMMANDS)
    assert time.perf_counter() - started < 3  # mmdet alone takes longer


def test_every_command_has_its_stage_file() -> None:
    folder = Path(stages.cli.__file__).parent
    files = {file.stem for file in folder.glob("*.py")} - {"__init__", "cli", "params"}
    assert files == set(stages.cli.COMMANDS)
