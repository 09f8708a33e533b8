"""What DVC does with a store like COCO's: how many files, how large, and how long it takes."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.measure import Figures, Ratio
from benchmarks.random_teacher import write_random_store
from pipeline.project.files import bytes_on_disk
from pipeline.project.machine import cores
from pipeline.store.reader import LabelStore
from pipeline.teacher_pass.settings import Labels, TeacherPass

DRAWN = 128
BAR = 0.5
"""The rate of `dvc commit` over that of `sha256sum` on as many cores, at least."""
CONFIG = Path(__file__).parents[1] / ".dvc/config"
STAGE = {"stages": {"labels": {"cmd": "true", "outs": ["labels.zarr"]}}}


def measure_sharing(views: int) -> Figures:
    """Commit, push and pull a random store with real DVC, with a folder as the remote.

    Args:
        views: of the store.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repo, clone = folder / "repo", folder / "clone"
        repo.mkdir()
        store = repo / "labels.zarr"
        took = {"make": _timed(lambda: _write(store, views))}
        files = [file for file in store.rglob("*") if file.is_file()]
        size = bytes_on_disk(store)
        _prepare(repo, folder / "remote")
        _hash(files)  # until all of them are in the system's cache
        took["sha256sum"] = _timed(lambda: _hash(files))
        took["commit"] = _timed(lambda: _dvc(repo, "commit", "--force"))
        took["push"] = _timed(lambda: _dvc(repo, "push"))
        _run(repo, "git", "add", ".")
        _run(repo, "git", "commit", "-qm", "a store")
        _run(repo, "git", "clone", "-q", str(repo), str(clone))
        took["pull"] = _timed(lambda: _dvc(clone, "pull"))
        took["open and read a view"] = _timed(lambda: _read(clone / "labels.zarr"))
        remote = bytes_on_disk(folder / "remote")
    ratio = Ratio(
        "dvc commit of a store",
        size / took["commit"] / 1e6,
        f"sha256sum on {cores()} cores",
        size / took["sha256sum"] / 1e6,
        "MB/s",
        at_least=BAR,
    )
    shown = ", ".join(f"{what} {seconds:,.1f} s" for what, seconds in took.items())
    note = (
        f"{views:,} views with soft scores, {len(files):,} files, {size / 1e6:,.0f} MB "
        f"({remote / 1e6:,.0f} MB in the remote); {shown}"
    )
    details = {"files": len(files), "bytes": size, "bytes_in_remote": remote, "seconds": took}
    return Figures([ratio], note, details)


def _write(store: Path, views: int) -> None:
    drawn = min(views, DRAWN)
    write_random_store(store, views, Labels(), TeacherPass().shard_rows, drawn=drawn)


def _prepare(repo: Path, remote: Path) -> None:
    _run(repo, "git", "init", "-q")
    for key, value in (("user.name", "bench"), ("user.email", "bench@localhost")):
        _run(repo, "git", "config", key, value)
    (repo / ".dvc").mkdir()
    shutil.copy(CONFIG, repo / ".dvc")
    _dvc(repo, "remote", "add", "--default", "folder", str(remote))
    (repo / "dvc.yaml").write_text(json.dumps(STAGE))


def _hash(files: list[Path]) -> None:
    subprocess.run(
        ["xargs", "-0", "-n", "64", "-P", str(cores()), "sha256sum"],
        input="\0".join(map(str, files)),
        text=True,
        stdout=subprocess.DEVNULL,
        check=True,
    )


def _read(path: Path) -> None:
    store = LabelStore(path)
    store.assigned(0)
    store.soft(0)


def _timed(call: object) -> float:
    assert callable(call)
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _dvc(folder: Path, *arguments: str) -> None:
    _run(folder, sys.executable, "-m", "dvc", *arguments)


def _run(folder: Path, *command: str) -> None:
    environment = os.environ | {"DVC_NO_ANALYTICS": "1"}
    subprocess.run(
        command,
        cwd=folder,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
