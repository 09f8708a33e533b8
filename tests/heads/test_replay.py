"""A head's own assignment, replayed from what samples carry, is as good as its assigner."""

from typing import Any

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from pipeline.detector.build import build_detector
from pipeline.heads.batch_grid import BatchGrid
from pipeline.heads.registry import family_of, family_of_model
from pipeline.students.assignment import ASSIGNED, CachedPositives
from pipeline.students.taught import CachedDetector
from tests.conftest import DEVICES
from tests.heads.zoo import FILES, past_the_first_epochs, zoo_model

# DDOD makes two assignments, of which a student learns one; PAA's decision is not its assigner's:
# tests/students/test_same_labels.py.
FAMILIES = [name for name in FILES if name not in ("DDOD", "PAA")]
SIZES = [(256, 192), (192, 256), (160, 224), (256, 256)]


def batch(device: str) -> dict[str, Any]:
    """Views of mixed sizes: objects, a crowd among them, none at all, flipped."""
    generator = torch.Generator().manual_seed(0)
    inputs, samples = [], []
    for number, (height, width) in enumerate(SIZES):
        inputs.append(torch.randint(0, 255, (3, height, width), generator=generator).byte())
        count = 0 if number == 2 else 4
        corners = torch.rand(count, 2, generator=generator) * 100
        boxes = torch.cat(
            [corners, corners + 8 + torch.rand(count, 2, generator=generator) * 80], 1
        )
        labels = torch.randint(10, (count,), generator=generator)
        sample = DetDataSample(metainfo=dict(img_shape=(height, width)))
        kept = torch.arange(count) != 1 if number == 0 else torch.ones(count, dtype=torch.bool)
        if number == 3:
            boxes = boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor(
                [width, 0, width, 0]
            )
        sample.gt_instances = InstanceData(bboxes=boxes[kept], labels=labels[kept])
        sample.ignored_instances = InstanceData(bboxes=boxes[~kept], labels=labels[~kept])
        samples.append(sample)
    return {"inputs": inputs, "data_samples": samples}


def step(network: Any, ready: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict]:
    """The losses of a training step, and the gradients of all weights by name."""
    network.zero_grad()
    losses, found = network.loss(ready["inputs"], ready["data_samples"]), {}
    for name, value in losses.items():
        if "loss" in name:
            parts = value if isinstance(value, (list, tuple)) else [value]
            found[name] = torch.stack(list(parts)).sum()
    sum(found.values()).backward()
    grads = {
        name.removeprefix("detector."): p.grad
        for name, p in network.named_parameters()
        if p.grad is not None
    }
    return {name: value.detach() for name, value in found.items()}, grads


def store_rows(results: list, grid: BatchGrid, whole: bool, empty: list[int]) -> list[torch.Tensor]:
    """What mmdet's assigner said of each view, (P,) on the view's own grid."""
    said = iter(results)
    rows = []
    for view, places in enumerate(grid.places):
        if view in empty and whole:  # mmdet does not ask
            rows.append(torch.zeros(grid.grid.count(grid.own[view]), dtype=torch.int64))
            continue
        gt_inds = next(said).gt_inds
        rows.append(gt_inds[places] if whole else gt_inds)
    return rows


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", FAMILIES)
def test_replaying_gives_the_losses_and_gradients_of_mmdet(name: str, device: str) -> None:
    past_the_first_epochs()
    torch.manual_seed(0)
    model = zoo_model(name)
    family_type = family_of_model(model, "")
    mmdets = build_detector(family_type.recording(ConfigDict(model.to_dict()))).to(device)
    mmdets.init_weights()
    mmdets.train()
    ready = mmdets.data_preprocessor(batch(device), training=True)
    expected, expected_grads = step(mmdets, ready)
    family = family_of(mmdets.bbox_head)
    results = [result for recorder in family.recorders() for result in recorder.take()]
    grid = BatchGrid.of(family.grid, ready["data_samples"], ready["inputs"].device)
    rows = store_rows(results, grid, family.assigns_whole_grid, [2])
    assert sum(int((row > 0).sum()) for row in rows) > 5
    if name == "RetinaNet":
        assert any((row < 0).any() for row in rows)
    for sample, row in zip(ready["data_samples"], rows, strict=True):
        row = row.cpu().numpy()
        priors = np.flatnonzero(row)
        carried = CachedPositives(priors, np.where(row[priors] > 0, row[priors] - 1, -2))
        sample.set_metainfo({ASSIGNED: carried})

    student = CachedDetector(
        detector=family_type.replaying(ConfigDict(model.to_dict())),
        assignment="teacher",
        distillation=None,
    )
    student.detector.load_state_dict(mmdets.state_dict())
    student.to(device).train()
    found, grads = step(student, ready)
    assert found.keys() == expected.keys()
    for loss, value in expected.items():
        torch.testing.assert_close(found[loss], value, rtol=1e-6, atol=0)
    assert grads.keys() == expected_grads.keys()
    for weight, grad in expected_grads.items():
        assert (grads[weight] - grad).norm() <= 1e-6 * grad.norm(), weight
