"""How long reads of random views take: through `LabelStore`, and through zarr-python."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr

from pipeline.store.reader import LabelStore
from pipeline.store.schema import ASSIGNED_GT, SOFT_ARRAYS

PASSES = 3


@dataclass(frozen=True)
class ReadTimes:
    """Median milliseconds a view; soft scores are all arrays of them together.

    Attributes:
        reads: by what is read, through `LabelStore`.
        zarr: the same through zarr-python: arrays opened once, then `array[row]`.
        decode: probabilities from codes, None for a store without soft scores.
    """

    reads: dict[str, float]
    zarr: dict[str, float]
    decode: float | None

    def ratio(self, what: str) -> float:
        """How many times as long zarr-python takes."""
        return self.zarr[what] / self.reads[what]


def time_reads(path: Path, reads: int, seed: int = 0) -> ReadTimes:
    """Read random views of a complete store, both ways in turn, in this process.

    The files are in the system's cache: a first pass over them is not counted.

    Args:
        path: the store.
        reads: views to read in each of 3 passes of each way.
        seed: chooses them.

    Raises:
        UserError: there is no store, it is damaged or not complete.
    """
    store = LabelStore(path)
    store.require_complete()
    arrays: dict[str, Sequence[str]] = {"assignment": (ASSIGNED_GT,)}
    ours: dict[str, Callable[[int], Any]] = {"assignment": store.assigned}
    if store.layout.soft_classes:
        arrays["soft scores"] = SOFT_ARRAYS
        ours["soft scores"] = store.soft
    plain = {what: _zarr_reader(path, store, names) for what, names in arrays.items()}
    views = np.random.default_rng(seed).integers(len(store), size=reads).tolist()

    seconds: dict[tuple[str, str], list[float]] = {}
    for number in range(-1, PASSES):
        for what in arrays:
            for way, read in (("ours", ours[what]), ("zarr", plain[what])):
                spent = _seconds(read, views)
                if number >= 0:
                    seconds.setdefault((way, what), []).extend(spent)
    return ReadTimes(
        reads={what: _median(seconds["ours", what]) for what in arrays},
        zarr={what: _median(seconds["zarr", what]) for what in arrays},
        decode=_decode_time(store, views[: max(1, reads // 10)]),
    )


def _zarr_reader(path: Path, store: LabelStore, names: Sequence[str]) -> Callable[[int], Any]:
    table, buckets = store.layout.table, store.layout.buckets
    opened = [
        [zarr.open_array(path / "buckets" / bucket.name / name, mode="r") for name in names]
        for bucket in buckets
    ]

    def read(view: int) -> list[Any]:
        row = int(table["row"][view])
        return [array[row] for array in opened[table["bucket"][view]]]

    return read


def _seconds(read: Callable[[int], Any], views: Sequence[int]) -> list[float]:
    spent = []
    for view in views:
        started = time.perf_counter()
        read(view)
        spent.append(time.perf_counter() - started)
    return spent


def _decode_time(store: LabelStore, views: Sequence[int]) -> float | None:
    if store.coding is None:
        return None
    coding = store.coding
    scores = [store.soft(view) for view in views]
    ready = [[torch.tensor(a) for a in (s.codes, s.tail_mean, s.tail_scale)] for s in scores]
    return _median(_seconds(lambda index: coding.decode(*ready[index]), range(len(ready))))


def _median(seconds: Sequence[float]) -> float:
    return statistics.median(seconds) * 1e3
