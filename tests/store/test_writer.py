"""How a store is finished, and into how many files it goes."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np

from pipeline.store.reader import LabelStore
from pipeline.store.schema import SHARD_FLAGS, VIEW_COLUMNS, Bucket, StoreLayout, unfinished
from pipeline.store.writer import StoreWriter
from pipeline.teacher_pass.settings import TeacherPass

VIEWS = 2 * 118_287
BUCKETS = 100
"""Most of COCO's images have one of some ten sizes; the others make for many small buckets."""


def test_without_hard_links_a_finished_store_has_no_spare(tmp_path: Path, monkeypatch) -> None:
    """As on a file system that has none."""

    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    table = {name: np.zeros(0, dtype) for name, dtype in VIEW_COLUMNS.items()}
    layout = StoreLayout((), table, shard_rows=8, soft_classes=0)
    name = tmp_path / "store"
    for refuse, left in ((False, {"store", "store.partial"}), (True, {"store"})):
        shutil.rmtree(unfinished(name), ignore_errors=True)
        writer = StoreWriter.create(unfinished(name), layout, {"coding": None})
        with monkeypatch.context() as patch:
            if refuse:
                patch.setattr(os, "link", refused)
            writer.finish(name, spare=True)
        assert {file.name for file in tmp_path.iterdir()} == left
        assert LabelStore(name).finished


def test_two_views_of_coco_go_into_few_files(tmp_path: Path) -> None:
    bucket = np.minimum(np.arange(VIEWS) // 20_000, BUCKETS - 1).astype(np.int32)
    bucket[: 2 * BUCKETS] = np.arange(2 * BUCKETS) % BUCKETS
    rows = np.bincount(bucket, minlength=BUCKETS)
    table = {name: np.zeros(VIEWS, dtype) for name, dtype in VIEW_COLUMNS.items()}
    layout = StoreLayout(
        buckets=tuple(
            Bucket((32, 32 * (n + 1)), int(count), 4 * (n + 1)) for n, count in enumerate(rows)
        ),
        table=table | {"bucket": bucket},
        shard_rows=TeacherPass().shard_rows,
        soft_classes=80,
    )
    writer = StoreWriter.create(tmp_path / "store", layout, {})
    files = [f for f in writer.path.rglob("*") if f.is_file() and SHARD_FLAGS not in f.parts]
    arrays = len(layout.buckets[0].arrays(80))
    assert arrays <= 6
    assert len(files) + arrays * layout.shard_count() <= 6_000
