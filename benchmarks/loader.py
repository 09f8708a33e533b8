"""Loading views with and without labels: the time of an item, and memory over many items."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from torch.utils.data import DataLoader
from tqdm import tqdm

from benchmarks.measure import Figures, Row, alternate, medians
from benchmarks.random_teacher import MODEL
from benchmarks.synthetic import SCENES, write_project
from pipeline.data.dataset import load_data_info
from pipeline.loading.collate import collate_views
from pipeline.loading.replay import Attachments, ViewDataset
from pipeline.project.params import Params, Student
from pipeline.project.paths import Paths
from pipeline.store.reader import LabelStore
from pipeline.students.methods import student_labels
from pipeline.teacher_pass.labelling import load_teacher, view_dataset
from pipeline.teacher_pass.run import precompute_labels
from pipeline.views.plan import view_plan

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
        params, paths = write_project(Path(folder), MODEL, SCENES, SIZE, labels={"workers": 0})
        precompute_labels(params, paths, replace=False)
        datasets = {method: _dataset(params, paths, method) for method in ("none", *BARS)}
        rows, seconds = [], {}
        for count in workers:
            spent = alternate(
                {way: _epoch(dataset, items, count) for way, dataset in datasets.items()}, repeats
            )
            seconds[count] = spent
            middle = medians(spent)
            rows += [
                Row(
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
    rows.append(
        Row(
            f"memory after {memory_items:,} items",
            after / 2**20,
            f"after {memory_items // 10:,}",
            before / 2**20,
            "MiB",
            at_most=MEMORY_BAR,
        )
    )
    note = f"JPEG scenes of {SIZE[0]} x {SIZE[1]}, {items} items an epoch"
    return Figures(rows, note, {"seconds": seconds})


def _dataset(params: Params, paths: Paths, method: str) -> ViewDataset:
    data = load_data_info(paths)
    attached = Attachments()
    if method != "none":
        teacher, _ = load_teacher(paths, data)
        student = Student.model_validate({"config": "", "method": method})
        attached = student_labels(student, LabelStore(paths.labels), teacher.grid)
    return view_dataset(data, view_plan(params.views), attached)


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
