"""The teacher pass through Dask: the same store as that of one process, whatever dies."""

import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from distributed import Client, LocalCluster

import pipeline.teacher_pass.cluster
import pipeline.teacher_pass.fingerprint
from pipeline.data.dataset import load_split
from pipeline.project.errors import UserError
from pipeline.store.schema import SHARD_FLAGS, Shard, unfinished
from pipeline.store.writer import StoreWriter
from pipeline.teacher_pass.cluster import MachineShare, TeacherPlugin
from pipeline.teacher_pass.settings import TeacherPass
from tests.project.test_memory import PAGES, new_pages
from tests.teacher_pass.test_run import assert_same_stores
from tests.unfinished import unfinish

pytestmark = pytest.mark.slow


@pytest.fixture
def project(labelled, tmp_path):
    """Two single-thread workers, and no labels yet; loaded images are found from anywhere."""
    project = labelled.copy(tmp_path)
    shutil.rmtree(project.paths.labels)
    project.paths.labels_report.unlink()
    return project.change(
        teacher_pass={
            "scheduler": "cluster",
            "cluster": {"workers": 2, "threads": 1},
            "shard_rows": 8,
        }
    )


@pytest.fixture(scope="module")
def local(labelled, tmp_path_factory) -> Path:
    """The store of one process with one thread."""
    project = labelled.copy(tmp_path_factory.mktemp("local"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        project.fill_store()
    finally:
        torch.set_num_threads(threads)
    return project.paths.labels


def children() -> list[int]:
    """The workers' processes."""
    import psutil

    found = psutil.Process().children(recursive=True)
    return [p.pid for p in found if "spawn_main" in " ".join(p.cmdline())]


def test_a_killed_worker_costs_its_shards_work_only(project, local) -> None:
    """The store is that of one process, and so is the report."""
    killed: list[int] = []
    done_before: dict[Path, int] = {}
    finished = threading.Event()

    def kill() -> None:
        while not killed and not finished.wait(0.02):
            begun = unfinished(project.paths.labels)
            done = [flag.name for flag in begun.glob(f"{SHARD_FLAGS}/*x*.?")]
            if len(done) >= 3:
                for bucket, number in (name.split(".") for name in done):
                    place = Path("buckets", bucket, "assigned_gt/c", number, "0")
                    done_before[place] = (begun / place).stat().st_mtime_ns
                pid = children()[0]
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        report = project.fill_store()
    finally:
        finished.set()
        thread.join()
    assert killed
    assert_same_stores(project.paths.labels, local)
    store = project.paths.labels
    again = [p for p, when in done_before.items() if (store / p).stat().st_mtime_ns != when]
    assert not again
    expected = json.loads((local.parent / "labels.json").read_text())
    times = {"seconds", "views_per_second", "bytes_on_disk", "bytes_per_view"}
    assert {k: v for k, v in report.items() if k not in times} == {
        k: v for k, v in expected.items() if k not in times
    }
    assert report["seconds"] == pytest.approx(96 / report["views_per_second"])
    assert report["seconds"] > 0
    assert not children()


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """The address of a scheduler that is there already."""
    with LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None, memory_limit=0
    ) as cluster:
        yield cluster.scheduler_address


def test_an_existing_scheduler(project, local, scheduler) -> None:
    project.change(teacher_pass={"scheduler": scheduler})
    project.fill_store()
    assert_same_stores(project.paths.labels, local)


def test_a_worker_keeps_freed_memory(project, scheduler) -> None:
    """Dask starts it with malloc set to keep nothing."""
    project.change(teacher_pass={"scheduler": scheduler})
    project.fill_store()
    with Client(scheduler, set_as_default=False) as client:
        # In the main thread; of another's memory glibc gives whole pieces of 64 MB back.
        (found,) = client.run(new_pages).values()
    assert found < PAGES / 100


def test_an_error_in_a_worker_is_one_message(project, scheduler) -> None:
    """Here a folder stands where a shard must go."""
    project.change(teacher_pass={"scheduler": scheduler})
    create = StoreWriter.create.__func__

    def blocked(cls, path, layout, *args):
        writer = create(cls, path, layout, *args)
        place = path / "buckets" / layout.buckets[0].name / "assigned_gt/c/0/0"
        place.mkdir(parents=True)
        return writer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StoreWriter, "create", classmethod(blocked))
        with pytest.raises(UserError, match="can't write .*labels.zarr") as error:
            project.fill_store()
    assert "Traceback" not in str(error.value)


def test_no_scheduler_is_one_message(project, monkeypatch) -> None:
    monkeypatch.setattr(pipeline.teacher_pass.cluster, "CONNECT_SECONDS", 1)
    project.change(teacher_pass={"scheduler": "tcp://127.0.0.1:9"})
    with pytest.raises(UserError, match="no Dask scheduler answers at tcp://127.0.0.1:9"):
        project.fill_store()


class OneWorker:
    name = 0
    address = "tcp://here"


def test_a_complete_shard_is_not_labelled_again(labelled, tmp_path) -> None:
    project = labelled.copy(tmp_path)
    begun = unfinish(project.paths.labels).path
    train = load_split(project.paths, "train")
    plugin = TeacherPlugin(project.paths, begun, train, loaders=0, threads=1)
    threads = torch.get_num_threads()
    plugin.setup(OneWorker())
    torch.set_num_threads(threads)
    plugin.labeller = None
    (shard, *_) = plugin.shards.values()
    assert isinstance(shard, Shard)
    assert plugin.label(shard.bucket, shard.number) == 8


def test_a_worker_with_another_teacher_is_refused(labelled, tmp_path) -> None:
    project = labelled.copy(tmp_path)
    file = project.paths.teacher / "weights.pth"
    content = torch.load(file, weights_only=True)
    content["state_dict"]["bbox_head.atss_cls.bias"] += 1
    torch.save(content, file)
    train = load_split(project.paths, "train")
    plugin = TeacherPlugin(project.paths, project.paths.labels, train, loaders=0, threads=1)
    with pytest.raises(UserError, match=r"worker tcp://here.*\n  teacher.weights: expected"):
        plugin.setup(OneWorker())


def test_a_worker_with_other_versions_is_refused(labelled, tmp_path, monkeypatch) -> None:
    """While the store is unfinished, as it always is when a worker starts."""
    project = labelled.copy(tmp_path)
    begun = unfinish(project.paths.labels, 0).path
    train = load_split(project.paths, "train")
    plugin = TeacherPlugin(project.paths, begun, train, loaders=0, threads=1)
    version = pipeline.teacher_pass.fingerprint.version
    monkeypatch.setattr(
        pipeline.teacher_pass.fingerprint,
        "version",
        lambda name: "99.1" if name == "torch" else version(name),
    )
    threads = torch.get_num_threads()
    with pytest.raises(UserError, match=r"\n  versions.torch: expected 99.1, found "):
        plugin.setup(OneWorker())
    torch.set_num_threads(threads)


@pytest.mark.parametrize("threads", [0, 2])
def test_images_are_loaded_in_order(labelled, threads: int) -> None:
    class Numbers:
        def __getitem__(self, view: int) -> dict:
            return {"inputs": torch.full((1,), view), "data_samples": view}

    batches = [[3, 4], [5], [9, 8, 7], [1]]
    found = list(pipeline.teacher_pass.cluster._load(Numbers(), batches, threads))
    assert [batch["data_samples"] for batch in found] == batches
    assert [[int(view) for view in batch["inputs"]] for batch in found] == batches


def test_how_a_machine_is_shared_out(monkeypatch) -> None:
    monkeypatch.setattr("joblib.cpu_count", lambda: 8)
    for gpus, cluster, expected in [
        (0, {}, (8, 1)),
        (2, {}, (2, 4)),
        (0, {"threads": 4}, (2, 4)),
        (0, {"workers": 3}, (3, 2)),
        (0, {"workers": 16}, (16, 1)),
        (0, {"workers": 1, "threads": 1}, (1, 1)),
    ]:
        monkeypatch.setattr(torch.cuda, "device_count", lambda n=gpus: n)
        settings = TeacherPass(scheduler="cluster", cluster=cluster)
        assert MachineShare.of(settings) == MachineShare(*expected)
    assert MachineShare.of(TeacherPass(scheduler="tcp://a:1")).threads == 1
    assert MachineShare.of(TeacherPass(scheduler="tcp://a:1", cluster={"threads": 3})).threads == 3
