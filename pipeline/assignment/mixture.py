"""Two-component mixtures of 1-D Gaussians, fitted to many small sets of costs at once.

Each fit is what `sklearn.mixture.GaussianMixture(2)` computes in float64 from the starting point
of PAA (Kim and Lee, ECCV 2020, section 3.1): means at the lowest and the highest cost, weights
0.5, precisions 1, then EM until the mean log-likelihood changes by less than 1e-3.

Shapes: (N, K) with N sets of costs and K the room for costs in a set; component axes come last.
"""

import math
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.assignment.arrays import Array, arrays

TOLERANCE = 1e-3
MAX_ITERATIONS = 100
REGULARISATION = 1e-6
_EMPTY = 10 * torch.finfo(torch.float64).eps
_LOG_NORM = 0.5 * math.log(2 * math.pi)
_FEW = 8
"""Rows that are not sorted out: it takes longer than to compute with them."""
_NOBODY = 300.0
"""Added to a log density, it leaves a member of 1e-130, which no sum notices."""


@dataclass(frozen=True)
class Mixtures:
    """What the fits say of the costs.

    Attributes:
        first: (N, K) bool, the cost belongs to component 0, the one of low costs.
        log_density: (N, K) float64, log of the mixture's density at the cost; 0 at empty places.
        means: (N, 2) float64 of the components.
        variances: (N, 2) float64 of the components.
    """

    first: Tensor
    log_density: Tensor
    means: Tensor
    variances: Tensor


def fit_mixtures(costs: Tensor, valid: Tensor) -> Mixtures:
    """Fit one mixture to each row of costs.

    Args:
        costs: (N, K) finite costs where `valid`; other places do not count.
        valid: (N, K) bool, at least one in each row.
    """
    return Mixtures(*map(torch.as_tensor, fit_arrays(*arrays(costs.double(), valid))))


def fit_arrays(xp: ModuleType, costs: Array, valid: Array) -> tuple[Array, Array, Array, Array]:
    """What `fit_mixtures` does, with arrays of one library.

    Args:
        xp: numpy or torch.
        costs: (N, K) float64.
        valid: (N, K) bool.

    Returns:
        The fields of `Mixtures`.
    """
    if xp is torch:
        return _fit(torch, costs, valid)
    used = _used_columns(valid)
    first, log_density = np.zeros_like(valid), np.zeros_like(costs)
    with np.errstate(all="ignore"):
        fits = _fit(np, costs[:, :used], valid[:, :used])
    first[:, :used], log_density[:, :used], means, variances = fits
    return first, log_density, means, variances


def _used_columns(valid: npt.NDArray[np.bool_]) -> int:
    """The number of columns up to the last one with a cost, in eights or all.

    NumPy adds numbers in eight sums. In whole eights, empty columns more or less change none of
    them, so a fit does not depend on the others.
    """
    columns = np.flatnonzero(valid.any(axis=0))
    last = int(columns[-1]) + 1 if len(columns) else 0
    return min(max(-(-last // 8), 1) * 8, valid.shape[1])


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
    weight = valid * xp.ones_like(x)
    costs = x, (1 - weight) * _NOBODY, weight / weight.sum(1)[:, None]
    means = xp.stack([low, high])
    precisions = xp.full_like(means, 0.5)
    peaks = xp.full_like(means, math.log(0.5) - _LOG_NORM)
    fit = means, precisions, peaks
    squares = _squares(x, means)

    fitted = [xp.empty_like(parameter) for parameter in fit]
    rows = xp.arange(len(x), device=x.device)
    running = xp.ones_like(rows, dtype=bool)
    previous = xp.full_like(low, -math.inf)
    for _ in range(MAX_ITERATIONS):
        bound, fit, squares = _step(xp, costs, fit, squares)
        ended = running & (abs(bound - previous) < TOLERANCE)
        previous = bound
        if not ended.any():
            continue
        _keep(fitted, fit, rows, ended)
        running &= ~ended
        left = int(running.sum())
        if not left:
            break
        # Sorting out what has ended takes time, too.
        if left <= 0.75 * len(rows) and len(rows) > _FEW:
            rows, previous = rows[running], previous[running]
            costs = tuple(part[running] for part in costs)
            fit = tuple(parameter[:, running] for parameter in fit)
            squares = squares[:, running]
            running = running[running]
    _keep(fitted, fit, rows, running)

    means, precisions, peaks = fitted
    joint = _log_joint(_squares(x, means), precisions, peaks)
    density = xp.where(valid, _log_density(xp, joint), 0)
    return (joint[0] >= joint[1]) & valid, density, means.T, 0.5 / precisions.T


def _keep(fitted: list[Array], fit: tuple[Array, ...], rows: Array, which: Array) -> None:
    """Write the parameters (2, n) of some of the rows to those of all, (2, N).

    Args:
        fitted: each parameter of all rows.
        fit: each parameter of the rows that are still fitted.
        rows: (n,) which of all these are.
        which: (n,) bool, the ones to write.
    """
    places = rows[which]
    for whole, parameter in zip(fitted, fit, strict=True):
        whole[:, places] = parameter[:, which]


def _squares(x: Array, means: Array) -> Array:
    """Squared distances (2, N, K) of costs (N, K) from means (2, N)."""
    squares = x - means[..., None]
    squares *= squares
    return squares


def _log_joint(squares: Array, precisions: Array, peaks: Array) -> Array:
    """Log of weight times density, (2, N, K).

    Args:
        squares: (2, N, K) squared distances from the means.
        precisions: (2, N), halved.
        peaks: (2, N) what the log is at the mean.
    """
    return peaks[..., None] - squares * precisions[..., None]


def _log_density(xp: ModuleType, joint: Array) -> Array:
    """Log of the mixture's density (N, K), from what `_log_joint` gives.

    Not by `logaddexp`: the rounding of torch's depends on where in a batch a number stands.
    """
    first, second = joint
    high = xp.maximum(first, second)
    density = xp.log1p(xp.exp(xp.minimum(first, second) - high))
    density += high
    return density


def _step(
    xp: ModuleType, costs: tuple[Array, ...], fit: tuple[Array, ...], squares: Array
) -> tuple[Array, tuple[Array, ...], Array]:
    """One step of EM.

    Args:
        xp: numpy or torch.
        costs: three of (N, K): the costs; 0 for a cost and `_NOBODY` for an empty place; 1 over
            the number of the row's costs for a cost and 0 for an empty place.
        fit: three of (2, N): means, halved precisions, and what `_log_joint` is at the mean.
        squares: (2, N, K) of `_squares`.

    Returns:
        The mean log-likelihood before the step (N,); fit and squares after it.
    """
    x, empty, share = costs
    _, precisions, peaks = fit
    joint = _log_joint(squares, precisions, peaks)
    density = _log_density(xp, joint)
    bound = (density * share).sum(1)
    density += empty
    joint -= density
    members = xp.exp(joint)
    total = members.sum(2) + _EMPTY
    means = (members * x).sum(2) / total
    squares = _squares(x, means)
    members *= squares
    variance = members.sum(2) / total
    variance += REGULARISATION
    total /= total[0] + total[1]
    peaks = xp.log(total * variance**-0.5) - _LOG_NORM
    return bound, (means, 0.5 / variance, peaks), squares
