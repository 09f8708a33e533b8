"""Two-component mixtures of 1-D Gaussians, fitted to many small sets of costs at once.

Each fit is what `sklearn.mixture.GaussianMixture(2)` computes in float64 from the starting point
of PAA (Kim and Lee, ECCV 2020, section 3.1): means at the lowest and the highest cost, weights
0.5, precisions 1, then EM until the mean log-likelihood changes by less than 1e-3.

Shapes: (N, K) with N sets of costs and K the room for costs in a set; component axes come last.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

TOLERANCE = 1e-3
MAX_ITERATIONS = 100
REGULARISATION = 1e-6
_EMPTY = 10 * torch.finfo(torch.float64).eps


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


def fit_mixtures(costs: Tensor, valid: Tensor) -> Mixtures:
    """Fit one mixture to each row of costs.

    Args:
        costs: (N, K) finite costs where `valid`; other places do not count.
        valid: (N, K) bool, at least one in each row.
    """
    x = costs.double()
    low = x.masked_fill(~valid, math.inf).amin(1)
    high = x.masked_fill(~valid, -math.inf).amax(1)
    x = torch.where(valid, x, low[:, None])
    means = torch.stack([low, high])
    half = torch.full_like(means, math.log(0.5))
    fitted = torch.stack([means, torch.ones_like(means), half])

    # Converged rows leave the iteration, so the work is that of the fits still running.
    rows = torch.arange(len(x), device=x.device)
    data, found = torch.stack([x, valid.double()]), fitted.clone()
    previous = torch.full_like(low, -math.inf)
    for _ in range(MAX_ITERATIONS):
        if not len(rows):
            break
        bound, found = _step(data[0], data[1], found)
        running = (~((bound - previous).abs() < TOLERANCE)).nonzero()[:, 0]
        previous = bound
        if len(running) < len(rows):
            fitted[..., rows] = found
            rows, previous = rows[running], previous[running]
            data, found = data[:, running], found[..., running]
    fitted[..., rows] = found

    joint = _log_joint(x, fitted)
    means, scales, _ = fitted
    return Mixtures(
        first=(joint[0] >= joint[1]) & valid,
        log_density=_log_density(joint),
        means=means.T,
        variances=scales.T.pow(-2),
    )


def _log_joint(x: Tensor, parameters: Tensor) -> Tensor:
    """Log of weight times density, (2, N, K).

    Args:
        x: (N, K).
        parameters: (3, 2, N) means, inverse standard deviations and log weights.
    """
    means, scales, log_weights = parameters
    distance = (x - means[..., None]).mul_(scales[..., None])
    exponent = distance.square_().add_(math.log(2 * math.pi)).mul_(-0.5)
    return exponent.add_(scales.log()[..., None]).add_(log_weights[..., None])


def _log_density(joint: Tensor) -> Tensor:
    """Log of the mixture's density (N, K), from what `_log_joint` gives.

    Not by `torch.logaddexp`: its rounding depends on where in a batch a number stands.
    """
    first, second = joint
    return (first - second).abs_().neg_().exp_().log1p_().add_(torch.maximum(first, second))


def _step(x: Tensor, weight: Tensor, parameters: Tensor) -> tuple[Tensor, Tensor]:
    """One step of EM.

    Args:
        x: (N, K).
        weight: (N, K) 1 for a cost and 0 for an empty place.
        parameters: as in `_log_joint`.

    Returns:
        The mean log-likelihood before the step (N,), and the parameters after it.
    """
    joint = _log_joint(x, parameters)
    norm = _log_density(joint)
    bound = (norm * weight).sum(1) / weight.sum(1)
    members = joint.sub_(norm).exp_().mul_(weight)
    total = members.sum(2) + _EMPTY
    means = (members * x).sum(2) / total
    variance = (x - means[..., None]).square_().mul_(members).sum(2) / total
    scales = (variance + REGULARISATION).rsqrt_()
    return bound, torch.stack([means, scales, (total / total.sum(0)).log_()])
