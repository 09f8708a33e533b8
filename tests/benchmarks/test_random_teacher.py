"""A store of COCO's size: what it takes on disk, and that the benchmark reads it."""

import numpy as np
import pytest
import torch

from benchmarks.random_teacher import (
    CLASSES,
    OBJECTS_PER_IMAGE,
    SCALE,
    RandomTeacher,
    draw_view,
    random_images,
    write_random_store,
)
from benchmarks.read_times import time_reads
from pipeline.inspection.store_info import summarise
from pipeline.store.reader import LabelStore
from pipeline.teacher_pass.settings import Labels
from pipeline.teacher_pass.teacher import Least

VIEWS = 16
PADDED = (800, 1344)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "random.zarr"
    write_random_store(path, VIEWS, Labels(), 8)
    return path


@pytest.fixture(scope="module")
def sizes(path) -> dict[str, float]:
    """Bytes a view by array."""
    return {name: size.stored / VIEWS for name, size in summarise(path).sizes.items()}


def test_a_view_has_the_priors_and_classes_of_coco(path) -> None:
    store = LabelStore(path)
    (bucket,) = store.layout.buckets
    assert bucket.padded == PADDED
    assert bucket.priors >= 21_824
    assert store.layout.soft_classes == CLASSES == 80
    store.require_complete()


def test_assignments_take_300_bytes_a_view(sizes) -> None:
    assert sizes["assigned_gt"] <= 300


def test_soft_scores_take_14_kib_a_view(sizes) -> None:
    assert sum(size for name, size in sizes.items() if name != "assigned_gt") <= 14 * 1024


def test_objects_are_like_those_of_coco() -> None:
    images = random_images(256, seed=1)
    counts = [len(image.objects.labels) for image in images]
    assert np.mean(counts) == pytest.approx(OBJECTS_PER_IMAGE, rel=0.05)
    boxes = np.concatenate([image.objects.boxes for image in images])
    assert (boxes >= 0).all()
    assert (boxes[:, 2:] <= SCALE).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    size = np.sqrt(sides.prod(1) / np.prod(SCALE) * 640 * 480)
    assert (size < 32).mean() == pytest.approx(0.41, abs=0.05)
    assert (size > 96).mean() == pytest.approx(0.25, abs=0.05)


def test_outputs_are_like_those_of_a_trained_teacher() -> None:
    teacher = RandomTeacher(seed=1)
    under, medians, ious, learnt, others = [], [], [], [], []
    for image in random_images(VIEWS, seed=1):
        views = draw_view(teacher, image.objects, SCALE).forward_pass()
        assert views.grid.padded == PADDED
        probabilities = teacher.family.class_probabilities(views.outputs)[0]
        under.append((probabilities < 0.01).float().mean().item())
        medians.append(probabilities.median().item())
        predicted = teacher.predict_soft(views.outputs, views.truth, views.grid, Least(0.1, 0.05))
        assignment = teacher.assign(views.outputs, views.truth, views.grid)
        positive = assignment.assigned_gt_inds[0] >= 0
        ious.append(predicted.max_iou[0, positive])
        learnt.append(probabilities[positive].amax(1))
        others.append(probabilities[~positive].amax(1))
    assert np.mean(under) == pytest.approx(0.998, abs=0.0005)
    assert 1e-4 < np.mean(medians) < 2e-3
    # Positives have boxes on objects, and probabilities that stand out.
    assert (torch.cat(ious) > 0).float().mean() > 0.9
    assert torch.cat(learnt).median() > 10 * torch.cat(others).median()


def test_the_same_seed_gives_the_same_outputs() -> None:
    one, other = RandomTeacher(seed=3), RandomTeacher(seed=3)
    one.objects = other.objects = random_images(1, seed=0)[0].objects
    images = torch.empty(1, 3, *PADDED)
    for maps in zip(one.forward(images), other.forward(images), strict=True):
        assert all(map(torch.equal, *maps))


def test_reads_are_faster_than_those_of_zarr(path) -> None:
    times = time_reads(path, reads=20)
    # The bars are 10 and 4, for `python -m benchmarks` on a quiet machine.
    assert times.ratio("assignment") > 3
    assert times.ratio("soft scores") > 1
    assert times.decode is not None


def test_a_store_without_soft_scores_is_timed(tmp_path) -> None:
    path = tmp_path / "hard.zarr"
    write_random_store(path, 2, Labels(soft=False), 8)
    times = time_reads(path, reads=4)
    assert set(times.reads) == {"assignment"}
    assert times.decode is None
