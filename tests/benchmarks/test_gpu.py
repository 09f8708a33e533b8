"""`make gpu`, small and on this machine's CPU: every part runs and says what it should."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest

import benchmarks.gpu.__main__ as gpu
from benchmarks.gpu.parts import PARTS
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

EXPECTED = {
    "tests": ["skipped"],
    "stages": ["lad student lad_quarter", "metrics/lad_quarter.json"],
    "labels": ["0 otherwise", "entries of the store | ", "of this device against a CPU's"],
    "passes": ["bf16, channels_last | ", "- assignment and coding: "],
    "steps": ["online LAD (mmdet)", "AMP", "cached solad | "],
    "assignment": ["8 views at once", "peak memory, cached lad | "],
}


def test_the_parts_take_eight_minutes_at_most() -> None:
    assert PARTS.keys() == EXPECTED.keys()
    assert sum(PARTS.values()) <= 480


@pytest.mark.parametrize("part", PARTS)
def test_a_part_runs_small_on_a_cpu(part: str, tmp_path) -> None:
    call = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--quick",
        f"--only={part}",
        f"--out={tmp_path}",
    ]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert not done.returncode, done.stdout + done.stderr
    content = json.loads((tmp_path / "gpu.json").read_text())
    assert content["quick"]
    (found,) = content["parts"]
    assert found["part"] == part
    assert not found["failure"]
    if part == "assignment":
        peaks = found["figures"][-1]["details"]["bytes"]
        assert peaks["cached lad"] < peaks["online LAD (mmdet)"]
    text = (tmp_path / "gpu.md").read_text()
    for expected in EXPECTED[part]:
        assert expected in text
        assert expected in done.stdout


def test_a_part_that_ends_early_is_said_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "PARTS", {"missing": 60, "absent": 60})
    with pytest.raises(gpu.UserError, match="not all is well: missing, absent"):
        gpu.command.main([f"--out={tmp_path}", "--quick"], standalone_mode=False)
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert [one["failure"] for one in parts] == ["ended with exit status 1"] * 2
    assert "**absent: ended with exit status 1**" in capsys.readouterr().out


def test_a_part_is_stopped_with_all_that_it_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "PARTS", {"stages": 10})
    sessions: list[int] = []
    popen = subprocess.Popen

    def start(*args, **kwargs):
        process = popen(*args, **kwargs)
        sessions.append(process.pid)
        return process

    monkeypatch.setattr("benchmarks.gpu.__main__.subprocess.Popen", start)
    record = gpu._run_part("stages", quick=False)
    assert record.failure == "stopped after its 10 s"
    assert len(sessions) == 1
    time.sleep(1)
    assert not [one for one in psutil.process_iter() if _runs_in(sessions[0], one)]


def _runs_in(session: int, process: psutil.Process) -> bool:
    try:
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def test_an_unknown_part_is_named(tmp_path) -> None:
    with pytest.raises(gpu.UserError, match="no part 'step' .did you mean 'steps'"):
        gpu.command.main(["--only=step", f"--out={tmp_path}"], standalone_mode=False)
