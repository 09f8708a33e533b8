"""Who teaches an object in co-learning, against NumPy and scikit-learn, object by object."""

import math

import numpy as np
import pytest
import torch

from pipeline.assignment.criterion import Teachers, choose_teachers, fisher, std_mean
from pipeline.assignment.paa import pool_candidates
from tests.conftest import sklearn_mixture

LEVELS = 5


def sklearn_fisher(costs: np.ndarray) -> float:
    """Fisher's score of the mixture that mmdet's PAAHead has scikit-learn fit."""
    mixture = sklearn_mixture(costs)
    (low, high), variances = mixture.means_[:, 0], mixture.covariances_.ravel()
    return (low - high) ** 2 / variances.sum()


def lowest(costs: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The 9 lowest costs of each level."""
    return np.concatenate([np.sort(costs[levels == one])[:9] for one in range(LEVELS)])


def direct_score(criterion: str, costs: np.ndarray, levels: np.ndarray) -> float:
    if len(costs) == 1:
        return -costs[0]
    if criterion == "std_mean":
        return np.std(costs) / np.mean(costs)
    return sklearn_fisher(lowest(costs, levels))


def problem(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Costs (2, N) of 40 objects with 1 to 60 candidates each, in mixed order."""
    rng = np.random.default_rng(seed)
    objects = np.repeat(np.arange(0, 120, 3), rng.integers(1, 60, 40))
    rng.shuffle(objects)
    levels = rng.integers(0, LEVELS, len(objects))
    costs = rng.gamma(2, 0.3, (2, len(objects)))
    costs += rng.random(costs.shape) < 0.5
    return torch.from_numpy(costs), torch.from_numpy(objects), torch.from_numpy(levels)


@pytest.mark.parametrize("per_level", [True, False], ids=["per level", "per object"])
@pytest.mark.parametrize("criterion", ["std_mean", "fisher"])
def test_the_teacher_is_that_of_a_direct_computation(criterion: str, per_level: bool) -> None:
    costs, objects, levels = problem(0)
    key = (objects * LEVELS + levels if per_level else objects).numpy()
    expected = np.zeros(len(key), np.int64)
    second = []
    for one in np.unique(key):
        there = key == one
        scores = [direct_score(criterion, c[there], levels.numpy()[there]) for c in costs.numpy()]
        expected[there] = scores[1] > scores[0]
        second.append(scores[1] > scores[0])
    found = choose_teachers(costs, objects, levels, LEVELS, criterion, per_level)
    np.testing.assert_array_equal(found.of_candidate.numpy(), expected)
    assert 0.2 < np.mean(second) < 0.8
    assert found.fractions.tolist() == pytest.approx([1 - np.mean(second), np.mean(second)])


def test_scores_equal_a_direct_computation() -> None:
    costs, objects, levels = problem(1)
    each, group, count = objects.unique(return_inverse=True, return_counts=True)
    spread = std_mean(costs, group, count)
    pooled = pool_candidates(costs[0], objects, levels, LEVELS)
    distance = fisher(costs[0], group, len(each), pooled)
    for index, one in enumerate(each):
        mine = costs[:, objects == one].numpy()
        np.testing.assert_allclose(spread[:, index], mine.std(1) / mine.mean(1), rtol=1e-12)
        pool = lowest(mine[0], levels[objects == one].numpy())
        if len(pool) < 2:
            assert distance[index].isnan()
        else:
            assert distance[index].item() == pytest.approx(sklearn_fisher(pool), rel=1e-6)


def choose(first: list[float], second: list[float], criterion: str) -> Teachers:
    """Of one object, all of whose candidates are on one level."""
    zeros = torch.zeros(len(first), dtype=torch.long)
    costs = torch.tensor([first, second])
    return choose_teachers(costs, zeros, zeros, LEVELS, criterion, per_level=True)


NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("criterion", ["std_mean", "fisher"])
@pytest.mark.parametrize(
    ("first", "second", "teacher"),
    [
        pytest.param([0.4], [0.5], 0, id="single candidate, first is cheaper"),
        pytest.param([0.5], [0.4], 1, id="single candidate, second is cheaper"),
        pytest.param([0.5], [0.5], 0, id="single candidate, tie"),
        pytest.param([0.1, 2.0], [0.1, 2.0], 0, id="tie"),
        pytest.param([1.0, 1.0], [2.0, 2.0], 0, id="no deviation"),
        pytest.param([1.0, 1.0], [0.5, 2.0], 1, id="no deviation of the first"),
        pytest.param([0.5, 2.0], [1.0, 1.0], 0, id="no deviation of the second"),
        pytest.param([0.0, 0.0], [0.0, 0.0], 0, id="all zero"),
        pytest.param([0.0, 0.0], [0.5, 2.0], 1, id="all zero of the first"),
        pytest.param([0.1, NAN], [1.0, 1.1], 1, id="NaN of the first"),
        pytest.param([1.0, 1.1], [0.1, INF], 0, id="infinite cost of the second"),
        pytest.param([NAN], [9.0], 1, id="single NaN of the first"),
        pytest.param([INF, 1.0], [NAN, NAN], 0, id="neither is finite"),
        pytest.param([NAN, NAN], [NAN, NAN], 0, id="all NaN"),
    ],
)
def test_odd_costs(criterion: str, first: list, second: list, teacher: int) -> None:
    found = choose(first, second, criterion)
    assert found.of_candidate.tolist() == [teacher] * len(first)
    assert found.fractions.tolist() == [1 - teacher, teacher]


@pytest.mark.parametrize("criterion", ["std_mean", "fisher"])
@pytest.mark.parametrize("per_level", [True, False])
def test_no_candidates(criterion: str, per_level: bool) -> None:
    none = torch.zeros(0, dtype=torch.long)
    found = choose_teachers(torch.zeros(2, 0), none, none, LEVELS, criterion, per_level)
    assert not len(found.of_candidate)
    assert found.fractions.tolist() == [0, 0]


def test_levels_of_an_object_have_teachers_of_their_own() -> None:
    costs = torch.tensor([[0.1, 2.0, 1.0, 1.0], [1.0, 1.0, 0.1, 1.0]])
    objects, levels = torch.zeros(4, dtype=torch.long), torch.tensor([0, 0, 3, 3])
    apart = choose_teachers(costs, objects, levels, LEVELS, "std_mean", per_level=True)
    assert apart.of_candidate.tolist() == [0, 0, 1, 1]
    assert apart.fractions.tolist() == [0.5, 0.5]
    whole = choose_teachers(costs, objects, levels, LEVELS, "std_mean", per_level=False)
    assert whole.of_candidate.tolist() == [0, 0, 0, 0]
    assert whole.fractions.tolist() == [1, 0]
