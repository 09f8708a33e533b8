"""What codings write of the views that the study measures, and what comes back.

Shapes: P priors of a view, C classes.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pipeline.teacher_pass.teacher import SoftPredictions
from studies.codings import Arrays, BoxCoding, ClassCoding, StoreCoding, chunk, unchunk
from studies.students import SoftBatch

AnyCoding = ClassCoding | BoxCoding | StoreCoding
Coded = list[list[Arrays]]
"""The arrays of each view of each batch."""

BOX_FIELDS = ("max_iou", "distances", "quality")
"""What a `BoxCoding` codes of `SoftPredictions`."""


def encode_batches(coding: AnyCoding, batches: Sequence[SoftBatch]) -> Coded:
    """What a coding would write of the batches."""
    return [
        [_encode_view(coding, batch, number) for number in range(len(batch.predicted.max_iou))]
        for batch in batches
    ]


def _encode_view(coding: AnyCoding, batch: SoftBatch, number: int) -> Arrays:
    probabilities = batch.predicted.probabilities[number].cpu()
    if isinstance(coding, ClassCoding):
        return coding.encode(probabilities, batch.levels.cpu())
    boxes = [getattr(batch.predicted, name)[number].cpu() for name in BOX_FIELDS]
    if isinstance(coding, BoxCoding):
        return coding.encode(*boxes)
    return coding.encode(probabilities, *boxes)


def _decode_view(coding: AnyCoding, arrays: Arrays, levels: Tensor) -> dict[str, Tensor]:
    """What the arrays of a view say, by field of `SoftPredictions`."""
    if isinstance(coding, ClassCoding):
        return {"probabilities": coding.decode(arrays, levels)}
    if isinstance(coding, BoxCoding):
        return dict(zip(BOX_FIELDS, coding.decode(*arrays), strict=True))
    return coding.decode(arrays)


def decode_batch(coding: AnyCoding, views: list[Arrays], batch: SoftBatch) -> SoftPredictions:
    """What a coding leaves of what the teacher predicts.

    Args:
        coding: the one.
        views: the arrays of each view of the batch.
        batch: with the exact predictions.
    """
    device = batch.predicted.max_iou.device
    decoded = [_decode_view(coding, arrays, batch.levels.cpu()) for arrays in views]
    changed = {name: torch.stack([one[name] for one in decoded]).to(device) for name in decoded[0]}
    return replace(batch.predicted, **changed)


def mean_bytes(coded: Coded) -> float:
    """Mean size of a view, each array compressed as a chunk of the store."""
    views = [arrays for batch in coded for arrays in batch]
    return statistics.mean(sum(len(chunk(array)) for array in arrays) for arrays in views)


def decode_time(coding: AnyCoding, coded: Coded, batches: Sequence[SoftBatch]) -> float:
    """Median milliseconds to decompress and decode a view."""
    spent = []
    for views, batch in zip(coded, batches, strict=True):
        levels = batch.levels.cpu()
        for arrays in views:
            chunks = [chunk(array) for array in arrays]
            started = time.perf_counter()
            read = tuple(unchunk(data, like) for data, like in zip(chunks, arrays, strict=True))
            _decode_view(coding, read, levels)
            spent.append(time.perf_counter() - started)
    return statistics.median(spent) * 1e3
