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
    weight = valid.double()
    means = torch.stack([low, high], 1)
    scales = torch.ones_like(means)
    log_weights = torch.full_like(means, math.log(0.5))
    previous = torch.full_like(low, -math.inf)
    active = torch.arange(len(x), device=x.device)

    # Converged rows leave the iteration, so the work is that of the fits still running.
    x_a, weight_a, previous_a = x, weight, previous
    means_a, scales_a, log_weights_a = means, scales, log_weights
    for _ in range(MAX_ITERATIONS):
        if not len(active):
            break
        joint = _log_joint(x_a, means_a, scales_a, log_weights_a)
        norm = joint.logsumexp(2)
        count = weight_a.sum(1)
        bound = (norm * weight_a).sum(1) / count
        means_a, scales_a, log_weights_a = _maximise(
            x_a, (joint - norm[..., None]).exp() * weight_a[..., None]
        )
        means[active], scales[active], log_weights[active] = means_a, scales_a, log_weights_a
        running = ~((bound - previous_a).abs() < TOLERANCE)
        active = active[running]
        x_a, weight_a, previous_a = x_a[running], weight_a[running], bound[running]
        means_a, scales_a = means_a[running], scales_a[running]
        log_weights_a = log_weights_a[running]

    joint = _log_joint(x, means, scales, log_weights)
    return Mixtures(
        first=(joint[..., 0] >= joint[..., 1]) & valid,
        log_density=joint.logsumexp(2),
        means=means,
        variances=scales.pow(-2),
    )


def _log_joint(x: Tensor, means: Tensor, scales: Tensor, log_weights: Tensor) -> Tensor:
    """Log of weight times density, (N, K, 2); `scales` are inverse standard deviations."""
    distance = (x[..., None] - means[:, None]) * scales[:, None]
    return (
        -0.5 * (math.log(2 * math.pi) + distance.square())
        + scales.log()[:, None]
        + log_weights[:, None]
    )


def _maximise(x: Tensor, members: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The M-step: means, inverse standard deviations and log weights, each (N, 2)."""
    total = members.sum(1) + _EMPTY
    means = (members * x[..., None]).sum(1) / total
    variance = (members * (x[..., None] - means[:, None]).square()).sum(1) / total
    weights = total / total.sum(1, keepdim=True)
    return means, (variance + REGULARISATION).rsqrt(), weights.log()
