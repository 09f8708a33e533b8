"""The batched mixture against scikit-learn's, fit by fit."""

import math

import numpy as np
import pytest
import torch

from pipeline.assignment.mixture import fit_mixtures
from tests.conftest import DEVICES, sklearn_mixture


def sklearn_fit(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What mmdet's PAAHead asks of scikit-learn: component and log density of each cost."""
    mixture = sklearn_mixture(costs)
    return mixture.predict(costs[:, None]), mixture.score_samples(costs[:, None])


def random_costs(rng: np.random.Generator) -> np.ndarray:
    """Costs shaped like a detector's: some low, most higher, of very different spreads."""
    count = int(rng.integers(2, 46))
    low = rng.gamma(2, rng.uniform(0.02, 0.3), count)
    high = rng.uniform(0, 3) + rng.gamma(3, rng.uniform(0.05, 0.5), count)
    return np.sort(np.where(rng.random(count) < rng.uniform(0.1, 0.9), low, high))


def batch(problems: list[np.ndarray], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    costs = torch.zeros(len(problems), 45, dtype=torch.float64)
    valid = torch.zeros(len(problems), 45, dtype=torch.bool)
    for row, problem in enumerate(problems):
        costs[row, : len(problem)] = torch.from_numpy(problem)
        valid[row, : len(problem)] = True
    return costs.to(device), valid.to(device)


@pytest.mark.parametrize("device", DEVICES)
def test_equals_sklearn_on_random_problems(device: str) -> None:
    rng = np.random.default_rng(0)
    problems = [random_costs(rng) for _ in range(400)]
    mixtures = fit_mixtures(*batch(problems, device))
    for row, problem in enumerate(problems):
        component, density = sklearn_fit(problem)
        count = len(problem)
        assert (mixtures.first[row, :count].cpu().numpy() == (component == 0)).all()
        np.testing.assert_allclose(
            mixtures.log_density[row, :count].cpu().numpy(), density, rtol=1e-6, atol=1e-8
        )


@pytest.mark.parametrize(
    ("problem", "tied"),
    [
        pytest.param([1.0, 1.0], [], id="two equal costs"),
        pytest.param([1.0] * 45, [], id="all equal"),
        pytest.param([0.0, 1e6], [], id="far apart"),
        pytest.param([1e-9, 2e-9, 3e-9], [], id="tiny"),
        pytest.param([0.1] * 20 + [5.0] * 20, [], id="two spikes"),
        pytest.param(list(np.linspace(0, 1, 45)), [22], id="even"),
    ],
)
def test_equals_sklearn_on_degenerate_problems(problem: list[float], tied: list[int]) -> None:
    """Where a cost is as likely in both components, rounding decides: `tied` may be either."""
    costs = np.array(problem)
    mixtures = fit_mixtures(*batch([costs], "cpu"))
    component, density = sklearn_fit(costs)
    differ = np.flatnonzero(mixtures.first[0, : len(costs)].numpy() != (component == 0))
    assert set(differ) <= set(tied)
    probabilities = sklearn_mixture(costs).predict_proba(costs[:, None])
    np.testing.assert_allclose(probabilities[tied], 0.5, rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        mixtures.log_density[0, : len(costs)].numpy(), density, rtol=1e-5, atol=1e-6
    )


def test_a_fit_does_not_depend_on_its_batch() -> None:
    rng = np.random.default_rng(1)
    problems = [random_costs(rng) for _ in range(50)]
    together = fit_mixtures(*batch(problems, "cpu"))
    for row, problem in enumerate(problems):
        alone = fit_mixtures(*batch([problem], "cpu"))
        assert torch.equal(alone.log_density[0], together.log_density[row])
        assert torch.equal(alone.first[0], together.first[row])


def test_padding_does_not_count() -> None:
    costs, valid = batch([np.array([0.1, 0.2, 2.0])], "cpu")
    other = costs.masked_fill(~valid, math.inf)
    assert torch.equal(fit_mixtures(costs, valid).first, fit_mixtures(other, valid).first)
