"""The labels are paid for once: a small real pipeline, real DVC, and a remote in a folder."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.store.reader import LabelStore
from tests.conftest import ROOT
from tests.forked_lad import ForkedLad, forked_lad

pytestmark = pytest.mark.slow

PAA = "configs/paa_r18_quarter.py"
TRAINING = {"epochs": 1, "batch_size": 4, "workers": 0, "warmup_steps": 0}
SETTINGS: dict[str, Any] = {
    "data": {
        "source": "pipeline/ingest/digits.py",
        "digits": {"train_images": 12, "val_images": 4, "sizes": [[96, 64], [64, 96]]},
    },
    "views": {"scales": [[96, 64]], "flips": ["none", "horizontal"]},
    "teacher": {"config": PAA, "checkpoint": None, "training": TRAINING},
    "labels": {"soft": True},
    "teacher_pass": {"batch_size": 4, "workers": 0},
    "training": TRAINING,
    "students": {"lad": {"config": PAA, "method": "lad"}},
    "online": {},
    "colearn": {},
    "evaluation": {"scale": [96, 64], "workers": 0},
}
VIEWS = 24
FORBIDDEN = {"data", "teacher", "labels", "verify"}


class Clone:
    """A git repository with the project, in which `lad` and `dvc` run."""

    def __init__(self, folder: Path, lad: ForkedLad) -> None:
        self.folder = folder
        self.lad = lad
        self.environment = os.environ | {
            "PATH": os.pathsep.join(
                [str(lad.folder), str(Path(sys.executable).parent), os.environ["PATH"]]
            ),
            "DVC_NO_ANALYTICS": "1",
            "PYTHONPATH": str(ROOT),
            **{f"GIT_{who}_{what}": "x@y.z" for who in ("AUTHOR", "COMMITTER")
               for what in ("NAME", "EMAIL")},
        }  # fmt: skip

    def run(self, *command: str, status: int = 0) -> str:
        """What a command prints."""
        program = shutil.which(command[0], path=self.environment["PATH"]) or command[0]
        done = subprocess.run(
            [program, *command[1:]],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        said = done.stdout + done.stderr
        assert done.returncode == status, said
        return said

    def dvc(self, *arguments: str) -> list[str]:
        """Run a command of DVC; the commands of `lad` that it ran."""
        self.lad.reset()
        self.run("dvc", *arguments)
        return self.lad.commands()

    def change(self, **sections: Any) -> None:
        """Override settings, section by section."""
        file = self.folder / "params.yaml"
        settings = yaml.safe_load(file.read_text())
        for name, section in sections.items():
            settings[name] |= section
        file.write_text(yaml.safe_dump(settings))

    def clone(self, folder: Path) -> "Clone":
        self.run("git", "clone", "-q", str(self.folder), str(folder))
        return Clone(folder, self.lad)

    @property
    def store(self) -> Path:
        return self.folder / "out/labels.zarr"


def contents(folder: Path) -> dict[str, str]:
    """md5 of every file by its place."""
    return {
        file.relative_to(folder).as_posix(): hashlib.md5(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def trained(*names: str) -> list[str]:
    return ["compare", *(f"evaluate {n}" for n in sorted(names)),
            *(f"student {n}" for n in sorted(names))]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """The repository of somebody who has run all of it, and pushed it to a remote."""
    base = tmp_path_factory.mktemp("team")
    with forked_lad(base / "bin") as lad:
        yield run_all(base, lad)


def run_all(base: Path, lad: ForkedLad) -> Clone:
    folder = base / "first"
    folder.mkdir()
    made = Clone(folder, lad)
    for name in ("pipeline", "stages", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/.gitignore", ".dvc/config"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    (folder / "params.yaml").write_text(yaml.safe_dump(SETTINGS))
    made.run("git", "init", "-q")
    made.run("dvc", "remote", "add", "--default", "folder", str(base / "remote"))
    ran = made.dvc("repro")
    assert ran == sorted(["data", "teacher", "labels", "verify", *trained("lad"),
                          "evaluate teacher"])  # fmt: skip
    assert lad.views_shown() == 2 * VIEWS  # the pass, and what `verify` recomputes
    made.run("git", "add", ".")
    made.run("git", "commit", "-qm", "all of it")
    made.run("dvc", "push", "--run-cache")
    return made


@pytest.fixture
def clone(made: Clone, tmp_path: Path) -> Clone:
    """A fresh clone with what the remote has."""
    fresh = made.clone(tmp_path / "clone")
    fresh.run("dvc", "pull", "--run-cache")
    return fresh


def test_a_clone_runs_nothing_and_trains_a_new_student_alone(clone: Clone, made: Clone) -> None:
    assert clone.dvc("repro") == []
    assert contents(clone.store) == contents(made.store)
    clone.change(students={"bckd": {"config": "configs/gfl_r18_quarter.py", "method": "bckd"}})
    assert clone.dvc("repro") == trained("bckd")
    assert clone.lad.views_shown() == 0


def train_the_same(fresh: Clone, made: Clone) -> None:
    """Train a student from the store, without asking the teacher."""
    fresh.lad.reset()
    fresh.run("lad", "student", "lad")
    assert fresh.lad.views_shown() == 0
    name = "out/students/lad/weights.pth"
    assert (fresh.folder / name).read_bytes() == (made.folder / name).read_bytes()


def test_a_machine_without_the_teacher_trains_from_the_store(made: Clone, tmp_path: Path) -> None:
    fresh = made.clone(tmp_path / "clone")
    fresh.run("dvc", "pull", "out/labels.zarr", "out/data/train")
    assert not (fresh.folder / "out/teacher").exists()
    train_the_same(fresh, made)


def test_a_store_of_another_repository_is_imported(made: Clone, tmp_path: Path) -> None:
    fresh = made.clone(tmp_path / "clone")
    pipeline = yaml.safe_load((fresh.folder / "dvc.yaml").read_text())
    del pipeline["stages"]["labels"]
    (fresh.folder / "dvc.yaml").write_text(yaml.safe_dump(pipeline))
    (fresh.folder / "out").mkdir()
    fresh.run("dvc", "import", str(made.folder), "out/labels.zarr", "-o", "out/labels.zarr")
    fresh.run("git", "add", "out/labels.zarr.dvc")
    fresh.run("dvc", "pull", "out/data/train")
    train_the_same(fresh, made)


def weights_of(clone: Clone, revision: str) -> str:
    """md5 of the weights of the student `lad` in an experiment."""
    lock = yaml.safe_load(clone.run("git", "show", f"{revision}:dvc.lock"))
    (out,) = lock["stages"]["student@lad"]["outs"]
    cache = clone.folder / ".dvc/cache/files/md5"
    files = json.loads((cache / out["md5"][:2] / out["md5"][2:]).read_text())
    return next(file["md5"] for file in files if file["relpath"] == "weights.pth")


def test_experiments_share_the_labels(clone: Clone) -> None:
    """Two in folders of their own, and a queue of three for two workers."""
    rates = [0.002, 0.003, 0.004, 0.005, 0.006]
    settings = [f"+students.lad.training.lr={rate}" for rate in rates]
    clone.lad.reset()
    for setting in settings[:2]:
        clone.run("dvc", "exp", "run", "--temp", "-S", setting)
    for setting in settings[2:]:
        clone.run("dvc", "exp", "run", "--queue", "-S", setting)
    clone.run("dvc", "queue", "start", "-j", "2")
    waited = time.monotonic()
    while "Running" in (status := clone.run("dvc", "queue", "status")) or "Queued" in status:
        assert time.monotonic() - waited < 300, status
        time.sleep(1)
    assert status.count("Success") == 3, status
    assert clone.lad.commands() == sorted(5 * trained("lad"))
    assert clone.lad.views_shown() == 0
    shown = json.loads(clone.run("dvc", "exp", "show", "--json", "--no-pager"))
    found: dict[float, str] = {}
    for experiment in shown[1]["experiments"]:
        (revision,) = experiment["revs"]
        params = revision["data"]["params"]["params.yaml"]["data"]
        found[params["students"]["lad"]["training"]["lr"]] = weights_of(clone, revision["rev"])
    assert sorted(found) == rates
    for rate, weights in found.items():
        clone.change(students={"lad": SETTINGS["students"]["lad"] | {"training": {"lr": rate}}})
        clone.run("lad", "student", "lad")
        plain = (clone.folder / "out/students/lad/weights.pth").read_bytes()
        assert hashlib.md5(plain).hexdigest() == weights


def test_another_view_plan_and_back_is_one_pass(clone: Clone) -> None:
    before = contents(clone.folder / "out")
    clone.change(views={"flips": ["none"]})
    ran = clone.dvc("repro")
    assert {"labels", "verify", "student lad"} <= set(ran)
    assert clone.lad.views_shown() == 2 * VIEWS / 2
    assert len(LabelStore(clone.store)) == VIEWS / 2
    clone.change(views={"flips": ["none", "horizontal"]})
    assert clone.dvc("repro") == []
    after = contents(clone.folder / "out")
    assert {n: v for n, v in after.items() if n in before} == before


def test_what_can_not_change_labels_makes_none(clone: Clone) -> None:
    for file in ("pipeline/store/writer.py", "pipeline/teacher_pass/teacher.py"):
        with (clone.folder / file).open("a") as stream:
            stream.write("\n# A comment.\n")
    clone.change(teacher_pass={"batch_size": 3})
    ran = clone.dvc("repro", "verify")
    assert ran == ["verify"]
    with (clone.folder / "pipeline/store/fingerprint.py").open("a") as stream:
        stream.write("\nLABELS_VERSION = 99\n")
    clone.run("dvc", "status", "labels")
    assert "LABELS_VERSION" in clone.run("dvc", "status", "labels")


def test_dvc_killed_before_it_caches_a_store_costs_no_pass(clone: Clone) -> None:
    """It removes the store then, as `--force` has it do."""
    made = contents(clone.store)
    assert clone.dvc("repro", "--force", "--single-item", "labels") == ["labels"]
    assert clone.lad.views_shown() == VIEWS
    assert (clone.folder / "out/labels.zarr.partial").is_dir()
    assert clone.dvc("repro", "--force", "--single-item", "labels") == ["labels"]
    assert clone.lad.views_shown() == 0
    assert contents(clone.store) == made
    clone.run("lad", "verify")
    assert {file.name for file in (clone.folder / "out").glob("labels*")} == {
        "labels.zarr", "labels.json", "labels.zarr.lock"}  # fmt: skip


def with_damage(file: Path) -> None:
    """Flip a bit of a file that DVC has made read-only."""
    file.resolve().chmod(0o644)
    data = bytearray(file.read_bytes())
    data[10] ^= 4
    with file.open("r+b") as stream:
        stream.write(data)


@pytest.mark.parametrize("kind", ["hardlink", "symlink"])
def test_a_linked_store_is_read_verified_and_replaced(
    made: Clone, tmp_path: Path, kind: str
) -> None:
    clone = made.clone(tmp_path / "clone")
    clone.run("dvc", "config", "cache.type", kind)
    clone.run("dvc", "pull")
    files = [file for file in clone.store.rglob("*") if file.is_file()]
    assert all(f.is_symlink() if kind == "symlink" else f.stat().st_nlink > 1 for f in files)
    cache = clone.folder / ".dvc/cache/files"
    cached = contents(cache)
    clone.lad.reset()
    clone.change(training={"lr": 0.002})
    clone.run("lad", "student", "lad")
    assert clone.lad.views_shown() == 0
    assert "is as it should be" in clone.run("lad", "verify")
    name = next(file for file in files if "assigned_gt" in file.parts and "c" in file.parts)
    with_damage(name)
    said = clone.run("lad", "verify", status=1)
    remedy = next(line for line in said.splitlines() if "-samefile" in line)
    assert f"note: {name.relative_to(clone.folder)} is a link" in remedy
    clone.run("sh", "-c", remedy.split("`")[1])
    assert not name.exists()
    assert contents(cache).items() <= cached.items()
    clone.run("dvc", "pull", "labels")
    assert contents(cache) == cached
    assert "is as it should be" in clone.run("lad", "verify")
    clone.change(views={"flips": ["none"]})
    assert "does not fit these settings" in clone.run("lad", "labels", status=1)
    clone.run("lad", "labels", "--replace")
    assert len(LabelStore(clone.store)) == VIEWS / 2
    assert contents(cache) == cached
