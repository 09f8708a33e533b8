"""Teachers that compute in half precision, or with channels last."""

import numpy as np
import pytest
import torch

from pipeline.data.dataset import load_split
from pipeline.store.reader import LabelStore
from pipeline.teacher_pass.label import load_teacher
from pipeline.teacher_pass.teacher import Numerics
from pipeline.verification.verify import verify_labels


def positives(store: LabelStore) -> set[tuple[int, int, int]]:
    """(view, prior, object) of all positives."""
    assigned = {view: store.assigned(view) for view in range(len(store))}
    return {(v, p, rows[p]) for v, rows in assigned.items() for p in np.flatnonzero(rows >= 0)}


@pytest.mark.parametrize(
    ("settings", "agree"),
    [
        ({"autocast": "bfloat16"}, 0.85),
        ({"channels_last": True}, 0.995),
    ],
    ids=str,
)
def test_labels_are_mostly_the_same_and_verified(labelled, tmp_path, settings, agree) -> None:
    project = labelled.copy(tmp_path).change(labels=settings)
    project.fill_store(replace=True)
    exact, other = (positives(LabelStore(p.paths.labels)) for p in (labelled, project))
    assert len(exact & other) / len(exact | other) > agree
    found = verify_labels(project.paths, sample=24, with_teacher=True)
    assert found.recomputed_views >= 24
    assert not found.problems


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_network_alone_computes_in_half_precision(labelled, dtype: str) -> None:
    train = load_split(labelled.paths, "train")
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    exact = load_teacher(labelled.paths, train)[0].forward(images)
    teacher, _ = load_teacher(labelled.paths, train, Numerics(dtype))
    with torch.autocast("cpu", getattr(torch, dtype)):
        expected = teacher.head(teacher.detector.extract_feat(images))[0][0]
    found = teacher.forward(images)
    for levels in found:
        assert all(level.dtype == torch.float32 for level in levels)
    assert torch.equal(found[0][0], expected.float())
    assert not torch.equal(found[0][0], exact[0][0])


def test_channels_last_is_the_layout_of_weights(labelled) -> None:
    train = load_split(labelled.paths, "train")
    teacher, _ = load_teacher(labelled.paths, train, Numerics(channels_last=True))
    weight = teacher.detector.backbone.layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
