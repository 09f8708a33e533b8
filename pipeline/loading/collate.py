"""Batches of views, and how a loader's workers hand them over.

Between processes torch passes a tensor as a file handle, which takes about half a millisecond
whatever its size, and a view has five. Here images of one size go as one tensor, and small tensors
by value; what arrives is what mmengine's `pseudo_collate` makes.
"""

import io
import pickle
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from mmdet.structures import DetDataSample
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline.loading.dataset import ViewDataset

SMALL = 1 << 14
"""Bytes of a tensor that goes by value, at most."""


class _SmallByValue(ForkingPickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor) and value.nbytes <= SMALL:
            return torch.from_numpy, (value.numpy(),)
        return NotImplemented


class Samples(list[DetDataSample]):
    """The samples of a batch."""

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        stream = io.BytesIO()
        _SmallByValue(stream).dump(list(self))
        return pickle.loads, (stream.getvalue(),)


class Images(list[Tensor]):
    """The images of a batch, (3, H, W) uint8 each."""

    def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[Any]]:
        if len({image.shape for image in self}) == 1:
            return list, (torch.stack(self),)
        return list, (list(self),)


def collate_views(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of items of `ViewDataset`, as mmdet's preprocessors take it.

    Args:
        items: B of them.

    Returns:
        `inputs`, the B images, and `data_samples`, as `pseudo_collate` has them.
    """
    return {
        "inputs": Images(item["inputs"] for item in items),
        "data_samples": Samples(item["data_samples"] for item in items),
    }


def view_loader(
    dataset: ViewDataset, batches: Iterable[list[int]], workers: int
) -> DataLoader[Any]:
    """Loads batches of views.

    Args:
        dataset: of views.
        batches: which views each has, in order.
        workers: processes that load them; 0 for this one.
    """
    return DataLoader(
        dataset,
        batch_sampler=list(batches),
        num_workers=workers,
        collate_fn=collate_views,
    )
