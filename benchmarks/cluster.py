"""The teacher pass on Dask workers: two single-thread workers, against one."""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import Figures, Ratio, alternate
from benchmarks.synthetic import borrow_project
from benchmarks.teacher_pass import pass_over_part
from pipeline.project.paths import Paths
from pipeline.teacher_pass.run import fill_store
from pipeline.teacher_pass.settings import Cluster, Labels, TeacherPass
from pipeline.views.settings import Views

WORKERS = (1, 2)
BAR = 1.6
"""The rate of two workers over that of one, at least."""


def measure_cluster(
    labels: Labels,
    teacher_pass: TeacherPass,
    views: Views,
    paths: Paths,
    images: int,
    repeats: int,
) -> Figures:
    """Run passes with one and with two workers of one thread; their start does not count.

    Args:
        labels: what is stored.
        teacher_pass: how it is made.
        views: which views there are.
        paths: where data and teacher are.
        images: of the data set to take.
        repeats: passes of each.
    """
    reports: dict[int, list[dict[str, Any]]] = {count: [] for count in WORKERS}

    def run(count: int, number: int) -> None:
        # A shard is a batch: the end, when one worker waits for the other, is short.
        rows = fitting.batch_size
        cluster = Cluster(workers=count, threads=1)
        changed = {"scheduler": "cluster", "cluster": cluster, "shard_rows": rows}
        with tempfile.TemporaryDirectory() as folder:
            own = borrow_project(part, Path(folder) / "out")
            settings = fitting.model_copy(update=changed)
            reports[count].append(fill_store(labels, settings, views, own, replace=False))

    ways = {str(count): lambda number, count=count: run(count, number) for count in WORKERS}
    with tempfile.TemporaryDirectory() as folder:
        part = borrow_project(paths, Path(folder) / "part", images)
        fitting = pass_over_part(teacher_pass, views, part)
        alternate(ways, repeats, warmup=0)
    one, two = (
        statistics.median(report["views_per_second"] for report in reports[count])
        for count in WORKERS
    )
    ratio = Ratio("Dask pass, 2 workers of 1 thread", two, "1 worker", one, "views/s", at_least=BAR)
    note = f"{reports[1][0]['views']} views; from the first shard on"
    return Figures([ratio], note, {"reports": reports})
