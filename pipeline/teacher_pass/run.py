"""The teacher pass: run the teacher over every view once and fill the label store."""

import fcntl
import json
import os
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from pipeline.assignment.paa import BACKGROUND
from pipeline.data.coco import load_images
from pipeline.data.dataset import load_data_info
from pipeline.detector.build import preprocessing
from pipeline.loading.collate import view_loader
from pipeline.project.errors import UserError, did_you_mean
from pipeline.project.params import Params
from pipeline.project.paths import Paths
from pipeline.store.coding import SoftSettings
from pipeline.store.fingerprint import Fingerprint, differences, digest
from pipeline.store.integrity import read_rows
from pipeline.store.reader import LabelStore
from pipeline.store.schema import ASSIGNED_GT, SOFT_ARRAYS, Shard, StoreLayout, plan_store
from pipeline.store.writer import StoreWriter, remove_store
from pipeline.teacher_pass.background import Background
from pipeline.teacher_pass.cluster import Share, labelled_shards
from pipeline.teacher_pass.labelling import (
    VERSIONS,
    batches_of,
    labels_fingerprint,
    load_teacher,
    view_dataset,
)
from pipeline.teacher_pass.shard_labeller import AHEAD, ShardLabeller, writing
from pipeline.teacher_pass.teacher import Numerics
from pipeline.views.plan import view_plan


def precompute_labels(params: Params, paths: Paths, replace: bool) -> dict[str, Any]:
    """Fill the label store, continuing one that is incomplete.

    Args:
        params: the settings.
        paths: where data and teacher are, and where the store goes.
        replace: start a new store where there is one with another fingerprint.

    Returns:
        The report: counts, seconds of the whole pass, sizes.

    Raises:
        UserError: data or teacher are missing, the store that is there has another fingerprint,
            another process is writing it, or it can't be written.
    """
    data = load_data_info(paths)
    teacher, model = load_teacher(paths, data, Numerics.of(params.labels))
    plan = view_plan(params.views)
    soft = SoftSettings.of(params.labels)
    layout = plan_store(
        load_images(data.train.annotations),
        plan,
        teacher.grid,
        preprocessing(model)["pad_size_divisor"],
        params.labels.shard_rows,
        len(data.classes) if soft else 0,
    )
    _require_buckets(params.labels.bucket_batch_sizes, layout)
    fingerprint = labels_fingerprint(data, teacher, model, plan, soft)
    local = params.labels.scheduler == "local"
    made_with: dict[str, Any] = {
        "batch_size": params.labels.batch_size,
        "bucket_batch_sizes": params.labels.bucket_batch_sizes,
        "workers": params.labels.workers,
        "threads": torch.get_num_threads() if local else Share.of(params.labels).threads,
        "versions": {name: version(name) for name in VERSIONS},
        "images": str(data.train.images_folder),
        "teacher": str(paths.teacher),
    }
    with _only_writer(paths.labels):
        writer, made_with = _open_store(paths.labels, layout, fingerprint, made_with, replace)
        pending = list(writer.pending())
        clock = _Clock(paths.labels_report, digest(fingerprint))
        report = None if pending else clock.report()
        if report is None:
            with _progress(writer, pending) as bar:
                if local:
                    dataset = view_dataset(data, plan)
                    # Rounding depends on what is in a batch: an unfinished store keeps its own.
                    batches = (batches_of(one, writer.layout, made_with) for one in pending)
                    loader = view_loader(
                        dataset, chain.from_iterable(batches), params.labels.workers
                    )
                    _run(ShardLabeller(teacher, soft, writer), pending, loader, clock, bar)
                else:
                    with labelled_shards(params.labels, paths, data, pending) as shards:
                        clock.start()
                        for views in shards:
                            clock.add(views)
                            bar.update(views)
            report = _report(LabelStore(paths.labels), len(plan), clock.seconds_per_view())
            with writing(paths.labels_report):
                report = clock.finish(report)
    return report


def _require_buckets(names: Collection[str], layout: StoreLayout) -> None:
    known = [bucket.name for bucket in layout.buckets]
    for name in names:
        if name not in known:
            raise UserError(
                f"labels.bucket_batch_sizes: no view is padded to {name} (height x width)"
                f"{did_you_mean(name, known)}; there are: {', '.join(known)}"
            )


def _open_store(
    path: Path,
    layout: StoreLayout,
    fingerprint: Fingerprint,
    made_with: dict[str, Any],
    replace: bool,
) -> tuple[StoreWriter, dict[str, Any]]:
    """The store to fill, and what it was begun with."""
    if path.exists():
        try:
            store = LabelStore(path)
            store.require(fingerprint, "these settings")
        except UserError as error:
            if not replace:
                raise UserError(f"{error}\n(nothing was changed)") from None
        else:
            for line in differences(made_with, store.made_with):
                _note(f"{line} in the store; its labels stay valid")
            with writing(path):
                # An unfinished store goes on with the shards that it was begun with.
                writer = StoreWriter(path, store.layout)
                writer.remove_left_overs()
                _retract_damaged(store, writer)
            return writer, made_with | store.made_with
    with writing(path):
        remove_store(path)
        return StoreWriter.create(path, layout, fingerprint, made_with), made_with


def _retract_damaged(store: LabelStore, writer: StoreWriter) -> None:
    """Have those complete shards made again that can't be read."""
    done = [s for s in store.layout.shards() if store.complete[s.bucket][s.number] == 1]
    for shard in tqdm(done, desc="checking", unit="shard", delay=2, mininterval=2):
        problems: list[str] = []
        for _ in read_rows(store, shard, problems):
            pass
        if problems:
            _note(f"the store is damaged and its shard is made again: {problems[0]}")
            writer.retract(shard)


def _note(text: str) -> None:
    tqdm.write(f"note: {text}", file=sys.stderr)


@contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    """Hold the lock beside the store; the system releases it when the process ends.

    A lock of `lockf` belongs to this process alone: the loader's processes, which outlive a
    killed run by seconds, do not hold it.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_name(path.name + ".lock").open("a+")
    with lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            raise UserError(
                f"another process ({lock.read().strip()}) is writing the store {path}; "
                "wait for it or stop it"
            ) from None
        with writing(path):
            lock.truncate(0)
            lock.write(f"pid {os.getpid()} on {os.uname().nodename}")
            lock.flush()
        yield


class _Clock:
    """The time of the whole pass, over all the runs that it takes; and its report.

    Args:
        file: of the report.
        fingerprint: digest of the store's fingerprint; what another pass left does not count.
    """

    def __init__(self, file: Path, fingerprint: str) -> None:
        self.file = file
        self.fingerprint = fingerprint
        self._running = file.with_name(file.name + ".partial")
        before = _read_json(self._running, fingerprint) or {"views": 0, "seconds": 0.0}
        self.views, self.seconds = before["views"], before["seconds"]

    def start(self) -> None:
        """Begin to measure."""
        self._last = time.perf_counter()

    def add(self, views: int) -> None:
        """Count views, and the time since the last ones."""
        now = time.perf_counter()
        self.views += views
        self.seconds += now - self._last
        self._last = now
        with writing(self._running):
            self._write(self._running, {"views": self.views, "seconds": self.seconds})

    def seconds_per_view(self) -> float | None:
        """None if no run has measured it."""
        return self.seconds / self.views if self.views else None

    def report(self) -> dict[str, Any] | None:
        """The report that `finish` has written, if the pass came to its end."""
        return _read_json(self.file, self.fingerprint)

    def finish(self, report: dict[str, Any]) -> dict[str, Any]:
        """Write the report, and say whose it is."""
        report = self._write(self.file, report)
        self._running.unlink(missing_ok=True)
        return report

    def _write(self, file: Path, content: dict[str, Any]) -> dict[str, Any]:
        content = {"fingerprint": self.fingerprint} | content
        building = file.with_name(file.name + ".new")
        building.write_text(json.dumps(content, indent=1))
        building.replace(file)
        return content


def _read_json(file: Path, fingerprint: str) -> dict[str, Any] | None:
    """The content of a whole file that belongs to this fingerprint."""
    try:
        content: dict[str, Any] = json.loads(file.read_text())
        return content if content["fingerprint"] == fingerprint else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _progress(writer: StoreWriter, pending: list[Shard]) -> tqdm:
    total = len(writer.layout.table["row"])
    left = sum(len(shard.views) for shard in pending)
    return tqdm(total=total, initial=total - left, desc="labels", unit="view", mininterval=2)


def _run(
    labeller: ShardLabeller,
    pending: list[Shard],
    loader: DataLoader[Any],
    clock: _Clock,
    bar: tqdm,
) -> None:
    """Label the pending shards, whose batches come from the loader in their order."""
    batches = iter(loader)
    clock.start()
    with Background(AHEAD) as background:
        for shard in pending:
            # Before the shard counts as complete: every complete shard has been timed.
            timed = partial(clock.add, len(shard.views))
            labeller.label(shard, batches, background, bar.update, timed)


def _report(
    store: LabelStore, views_per_image: int, seconds_per_view: float | None
) -> dict[str, Any]:
    path = Path(store.path)
    views = len(store)
    positives = objects = 0
    for view in range(views):
        assigned = store.assigned(view)
        learnt = assigned[assigned != BACKGROUND]
        positives += len(learnt)
        objects += len(np.unique(learnt))
    sizes = {
        name: sum(f.stat().st_size for f in path.glob(f"buckets/*/{name}/**/*") if f.is_file())
        for name in (ASSIGNED_GT, *SOFT_ARRAYS)
    }
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return {
        "images": views // views_per_image,
        "views": views,
        "views_per_image": views_per_image,
        "seconds": None if seconds_per_view is None else seconds_per_view * views,
        "views_per_second": None if seconds_per_view is None else 1 / seconds_per_view,
        "bytes_on_disk": size,
        "bytes_per_view": size / views,
        "bytes_per_view_by_array": {name: size / views for name, size in sizes.items() if size},
        "objects_with_positives": objects,
        "positives_per_object": positives / max(objects, 1),
        "fallback_objects": store.fallbacks(),
    }
