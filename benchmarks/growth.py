"""How the teacher pass grows with images and classes: all synthetic, a tiny random teacher."""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.measure import Figures, Ratio, in_own_process, peak_memory
from benchmarks.random_teacher import MODEL
from benchmarks.synthetic import write_project
from pipeline.project.paths import Paths
from pipeline.teacher_pass.run import fill_store
from stages.params import Params

SIZE = (96, 64)
"""Of the views for many images: what grows is their number."""
CLASS_VIEWS = 64
CLASS_SIZE = (256, 192)
ALONE = {"workers": 0}
"""Memory is that of one process."""
SLACK = 1.1
"""Linear growth is met up to the scatter of a single run."""


def run_pass(params: Params, paths: Paths) -> dict[str, Any]:
    """The report of a teacher pass in this process, with its `peak` of memory in bytes."""
    report = fill_store(params.labels, params.teacher_pass, params.views, paths, replace=False)
    return report | {"peak": peak_memory()}


def _pass_of(
    run: Callable[[Params, Paths], dict[str, Any]],
    images: int,
    size: tuple[int, int] = SIZE,
    classes: int = 10,
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return run(*write_project(Path(folder), MODEL, images, size, classes, teacher_pass=ALONE))


def measure_growth(images: Sequence[int], classes: Sequence[int]) -> Figures:
    """Run passes of growing size; those of many images each in a process of its own.

    Args:
        images: how many a data set has, ascending.
        classes: likewise.
    """
    by_images = {count: _pass_of(partial(in_own_process, run_pass), count) for count in images}
    by_classes = {count: _pass_of(run_pass, CLASS_VIEWS, CLASS_SIZE, count) for count in classes}
    ratios = []
    for few, many in pairwise(images):
        small, large = by_images[few], by_images[many]
        names = f"pass, {many:,} images", f"{few:,} images"
        ratios += [
            _ratio(names, _milliseconds(large), _milliseconds(small), "ms/view"),
            _ratio(names, large["bytes_per_view"], small["bytes_per_view"], "bytes/view"),
            _ratio(names, large["peak"] / 2**20, small["peak"] / 2**20, "MiB peak"),
        ]
    for few, many in pairwise(classes):
        names = f"pass, {many:,} classes", f"{few:,} classes"
        small, large = by_classes[few], by_classes[many]
        ratios += [
            _ratio(names, _milliseconds(large) / many, _milliseconds(small) / few, "ms/view/class"),
            _ratio(
                names,
                large["bytes_per_view"] / many,
                small["bytes_per_view"] / few,
                "bytes/view/class",
            ),
        ]
    note = (
        f"digit scenes repeated, a tiny teacher with random weights; images at {SIZE[0]} x "
        f"{SIZE[1]}, classes at {CLASS_SIZE[0]} x {CLASS_SIZE[1]} with {CLASS_VIEWS} views"
    )
    return Figures(ratios, note, {"images": by_images, "classes": by_classes})


def _milliseconds(report: dict[str, Any]) -> float:
    return 1e3 / float(report["views_per_second"])


def _ratio(names: tuple[str, str], ours: float, theirs: float, unit: str) -> Ratio:
    return Ratio(names[0], ours, names[1], theirs, unit, at_most=SLACK)
