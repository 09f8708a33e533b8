"""The fingerprint: everything that labels depend on, as nested plain values with a digest."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from pipeline.data.dataset import DataInfo
from pipeline.views.plan import ViewPlan
from pipeline.views.priors import PriorGrid

Fingerprint = dict[str, Any]


def digest(values: Fingerprint) -> str:
    """sha256 of nested plain values as JSON with sorted keys."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts with their dotted names; lists are leaves."""
    if isinstance(value, dict):
        for key in sorted(value):
            yield from flatten(value[key], f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def differences(expected: Fingerprint, found: Fingerprint) -> list[str]:
    """One line for each field in which two fingerprints (or parts of them) differ."""
    # JSON turns tuples into lists; compare what a file would hold.
    ours = dict(flatten(json.loads(json.dumps(expected))))
    theirs = dict(flatten(json.loads(json.dumps(found))))
    absent = "nothing"
    return [
        f"{name}: expected {ours.get(name, absent)}, found {theirs.get(name, absent)}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name, absent) != theirs.get(name, absent)
    ]


def label_parts(
    data: DataInfo, plan: ViewPlan, grid: PriorGrid, pad_size_divisor: int
) -> Fingerprint:
    """The part of the fingerprint that a student must share with the store.

    Args:
        data: the checked data set.
        plan: the view plan.
        grid: the priors.
        pad_size_divisor: padded sides are multiples of it.
    """
    return {
        "data": {
            "classes": list(data.classes),
            "annotations": data.train.annotations_digest,
            "images": data.train.images_digest,
        },
        "views": plan.plain(),
        "priors": {"strides": list(grid.strides), "scale": grid.scale},
        "padding": {"pad_size_divisor": pad_size_divisor},
    }


def metadata_digests(path: Path) -> dict[str, str]:
    """sha256 of each metadata file below a store's root, by its place."""
    return {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.glob("*/**/zarr.json"))
    }


def column_digests(table: Mapping[str, npt.NDArray]) -> dict[str, str]:
    """sha256 of the entries of each column of the view table, little-endian."""
    return {
        name: hashlib.sha256(column.astype(column.dtype.newbyteorder("<")).tobytes()).hexdigest()
        for name, column in table.items()
    }
