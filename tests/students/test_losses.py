from decimal import Context, Decimal, localcontext

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS

from pipeline.students.losses import SoftLabelLoss, focal_divergence
from tests.conftest import DEVICES


def direct(logits: np.ndarray, target: np.ndarray, gamma: float = 0.5) -> np.ndarray:
    """The formula as written, element by element, to 40 digits: float64 cancels at t = p."""
    values = np.empty(logits.shape)
    with localcontext(Context(prec=40)):
        for i in np.ndindex(logits.shape):
            z, t = Decimal(float(logits[i])), Decimal(float(target[i]))
            p = 1 / (1 + (-z).exp())
            kl = t * (t / p).ln() + (1 - t) * ((1 - t) / (1 - p)).ln()
            values[i] = kl * ((t - p) ** 2 + Decimal("1e-6")) ** (Decimal(gamma) / 2)
    return values


def long_tailed(rows: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and targets like a detector's: most are small, the student is near the teacher."""
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(rows, classes, generator=generator, dtype=torch.float64) * 2.5 - 5
    student = teacher + torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return student, teacher.sigmoid()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_equals_the_formula(device: str, gamma: float):
    logits, target = long_tailed(200, 7)
    expected = direct(logits.numpy(), target.numpy(), gamma)
    found = focal_divergence(logits.to(device), target.to(device), gamma)
    np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_float32_sum_equals_the_formula(device: str):
    logits, target = (part.float() for part in long_tailed(500, 10))
    expected = direct(logits.numpy(), target.numpy()).sum()
    loss = SoftLabelLoss(reduction="sum")(logits.to(device), target.to(device))
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_float32_is_exact_in_the_far_tail():
    # A cross-entropy minus an entropy has an error of 1e-7 here: as large as the loss.
    logits = torch.linspace(-14, -7, 500)
    target = (logits + 0.3).sigmoid()
    expected = direct(logits.numpy(), target.numpy())
    np.testing.assert_allclose(focal_divergence(logits, target, 0.5), expected, rtol=1e-3)
    assert float(focal_divergence(logits, target, 0.5).sum()) == pytest.approx(
        expected.sum(), rel=1e-5
    )


@pytest.mark.parametrize("device", DEVICES)
def test_gradient_by_finite_differences(device: str):
    logits, target = long_tailed(12, 4)
    target[0] = torch.tensor([0.0, 1.0, 0.5, 1e-9])
    target, weight = target.to(device), torch.rand(12, dtype=torch.float64, device=device)
    loss = SoftLabelLoss(loss_weight=10)
    assert torch.autograd.gradcheck(
        lambda z: loss(z, target, weight, avg_factor=3.7),
        logits.to(device).requires_grad_(),
        rtol=1e-5,
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certain_targets_and_extreme_logits(device: str, dtype: torch.dtype):
    z = torch.tensor([-1e4, -50.0, -1.0, 0.0, 1.0, 50.0, 1e4], dtype=dtype, device=device)
    logits = z.repeat(4, 1).requires_grad_()
    target = torch.tensor([0.0, 1.0, 1e-30, 0.5], dtype=dtype, device=device)[:, None].expand(4, 7)
    loss = focal_divergence(logits, target, 0.5)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient).all()
    assert (loss >= 0).all()
    loss = loss.detach()
    # A certain and wrong student: KL is the logit; |t - p| is 1.
    assert float(loss[0, 5]) == pytest.approx(50, rel=1e-6)
    assert float(loss[1, 1]) == pytest.approx(50, rel=1e-6)
    assert float(gradient[0, 5]) == pytest.approx(1, rel=1e-6)
    assert float(gradient[1, 1]) == pytest.approx(-1, rel=1e-6)
    # A certain and right one: nothing to learn.
    assert float(loss[0, 1]) == pytest.approx(0, abs=1e-20)
    assert float(loss[1, 5]) == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("device", DEVICES)
def test_no_gradient_where_student_equals_teacher(device: str):
    logits = torch.tensor([-9.0, -2.0, 0.0, 3.0], device=device).requires_grad_()
    loss = focal_divergence(logits, logits.sigmoid(), 0.5).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    assert abs(loss.item()) < 1e-7
    assert float(gradient.abs().max()) < 1e-6


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_computes_in_float32(device: str):
    logits, target = (part.float().to(device) for part in long_tailed(50, 3))
    layer = torch.nn.Linear(3, 3).to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        half = layer(logits)
        assert half.dtype == torch.bfloat16
        loss = SoftLabelLoss()(half, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, SoftLabelLoss()(half.float(), target), rtol=0, atol=0)
    loss.backward()
    assert torch.isfinite(layer.weight.grad).all()


def test_weights_and_reductions_are_those_of_mmdet():
    logits, target = long_tailed(6, 3)
    loss = MODELS.build(dict(type="SoftLabelLoss", loss_weight=10.0))
    each = 10 * focal_divergence(logits, target, 0.5)
    row, full = torch.rand(6), torch.rand(6, 3)

    def check(found: torch.Tensor, expected: torch.Tensor) -> None:
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)

    check(loss(logits, target), each.mean())
    check(loss(logits, target, reduction_override="sum"), each.sum())
    check(loss(logits, target, row, reduction_override="none"), each * row[:, None])
    check(loss(logits, target, full, avg_factor=2.5), (each * full).sum() / 2.5)
    check(loss(logits, target, row, avg_factor=torch.tensor(2.5)), (each.T * row).sum() / 2.5)
    check(loss(logits[:, 0], target[:, 0], row), (each[:, 0] * row).mean())
    assert torch.isfinite(loss(logits, target, row * 0, avg_factor=0.0))


def test_no_rows():
    logits = torch.zeros(0, 5, requires_grad=True)
    loss = SoftLabelLoss()(logits, torch.zeros(0, 5), avg_factor=1.0)
    loss.backward()
    assert float(loss) == 0


def test_targets_get_no_gradient():
    logits, target = long_tailed(3, 2)
    target.requires_grad_()
    SoftLabelLoss()(logits.requires_grad_(), target).backward()
    assert target.grad is None


@pytest.mark.parametrize(
    ("logits", "arguments", "message"),
    [
        ((4, 3), {"target": torch.rand(4, 2)}, "targets"),
        ((4, 3), {"target": torch.rand(4, 3), "weight": torch.rand(3)}, "weights"),
        ((4, 3), {"target": torch.rand(4, 3), "reduction_override": "max"}, "reduction"),
        (
            (4, 3),
            {"target": torch.rand(4, 3), "avg_factor": 2, "reduction_override": "sum"},
            "avg_factor",
        ),
    ],
)
def test_wrong_arguments(logits: tuple[int, ...], arguments: dict, message: str):
    with pytest.raises(ValueError, match=message):
        SoftLabelLoss()(torch.rand(logits), **arguments)
