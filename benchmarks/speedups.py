"""What each piece of the library buys that is there for speed alone: a teacher pass without it.

What buys less than 3 % is not worth its lines.
"""

import resource
import statistics
import tempfile
from pathlib import Path
from unittest import mock

from tqdm import tqdm

from benchmarks.measure import Figures, Ratio, in_own_process
from benchmarks.synthetic import borrow_project
from benchmarks.teacher_pass import pass_over_part
from pipeline.project.paths import Paths
from pipeline.teacher_pass.run import fill_store
from pipeline.teacher_pass.settings import Labels, TeacherPass
from pipeline.views.settings import Views

SPEEDUPS = {
    "pooling": "the stem's quick max pooling (pipeline/detector/pooling.py)",
    "memory": "memory kept for the next tensors (pipeline/project/memory.py)",
}


def measure_speedups(
    labels: Labels,
    teacher_pass: TeacherPass,
    views: Views,
    paths: Paths,
    images: int,
    repeats: int,
) -> Figures:
    """Run passes without each piece in turn, each in a process of its own.

    Processor time is compared: network and labelling use all cores, and other processes hardly
    count in it.

    Args:
        labels: what is stored.
        teacher_pass: how it is made.
        views: which views there are.
        paths: where data and teacher are.
        images: of the data set to take.
        repeats: passes of each.
    """
    seconds: dict[str, list[float]] = {without: [] for without in ("nothing", *SPEEDUPS)}
    with tempfile.TemporaryDirectory() as folder:
        part = borrow_project(paths, Path(folder) / "part", images)
        fitting = labels, pass_over_part(teacher_pass, views, part), views
        for _ in tqdm(range(repeats), desc="bench", unit="round", delay=2):
            for without, spent in seconds.items():
                keep_memory = without != "memory"
                call = (_seconds_of_pass, fitting, part, without)
                spent.append(in_own_process(*call, keep_memory=keep_memory))
    middle = {without: statistics.median(spent) for without, spent in seconds.items()}
    ratios = [
        Ratio(f"pass without {what}", middle[without], "with it", middle["nothing"], "s")
        for without, what in SPEEDUPS.items()
    ]
    note = f"processor time of passes over {images} images, in processes of their own"
    return Figures(ratios, note, {"seconds": seconds})


def _seconds_of_pass(
    settings: tuple[Labels, TeacherPass, Views], paths: Paths, without: str
) -> float:
    """Processor seconds of the second of two passes in this process and its loaders."""
    if without == "pooling":
        mock.patch("pipeline.teacher_pass.teacher.pool_quickly").start()
    seconds = 0.0
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            own = borrow_project(paths, Path(folder) / "out")
            before = _processor_seconds()
            fill_store(*settings, own, replace=False)
            seconds = _processor_seconds() - before
    return seconds


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
