"""BCKD against its formula in float64, and its class loss against mmdet's quality focal loss."""

import pytest
import torch
from mmdet.models.losses.gfocal_loss import quality_focal_loss_tensor_target
from torch import Tensor

import pipeline.methods.bckd
from pipeline.heads.batch_grid import BatchGrid
from pipeline.heads.registry import family_of
from pipeline.students.distillation import BCKD, BatchTargets
from pipeline.students.losses import BinaryDistillationLoss
from tests.conftest import DEVICES
from tests.heads.zoo import random_network, zoo_model

POSITIVES = 7


def reference(logits: Tensor, teacher: Tensor, own: Tensor, theirs: Tensor, kept: Tensor) -> Tensor:
    """BCKD (arXiv 2308.14286) in float64: logits and probabilities (N, C), boxes (N, 4)."""
    z, t = logits.double(), teacher.double()
    p = 1 / (1 + (-z).exp())
    entropy = -(t * p.log() + (1 - t) * (1 - p).log())
    of_classes = (entropy * (t - p).abs()).sum() / POSITIVES
    a, b = own.double()[kept], theirs.double()[kept]
    shared = torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])
    shared = shared.clamp(min=0).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - shared
    around = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1)
    giou = shared / union - (around - union) / around
    weight = (t - p).abs().amax(1).detach()[kept]
    return of_classes + 4 * ((1 - giou) * weight).sum() / POSITIVES


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["GFL", "PAA", "RTMDet", "TOOD", "YOLOX", "RetinaNet"])
def test_losses_and_gradients_are_those_of_the_formula(name: str, device: str) -> None:
    """Two views, of which the second has priors of the batch's grid outside itself."""
    torch.manual_seed(0)
    network = random_network(zoo_model(name)).to(device)
    family = family_of(network.bbox_head)
    outputs = network.bbox_head(network.extract_feat(torch.randn(2, 3, 160, 128, device=device)))
    maps = [[level.detach().requires_grad_() for level in levels] for levels in outputs]
    grid = BatchGrid(family.grid, (160, 128), [(160, 128), (128, 96)], torch.device(device))
    logits = family.class_logits(maps).flatten(0, 1)
    boxes = family.boxes(maps, grid.priors)
    valid = grid.valid_flags.flatten()
    teacher = torch.rand(logits.shape, device=device) ** 3
    moved = boxes.detach() + torch.rand_like(boxes) * torch.tensor([-1, -1, 1, 1]).to(device) * 9
    (indices,) = (valid & (torch.rand(len(valid), device=device) < 0.1)).nonzero(as_tuple=True)
    targets = BatchTargets(
        grid=grid,
        probabilities=teacher,
        indices=indices,
        max_iou=torch.zeros(len(indices), device=device),
        boxes=moved[indices],
        quality=torch.zeros(len(indices), device=device),
    )
    method = pipeline.methods.bckd.METHOD
    settings = {k: v for k, v in method.distillation.items() if k != "type"}
    losses = BCKD(**settings)(family, maps, targets, POSITIVES)
    kept = torch.zeros_like(valid)
    kept[indices] = True
    expected = reference(logits[valid], teacher[valid], boxes[valid], moved[valid], kept[valid])
    found = sum(losses.values())
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    leaves = [level for levels in maps for level in levels]
    ours = torch.autograd.grad(found, leaves, allow_unused=True, retain_graph=True)
    theirs = torch.autograd.grad(expected, leaves, allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert (one - other).norm() <= 1e-4 * other.norm() + 1e-9


def test_the_class_loss_is_mmdets_quality_focal_loss_of_beta_1() -> None:
    """mmdet's, of tensor targets, is the definition that GFL and BCKD were released with."""
    torch.manual_seed(0)
    logits = (torch.randn(300, 20) * 4).requires_grad_()
    targets = torch.rand(300, 20) * (torch.rand(300, 20) < 0.3)
    found = BinaryDistillationLoss(reduction="none")(logits, targets)
    theirs = quality_focal_loss_tensor_target(logits, targets, beta=1.0, reduction="none")
    torch.testing.assert_close(found.sum(1), theirs, rtol=1e-5, atol=1e-6)
    ours, expected = (torch.autograd.grad(loss.sum(), logits)[0] for loss in (found, theirs))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
