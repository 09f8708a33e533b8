"""Batches of views, and how a loader's workers hand them over.

Between processes torch passes a tensor as a file handle, which takes about half a millisecond
whatever its size, and a view has five. Here images of one size go as one tensor, and small tensors
by value; what arrives are the lists that mmengine's `pseudo_collate` makes. In pinned memory, where
there is a GPU: a copy to it then needs no wait.
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
from pipeline.project.machine import loader_processes

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
        return _load_samples, (stream.getvalue(),)

    def pin_memory(self) -> "Samples":
        """Moves the tensors that samples carry to pinned memory, as torch's loader asks."""
        for sample in self:
            for name, value in sample.items():
                if isinstance(value, Tensor):
                    sample.set_field(value.pin_memory(), name)
        return self


def _load_samples(content: bytes) -> Samples:
    return Samples(pickle.loads(content))  # noqa: S301  of a worker of this process


class Images(list[Tensor]):
    """The images of a batch, (3, H, W) uint8 each."""

    def __reduce__(self) -> tuple[Callable[[Any], Any], tuple[Any]]:
        if len({image.shape for image in self}) == 1:
            return Images, (torch.stack(self),)
        return Images, (list(self),)

    def pin_memory(self) -> "Images":
        """The same in pinned memory, as torch's loader asks."""
        return Images(image.pin_memory() for image in self)


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
    dataset: ViewDataset, batches: Iterable[list[int]], workers: int | None
) -> DataLoader[Any]:
    """Loads batches of views.

    Args:
        dataset: of views.
        batches: which views each has, in order.
        workers: processes that load them; see `loader_processes`.
    """
    return DataLoader(
        dataset,
        batch_sampler=list(batches),
        num_workers=loader_processes(workers),
        pin_memory=torch.cuda.is_available(),
        collate_fn=collate_views,
    )
