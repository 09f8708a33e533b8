"""Loading views with and without labels: the time of an item, and memory over many items."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from torch.utils.data import DataLoader
from tqdm import tqdm

from benchmarks.measure import Figures, Ratio, alternate, medians
from benchmarks.random_teacher import MODEL
from benchmarks.synthetic import SCENES, write_project
from pipeline.data.dataset import load_split
from pipeline.loading.collate import collate_views
from pipeline.loading.dataset import ViewDataset, view_dataset
from pipeline.loading.transforms import NO_LABELS
from pipeline.project.paths import Paths
from pipeline.store.reader import LabelStore
from pipeline.students.cached import student_labels
from pipeline.students.settings import Student
from pipeline.teacher_pass.run import fill_store
from pipeline.views.plan import view_plan
from pipeline.views.settings import Views

SIZE = (640, 480)
BARS = {"lad": 1.05, "solad": None}
"""The most time of an item with the labels of a method, over that without labels."""
BATCH = 16
MEMORY_BAR = 1.02


def measure_loader(items: int, workers: Sequence[int], repeats: int, memory_items: int) -> Figures:
    """Time epochs of a loader, and watch its memory.

    Args:
        items: in an epoch.
        workers: numbers of processes to try.
        repeats: epochs of each.
        memory_items: to load in this process, a tenth of them before memory is first read.
    """
    with tempfile.TemporaryDirectory() as folder:
        params, paths = write_project(
            Path(folder), MODEL, SCENES, SIZE, teacher_pass={"workers": 0}
        )
        fill_store(params.labels, params.teacher_pass, params.views, paths, replace=False)
        datasets = {method: _dataset(params.views, paths, method) for method in ("none", *BARS)}
        ratios, seconds = [], {}
        for count in workers:
            spent = alternate(
                {way: _epoch(dataset, items, count) for way, dataset in datasets.items()}, repeats
            )
            seconds[count] = spent
            middle = medians(spent)
            ratios += [
                Ratio(
                    f"loader, {method} labels, {count} workers",
                    middle[method] / items * 1e3,
                    "no labels",
                    middle["none"] / items * 1e3,
                    "ms/item",
                    at_most=bar,
                )
                for method, bar in BARS.items()
            ]
        before, after = _memory(datasets["solad"], memory_items)
    ratios.append(
        Ratio(
            f"memory after {memory_items:,} items",
            after / 2**20,
            f"after {memory_items // 10:,}",
            before / 2**20,
            "MiB",
            at_most=MEMORY_BAR,
        )
    )
    note = f"JPEG scenes of {SIZE[0]} x {SIZE[1]}, {items} items an epoch"
    return Figures(ratios, note, {"seconds": seconds})


def _dataset(views: Views, paths: Paths, method: str) -> ViewDataset:
    """The training views, with the labels that a student of the method learns, or `none`."""
    labels = NO_LABELS
    if method != "none":
        labels = student_labels(Student(config="", method=method), LabelStore(paths.labels))
    return view_dataset(load_split(paths, "train"), view_plan(views), labels)


def _epoch(dataset: ViewDataset, items: int, workers: int) -> Callable[[int], object]:
    """What loads an epoch; its workers live on from one to the next."""
    loader: DataLoader[Any] = DataLoader(
        dataset,
        sampler=[place % len(dataset) for place in range(items)],
        batch_size=BATCH,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collate_views,
    )
    return lambda _: sum(1 for _ in loader)


def _memory(dataset: ViewDataset, items: int) -> tuple[int, int]:
    """Bytes that this process holds after a tenth of the items, and after all."""
    process = psutil.Process()
    before = 0
    for place in tqdm(range(items), desc="loading", unit="item", mininterval=2):
        dataset[place % len(dataset)]
        if place == items // 10:
            before = process.memory_info().rss
    return before, process.memory_info().rss
