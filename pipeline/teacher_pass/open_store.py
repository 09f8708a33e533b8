"""The store that a teacher pass fills: opened by one process, continued, or made anew."""

import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.project.digests import differences
from pipeline.project.errors import UserError, did_you_mean
from pipeline.project.files import REMOVED
from pipeline.project.text import note
from pipeline.store.fingerprint import Fingerprint
from pipeline.store.integrity import linked_damage, read_rows
from pipeline.store.reader import LabelStore
from pipeline.store.schema import Shard, StoreLayout, unfinished
from pipeline.store.writer import StoreWriter
from pipeline.teacher_pass.shard_labeller import writing

BOUND = ("code", "versions")
"""What an unfinished store is continued with, of all that it was begun with."""


@contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold the lock beside the store; the system releases it when the process ends.

    A lock of `lockf` belongs to this process alone: the loader's processes, which outlive a
    killed run by seconds, do not hold it.

    Raises:
        UserError: another process holds it.
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


@dataclass(frozen=True)
class OpenStore:
    """A store to fill, to finish or to mend.

    Attributes:
        writer: of the store, which lies beside its name while it is filled.
        made_with: what it was begun with.
        pending: the shards to label.
    """

    writer: StoreWriter
    made_with: dict[str, Any]
    pending: list[Shard]


def open_store(
    path: Path,
    layout: StoreLayout,
    fingerprint: Fingerprint,
    made_with: dict[str, Any],
    replace: bool,
) -> OpenStore:
    """The store with this fingerprint: the whole one, the unfinished one, or a new one.

    Args:
        path: where it is, or goes once it is whole.
        layout: of a new store.
        fingerprint: what its labels must depend on.
        made_with: what a new store is begun with: code, versions, batch sizes.
        replace: make a new store where those that are there can't be used.

    Raises:
        UserError: the store that is there has another fingerprint, or is unfinished and was begun
            with other code or versions; and `replace` is false.
    """
    _end_swap(path)
    for place, new in (
        (path, "a new store is made beside, and takes this one's place once it is whole"),
        (unfinished(path), "a new store is begun"),
    ):
        if not place.exists():
            continue
        try:
            store = LabelStore(place)
            store.require(fingerprint, "these settings")
            require_continuable(store, made_with)
        except UserError as error:
            if not replace:
                raise UserError(f"{error}\n(nothing was changed)") from None
            note(f"{new}: {error}")
        else:
            for line in differences(made_with, store.made_with):
                note(f"{line} in the store; its labels stay valid")
            # An unfinished store goes on with the shards that it was begun with.
            writer = StoreWriter(place, store.layout)
            with writing(path):
                writer.remove_left_overs()
                return OpenStore(writer, made_with | store.made_with, _pending(store, writer))
    with writing(path):
        writer = StoreWriter.create(unfinished(path), layout, fingerprint, made_with)
    return OpenStore(writer, made_with, list(layout.shards()))


def _end_swap(path: Path) -> None:
    """End what a kill has interrupted: a whole store took the place of an older one."""
    old = path.with_name(path.name + REMOVED)
    if not old.exists():
        return
    with writing(path):
        if not path.exists() and (beside := unfinished(path)).exists():
            with suppress(UserError):
                store = LabelStore(beside)
                if store.finished:
                    StoreWriter(beside, store.layout).finish(path)
        shutil.rmtree(old, ignore_errors=True)


def require_continuable(store: LabelStore, made_with: dict[str, Any]) -> None:
    """Refuse to continue an unfinished store with other code or versions than began it.

    Its labels would be of two kinds of rounding. A finished store stays valid.

    Args:
        store: finished or not.
        made_with: what would go on.

    Raises:
        UserError: the message lists what differs.
    """
    ours = {name: made_with[name] for name in BOUND}
    theirs = {name: store.made_with.get(name) for name in BOUND}
    if store.missing_shards() and (lines := differences(ours, theirs)):
        raise UserError(
            f"the unfinished store {store.path} was begun with other code or versions:\n  "
            + "\n  ".join(lines)
            + "\ngo on with those, or make a new store with `lad labels --replace`"
        )


def require_buckets(names: Collection[str], layout: StoreLayout) -> None:
    """Refuse names of buckets that the store does not have.

    Raises:
        UserError: there is no such bucket.
    """
    known = [bucket.name for bucket in layout.buckets]
    for name in names:
        if name not in known:
            raise UserError(
                f"teacher_pass.bucket_batch_sizes: no view is padded to {name} (height x width)"
                f"{did_you_mean(name, known)}; there are: {', '.join(known)}"
            )


def _pending(store: LabelStore, writer: StoreWriter) -> list[Shard]:
    """The shards to label: those that are not complete, and those that can't be read."""
    damaged: list[Shard] = []
    for shard in tqdm(store.complete_shards(), desc="checking", unit="shard", delay=2):
        problems: list[str] = []
        for _ in read_rows(store, shard, problems):
            pass
        if problems:
            note(f"the store is damaged and its shard is made again: {problems[0]}")
            damaged.append(shard)
    if damaged:
        for line in linked_damage(store):
            note(line)
    if store.finished:
        return damaged
    for shard in damaged:
        writer.retract(shard)
    return list(writer.pending())
