"""The work of the teacher pass: shards of views, labelled and written while the network runs on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.project.errors import UserError
from pipeline.store.coding import SoftSettings
from pipeline.store.schema import ASSIGNED_GT, Shard
from pipeline.store.writer import Chunks, StoreWriter
from pipeline.teacher_pass.background import Background
from pipeline.teacher_pass.label import ForwardPass, label_rows, run_network
from pipeline.teacher_pass.teacher import Teacher

AHEAD = 2
"""Batches that wait to be labelled, at most: writing a shard takes longer than a small forward."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into a user's error."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"can't write {path}: {error.strerror or error}; finished shards stay: make room (or "
            "mend the disk) and run `lad labels` again"
        ) from None


class ShardLabeller:
    """Labels shards: the network in the caller's thread, all that follows in the background.

    Args:
        teacher: decides.
        soft: how soft scores are stored, if at all.
        writer: of the store.
    """

    def __init__(self, teacher: Teacher, soft: SoftSettings | None, writer: StoreWriter) -> None:
        self.teacher = teacher
        self.soft = soft
        self.writer = writer

    def label(
        self,
        shard: Shard,
        batches: Iterator[dict[str, Any]],
        background: Background,
        labelled: Callable[[int], object] = lambda views: None,
        before_writing: Callable[[], object] = lambda: None,
    ) -> None:
        """Label a shard; it is complete once the background is done.

        Args:
            shard: which views.
            batches: collated items, first those of this shard.
            background: for assigning, coding and writing.
            labelled: told in the background how many views are.
            before_writing: called in the background.
        """
        chunks: Chunks = {}
        fallbacks = 0

        def add(views: ForwardPass) -> None:
            nonlocal fallbacks
            rows, fell_back = label_rows(self.teacher, views, self.soft)
            for name, more in self.writer.encode(shard, rows).items():
                chunks.setdefault(name, []).extend(more)
            fallbacks += fell_back
            labelled(len(rows[ASSIGNED_GT]))

        def write() -> None:
            before_writing()
            with writing(self.writer.path):
                self.writer.write(shard, chunks, fallbacks)

        shown = 0
        while shown < len(shard.views):
            views = run_network(self.teacher, next(batches))
            shown += len(views.truth.boxes)
            background.submit(partial(add, views))
        background.submit(write)
