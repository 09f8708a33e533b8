"""Two-component mixtures of 1-D Gaussians, fitted to many small sets of costs at once.

Each fit is what `sklearn.mixture.GaussianMixture(2)` computes in float64 from the starting point
of PAA (Kim and Lee, ECCV 2020, section 3.1): means at the lowest and the highest cost, weights
0.5, precisions 1, then EM until the mean log-likelihood changes by less than 1e-3.

Shapes: (N, K) with N sets of costs and K the room for costs in a set; component axes come last.
"""

import math
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

TOLERANCE = 1e-3
MAX_ITERATIONS = 100
REGULARISATION = 1e-6
_EMPTY = 10 * torch.finfo(torch.float64).eps
_SCALE = math.sqrt(0.5)
_LOG_NORM = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True)
class Mixtures:
    """What the fits say of the costs.

    Attributes:
        first: (N, K) bool, the cost belongs to component 0, the one of low costs.
        log_density: (N, K) float64, log of the mixture's density at the cost.
        means: (N, 2) float64 of the components.
        variances: (N, 2) float64 of the components.
    """

    first: Tensor
    log_density: Tensor
    means: Tensor
    variances: Tensor


Array = Any
"""A NumPy array or a tensor; fits are written in the words that both have."""


def fit_mixtures(costs: Tensor, valid: Tensor) -> Mixtures:
    """Fit one mixture to each row of costs.

    On the CPU NumPy computes: it begins an operation in half of torch's time, and for a few
    objects' costs that is most of it.

    Args:
        costs: (N, K) finite costs where `valid`; other places do not count.
        valid: (N, K) bool, at least one in each row.
    """
    costs = costs.double()
    if costs.device.type != "cpu":
        return Mixtures(*_fit(torch, costs, valid))
    with np.errstate(all="ignore"):
        return Mixtures(*map(torch.from_numpy, _fit(np, costs.numpy(), valid.numpy())))


def _fit(xp: ModuleType, x: Array, valid: Array) -> tuple[Array, Array, Array, Array]:
    """The fields of `Mixtures`.

    Args:
        xp: numpy or torch, whose arrays these are.
        x: (N, K) float64.
        valid: (N, K) bool.
    """
    low = xp.amin(xp.where(valid, x, math.inf), 1)
    high = xp.amax(xp.where(valid, x, -math.inf), 1)
    x = xp.where(valid, x, low[:, None])
    means = xp.stack([low, high])
    ones = xp.ones_like(means)
    fitted = xp.stack([means, ones * _SCALE, ones * (math.log(0.5) - _LOG_NORM)])
    weight = valid * xp.ones_like(x)

    # Converged rows leave the iteration, so the work is that of the fits still running.
    rows = xp.arange(len(x), device=x.device)
    data = xp.stack([x, weight, weight / weight.sum(1)[:, None]])
    found, previous = fitted, xp.full_like(low, -math.inf)
    for _ in range(MAX_ITERATIONS):
        if not len(rows):
            break
        bound, found = _step(xp, data, found)
        running = ~(abs(bound - previous) < TOLERANCE)
        previous = bound
        if not running.all():
            fitted[..., rows] = found
            rows, previous = rows[running], previous[running]
            data, found = data[:, running], found[..., running]
    fitted[..., rows] = found

    joint = _log_joint(xp, x, fitted)
    means, scales, _ = fitted
    variances = (scales.T / _SCALE) ** -2
    return (joint[0] >= joint[1]) & valid, _log_density(xp, joint), means.T, variances


def _log_joint(xp: ModuleType, x: Array, parameters: Array) -> Array:
    """Log of weight times density, (2, N, K).

    Args:
        xp: numpy or torch.
        x: (N, K).
        parameters: (3, 2, N) means, inverse standard deviations times `_SCALE`, and what the log
            is at the mean.
    """
    means, scales, peaks = parameters
    distance = x - means[..., None]
    distance *= scales[..., None]
    distance *= distance
    return peaks[..., None] - distance


def _log_density(xp: ModuleType, joint: Array) -> Array:
    """Log of the mixture's density (N, K), from what `_log_joint` gives.

    Not by `logaddexp`: the rounding of torch's depends on where in a batch a number stands.
    """
    first, second = joint
    density = xp.log1p(xp.exp(-abs(first - second)))
    density += xp.maximum(first, second)
    return density


def _step(xp: ModuleType, data: Array, parameters: Array) -> tuple[Array, Array]:
    """One step of EM.

    Args:
        xp: numpy or torch.
        data: (3, N, K) costs; 1 for a cost and 0 for an empty place; the same over the number of
            the row's costs.
        parameters: as in `_log_joint`.

    Returns:
        The mean log-likelihood before the step (N,), and the parameters after it.
    """
    x, weight, share = data
    joint = _log_joint(xp, x, parameters)
    density = _log_density(xp, joint)
    joint -= density
    members = xp.exp(joint)
    members *= weight
    total = members.sum(2) + _EMPTY
    means = (members * x).sum(2) / total
    distance = x - means[..., None]
    distance *= distance
    distance *= members
    variance = distance.sum(2) / total
    after = xp.empty_like(parameters)
    scales = (variance + REGULARISATION) ** -0.5
    after[0] = means
    after[1] = scales * _SCALE
    after[2] = xp.log(total / total.sum(0) * scales) - _LOG_NORM
    return (density * share).sum(1), after
