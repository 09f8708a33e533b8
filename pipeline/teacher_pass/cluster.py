"""The teacher pass on many devices: its shards are tasks of Dask.

A worker loads the teacher once. A task is a shard, and may run again: it does nothing where the
shard is complete, and two workers that write one shard write the same, each in one step.
"""

import logging
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from distributed import (
    Client,
    KilledWorker,
    LocalCluster,
    Worker,
    WorkerPlugin,
    as_completed,
    get_worker,
)

from pipeline.data.dataset import CheckedSplit
from pipeline.loading.collate import collate_views
from pipeline.loading.dataset import ViewDataset, view_dataset
from pipeline.loading.transforms import ALL_OBJECTS
from pipeline.project.errors import UserError
from pipeline.project.machine import cores, loader_processes
from pipeline.project.memory import keep_freed_memory
from pipeline.project.paths import Paths
from pipeline.store.reader import LabelStore
from pipeline.store.schema import Shard
from pipeline.store.writer import StoreWriter
from pipeline.teacher_pass.background import Background
from pipeline.teacher_pass.fingerprint import (
    code_and_versions,
    labels_fingerprint,
    numerics_of,
)
from pipeline.teacher_pass.label import batches_of, load_teacher
from pipeline.teacher_pass.open_store import require_continuable
from pipeline.teacher_pass.settings import TeacherPass
from pipeline.teacher_pass.shard_labeller import AHEAD, ShardLabeller

CONNECT_SECONDS = 10
RETRIES = 2


@dataclass(frozen=True)
class MachineShare:
    """How a machine is shared out.

    Attributes:
        workers: processes with a teacher each.
        threads: with which each computes.
    """

    workers: int
    threads: int

    @classmethod
    def of(cls, teacher_pass: TeacherPass) -> "MachineShare":
        """With a scheduler elsewhere the number of workers is its own.

        By default a worker for each GPU, else for each core; all cores in equal parts.
        """
        if teacher_pass.scheduler != "cluster":
            return cls(0, teacher_pass.cluster.threads or 1)
        by_device = torch.cuda.device_count() or cores() // (teacher_pass.cluster.threads or 1)
        workers = teacher_pass.cluster.workers or max(1, by_device)
        return cls(workers, teacher_pass.cluster.threads or max(1, cores() // workers))


class TeacherPlugin(WorkerPlugin):
    """A teacher in a Dask worker, and the store that it fills.

    Args:
        paths: absolute, and the same on all machines.
        store: that it fills, likewise.
        train: the training split, with absolute paths.
        loaders: threads that load images, at most one less than `threads`.
        threads: with which it computes.
    """

    def __init__(
        self, paths: Paths, store: Path, train: CheckedSplit, loaders: int, threads: int
    ) -> None:
        self.name = f"teacher for {store}"
        self.paths = paths
        self.store = store
        self.train = train
        self.loaders = min(loaders, threads - 1)
        self.threads = threads

    def setup(self, worker: Worker) -> None:
        """Load the teacher.

        Raises:
            UserError: it would decide otherwise here than in the process that began the store.
        """
        # Dask has its workers give memory back at once, which costs them half their speed.
        keep_freed_memory()
        torch.set_num_threads(self.threads)
        device = None
        if torch.cuda.is_available() and isinstance(worker.name, int):
            device = f"cuda:{worker.name % torch.cuda.device_count()}"
        store = LabelStore(self.store)
        numerics = numerics_of(store.fingerprint)
        teacher, model = load_teacher(self.paths, self.train, numerics, device)
        soft = store.soft_settings()
        store.require(
            labels_fingerprint(self.train, teacher, model, store.plan(), soft),
            f"the Dask worker {worker.address}, which must have the device of the process that "
            "starts the pass",
        )
        require_continuable(store, code_and_versions())
        self.made_with = store.made_with
        self.shards = {(shard.bucket, shard.number): shard for shard in store.layout.shards()}
        self.writer = StoreWriter(self.store, store.layout)
        self.labeller = ShardLabeller(teacher, soft, self.writer)
        self.dataset = view_dataset(self.train, store.plan(), ALL_OBJECTS)
        self.network = threading.Lock()

    def label(self, bucket: int, number: int) -> int:
        """Label a shard, unless it is complete; returns its number of views.

        While one task writes, the network may be another's.
        """
        shard = self.shards[bucket, number]
        if not self.writer.is_complete(shard):
            torch.set_num_threads(self.threads)
            views = batches_of(shard, self.writer.layout, self.made_with)
            batches = _load(self.dataset, views, self.loaders)
            first = next(batches)
            device = self.labeller.teacher.device
            with _current(device), Background(AHEAD, device) as background, self.network:
                self.labeller.label(shard, chain([first], batches), background)
        return len(shard.views)


def _current(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a GPU the one of this thread: else pinned memory would take some of the first one's."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _load(dataset: ViewDataset, batches: list[list[int]], threads: int) -> Iterator[dict[str, Any]]:
    """The collated items of each batch, two batches ahead where there are threads."""
    if not threads:
        for batch in batches:
            yield collate_views([dataset[view] for view in batch])
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[list[Any]] = deque()
        for batch in [*batches, [], []]:
            waiting.append([pool.submit(dataset.__getitem__, view) for view in batch])
            if len(waiting) > 2:
                yield collate_views([item.result() for item in waiting.popleft()])


def _label(plugin: str, bucket: int, number: int) -> int:
    """The task of Dask: label a shard in a worker that has the plugin."""
    return get_worker().plugins[plugin].label(bucket, number)


@contextmanager
def labelled_shards(
    teacher_pass: TeacherPass, paths: Paths, store: Path, train: CheckedSplit, pending: list[Shard]
) -> Iterator[Iterator[int]]:
    """Have Dask label the pending shards; gives the number of views of each that is complete.

    Args:
        teacher_pass: the settings.
        paths: of data and teacher.
        store: to fill.
        train: the training split.
        pending: shards that are not complete; nobody else writes them.

    Raises:
        UserError: there is no scheduler, a worker's labels would be others, or a worker is
            killed again and again.
    """
    share = MachineShare.of(teacher_pass)
    loaders = loader_processes(teacher_pass.workers)
    plugin = TeacherPlugin(
        Paths(paths.root.resolve()), store.resolve(), _absolute(train), loaders, share.threads
    )
    with _client(teacher_pass.scheduler, share) as client:
        client.register_plugin(plugin)
        try:
            yield _results(client, plugin.name, pending)
        finally:
            # A scheduler elsewhere goes on, without this teacher.
            with suppress(Exception):
                client.unregister_worker_plugin(plugin.name)


def _absolute(train: CheckedSplit) -> CheckedSplit:
    return replace(
        train,
        annotations=train.annotations.resolve(),
        images_folder=train.images_folder.resolve(),
    )


def _results(client: Client, plugin: str, pending: list[Shard]) -> Iterator[int]:
    # No reference stays to a finished task: its worker's death would make it run again.
    tasks = as_completed(
        client.map(
            _label,
            [plugin] * len(pending),
            [shard.bucket for shard in pending],
            [shard.number for shard in pending],
            pure=False,
            retries=RETRIES,
        ),
        loop=client.loop,
    )
    for task in tasks:
        try:
            yield task.result()
        except KilledWorker as error:
            raise UserError(
                f"workers of the teacher pass died again and again ({error}); finished shards "
                "stay: look for the reason (often memory: lower teacher_pass.batch_size or "
                "teacher_pass.cluster.workers) and run `lad labels` again"
            ) from None


@contextmanager
def _client(scheduler: str, share: MachineShare) -> Iterator[Client]:
    if scheduler == "cluster":
        with (
            LocalCluster(
                n_workers=share.workers,
                # A second task loads and computes while the first one's rows are written.
                threads_per_worker=min(2, share.threads),
                memory_limit=0,
                dashboard_address=None,
                silence_logs=logging.ERROR,
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            yield client
        return
    try:
        client = Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"teacher_pass.scheduler: no Dask scheduler answers at {scheduler} ({error}); "
            "start one with `dask scheduler`, or set teacher_pass.scheduler to local or cluster"
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_SECONDS)
        except TimeoutError:
            raise UserError(
                f"teacher_pass.scheduler: the Dask scheduler at {scheduler} has no workers; "
                f"start some with `dask worker {scheduler}`"
            ) from None
        yield client
