"""The fingerprint: everything that labels depend on, as nested plain values."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from pipeline.data.dataset import CheckedSplit
from pipeline.views.priors import PaddedViews

Fingerprint = dict[str, Any]

LABELS_VERSION = 1
"""Of what decides labels, from a view's pixels to the rows of a store.

Raise it by hand in the commit that changes a label, and a store that was made before is refused.
Leave it where labels stay what they were, and all finished stores stay valid: a teacher pass over
COCO takes hours. tests/teacher_pass/test_labels_version.py notices when it should have been raised.
"""


def label_parts(train: CheckedSplit, views: PaddedViews) -> Fingerprint:
    """The part of the fingerprint that a student must share with the store.

    Args:
        train: the training split.
        views: which views of its images the student shows, and its priors.
    """
    return {
        "labels_version": LABELS_VERSION,
        "data": data_part(train),
        "views": views.plan.plain(),
        "priors": views.grid.plain(),
        "padding": {"pad_size_divisor": views.divisor},
    }


def data_part(train: CheckedSplit) -> Fingerprint:
    """What labels depend on of the data set."""
    return {
        "classes": list(train.classes),
        "annotations": train.annotations_digest,
        "images": train.images_digest,
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
