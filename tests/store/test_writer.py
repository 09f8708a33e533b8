"""A store goes into few files: what keeps and moves it pays by the file."""

from pathlib import Path

import numpy as np

from pipeline.store.schema import SHARD_FLAGS, VIEW_COLUMNS, Bucket, StoreLayout
from pipeline.store.writer import StoreWriter
from pipeline.teacher_pass.settings import TeacherPass

VIEWS = 2 * 118_287
BUCKETS = 100
"""Most of COCO's images have one of some ten sizes; the others make for many small buckets."""


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
