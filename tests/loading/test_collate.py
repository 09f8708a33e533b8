"""Batches as a loader's workers hand them over: what mmengine's collate makes of the same items."""

import io
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate

from pipeline.data.dataset import load_split
from pipeline.loading.collate import SMALL, Samples, view_loader
from pipeline.loading.dataset import view_dataset
from pipeline.loading.transforms import ALL_OBJECTS
from pipeline.store.reader import LabelStore
from pipeline.students.cached import student_labels
from pipeline.students.settings import Student
from pipeline.views.plan import view_plan


def flat(value, name: str = "") -> dict[str, object]:
    """The arrays and plain values in a batch, by where they are."""
    if isinstance(value, torch.Tensor):
        return {name: (value.dtype, value.tolist())}
    if isinstance(value, np.ndarray):
        return {name: (value.dtype, value.tolist())}
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, (list, tuple)):
        parts = enumerate(value)
    elif hasattr(value, "__dict__"):
        parts = vars(value).items()
    else:
        return {name: value}
    return {key: leaf for k, part in parts for key, leaf in flat(part, f"{name}.{k}").items()}


def dataset_of(labelled, method: str | None):
    labels = ALL_OBJECTS
    if method:
        student = Student(config="", method=method)
        labels = student_labels(student, LabelStore(labelled.paths.labels))
    split = load_split(labelled.paths, "train")
    return view_dataset(split, view_plan(labelled.params.views), labels)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("method", [None, "lad", "solad"])
def test_a_batch_is_what_mmengine_collates(labelled, method: str | None, workers: int) -> None:
    dataset = dataset_of(labelled, method)
    # The last batch has views of several sizes.
    batches = [[0, 1], [5, 4, 3], list(range(len(dataset)))]
    for views, batch in zip(batches, view_loader(dataset, batches, workers), strict=True):
        expected = pseudo_collate([dataset[view] for view in views])
        assert flat(batch) == flat(expected)
    assert len({image.shape for image in batch["inputs"]}) > 1


def test_only_large_tensors_are_passed_as_file_handles() -> None:
    def pickled(tensor: torch.Tensor) -> bytes:
        stream = io.BytesIO()
        ForkingPickler(stream).dump(Samples([tensor]))
        return stream.getvalue()

    size = SMALL // 4
    assert len(pickled(torch.zeros(size))) > SMALL
    assert len(pickled(torch.zeros(size + 1))) < SMALL


def test_images_of_one_size_are_passed_as_one(labelled) -> None:
    (batch,) = view_loader(dataset_of(labelled, None), [[0, 1, 0]], 1)
    assert len({image.untyped_storage().data_ptr() for image in batch["inputs"]}) == 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("workers", [0, 1])
def test_for_a_gpu_batches_lie_in_pinned_memory(labelled, workers: int) -> None:
    (batch,) = view_loader(dataset_of(labelled, "solad"), [[0, 1, 0]], workers)
    assert all(image.is_pinned() for image in batch["inputs"])
    assert all(sample.soft_codes.is_pinned() for sample in batch["data_samples"])
