"""Reads of a random store of COCO's size, against zarr-python; and what the store takes."""

import tempfile
from pathlib import Path

from benchmarks.measure import Figures, Ratio
from benchmarks.random_teacher import CLASSES, SCALE, write_random_store
from benchmarks.read_times import time_reads
from pipeline.inspection.store_info import summarise
from pipeline.teacher_pass.settings import Labels, TeacherPass

BARS = {"assignment": 10, "soft scores": 4}


def measure_reads(labels: Labels, views: int, reads: int) -> Figures:
    """Write a random store into a temporary folder, read views of it, and throw it away.

    Args:
        labels: the settings of the coding; soft scores are always there.
        views: of the store.
        reads: as in `time_reads`.
    """
    labels = labels.model_copy(update={"soft": True})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.zarr"
        write_random_store(path, views, labels, TeacherPass().shard_rows)
        sizes = {name: size.stored / views for name, size in summarise(path).sizes.items()}
        times = time_reads(path, reads)
    ratios = [
        Ratio(
            f"reads of a random view: {what}",
            1e3 / times.reads[what],
            "zarr-python",
            1e3 / times.zarr[what],
            "reads/s",
            at_least=BARS[what],
        )
        for what in times.reads
    ]
    note = (
        f"{views} random views like COCO's at {SCALE[0]} x {SCALE[1]}, {CLASSES} classes, "
        f"cut {labels.scores.cut}; files in the system's cache; bytes a view: "
        + ", ".join(f"{name} {size:,.0f}" for name, size in sizes.items())
    )
    details = {
        "views": views,
        "coding": {"min_iou": labels.min_iou, "min_score": labels.min_score}
        | labels.scores.model_dump(),
        "bytes_per_view": sizes,
        "median_ms": {"LabelStore": times.reads, "zarr-python": times.zarr},
        "decode_ms": times.decode,
    }
    return Figures(ratios, note, details)
