"""Students under `torchrun`: two gloo processes on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.detector.checkpoint import read_weights
from pipeline.project.errors import UserError
from pipeline.training.distributed import part_of
from stages.cli import lad
from tests.conftest import ROOT

LOG_VIEWS = """
import os, sys
import torch
import pipeline.training.run
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

folder = sys.argv.pop(1)

@HOOKS.register_module()
class LogViews(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch, outputs):
        views = [sample.metainfo["view_index"] for sample in data_batch["data_samples"]]
        with open(f"{folder}/views_{os.environ['RANK']}", "a") as log:
            print(runner.epoch, *views, file=log)

    def after_train(self, runner):
        detector = runner.model.module.detector
        torch.save(detector.state_dict(), f"{folder}/state_{os.environ['RANK']}.pth")

runner = pipeline.training.run.Runner
pipeline.training.run.Runner = lambda **kw: runner(
    **(kw | {"custom_hooks": [*kw["custom_hooks"], dict(type="LogViews")]}))

import pipeline.students.train
save = pipeline.students.train.save_model
def save_model(*args):
    with open(f"{folder}/saved_{os.environ['RANK']}", "w"):
        save(*args)
pipeline.students.train.save_model = save_model

from stages.cli import main
main()
"""


def torchrun(folder: Path, *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
         "--standalone", *command],
        cwd=folder, capture_output=True, text=True, timeout=120,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def views(file: Path) -> dict[int, list[int]]:
    """By epoch, the views of a process."""
    found: dict[int, list[int]] = {}
    for line in file.read_text().splitlines():
        epoch, *shown = map(int, line.split())
        found.setdefault(epoch, []).extend(shown)
    return found


def test_two_processes_share_an_epoch(labelled, tmp_path) -> None:
    project = labelled.copy(tmp_path)
    script = tmp_path / "student.py"
    script.write_text(LOG_VIEWS)
    done = torchrun(tmp_path, str(script), str(tmp_path), "student", "lad")
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (views(tmp_path / f"views_{rank}") for rank in range(2))
    assert first.keys() == second.keys() == {0, 1}
    for epoch in first:
        images = [view // 4 for view in first[epoch] + second[epoch]]
        assert sorted(images) == list(range(24))
    # The batch of a step is shared out: 24 images are 3 steps of 8.
    record = json.loads((project.paths.model("lad") / "training.json").read_text())
    assert record["steps"] == 2 * 3
    states = [torch.load(tmp_path / f"state_{rank}.pth") for rank in range(2)]
    saved = read_weights(project.paths.model("lad") / "weights.pth")
    assert saved.keys() == states[0].keys() == states[1].keys()
    for name, weight in saved.items():
        assert torch.equal(states[0][name], states[1][name]), name
        assert torch.equal(states[0][name], weight), name
    assert (tmp_path / "saved_0").exists()
    assert not (tmp_path / "saved_1").exists()
    assert not project.paths.run("lad").exists()
    assert done.stdout.count("trained 6 steps") == 1


def test_torchrun_is_for_trainings(monkeypatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    commands = "`lad teacher`, `lad student`, `lad online`, `lad colearn`"
    with pytest.raises(UserError, match=f"torchrun is for {commands}; run `lad data` without"):
        lad.main(["data"], standalone_mode=False)


def test_a_batch_is_shared_out_equally() -> None:
    assert part_of(16, 1) == 16
    assert part_of(16, 4) == 4
    with pytest.raises(UserError, match="training.batch_size: 16 views .* among 3 processes"):
        part_of(16, 3)
