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
from torch.utils.data import DataLoader, get_worker_info

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

    def share_memory(self) -> "Samples":
        """The same, with large tensors in memory that processes share."""
        return self._with_tensors(lambda one: one.share_memory_() if one.nbytes > SMALL else one)

    def pin_memory(self) -> "Samples":
        """The same, with tensors in pinned memory, as torch's loader asks."""
        return self._with_tensors(Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> "Samples":
        for sample in self:
            for name, value in sample.items():
                if isinstance(value, Tensor):
                    sample.set_field(change(value), name)
        return self


def _load_samples(content: bytes) -> Samples:
    return Samples(pickle.loads(content))  # noqa: S301  of a process of ours


class Images(list[Tensor]):
    """The images of a batch, (3, H, W) uint8 each."""

    def share_memory(self) -> "Images":
        """The same in memory that processes share; those of one size side by side."""
        if len({image.shape for image in self}) == 1:
            return _SharedImages(torch.stack(self).share_memory_())
        return Images(image.share_memory_() for image in self)

    def pin_memory(self) -> "Images":
        """The same in pinned memory, as torch's loader asks."""
        return Images(image.pin_memory() for image in self)


class _SharedImages(Images):
    """Images of one size, which are passed to another process as one tensor (B, 3, H, W)."""

    def __init__(self, together: Tensor) -> None:
        super().__init__(together)
        self.together = together

    def __reduce__(self) -> tuple[Callable[[Tensor], Any], tuple[Tensor]]:
        return Images, (self.together,)


def collate_views(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of items of `ViewDataset`, as mmdet's preprocessors take it.

    Args:
        items: B of them.

    Returns:
        `inputs`, the B images, and `data_samples`, as `pseudo_collate` has them.

    Raises:
        RuntimeError: in a worker of a loader, there is too little shared memory. A worker that
            finds it out later, while it hands the batch over, would be waited for in vain.
    """
    images = Images(item["inputs"] for item in items)
    samples = Samples(item["data_samples"] for item in items)
    if get_worker_info():
        images, samples = images.share_memory(), samples.share_memory()
    return {"inputs": images, "data_samples": samples}


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
