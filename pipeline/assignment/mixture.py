"""Two-component mixtures of 1-D Gaussians, fitted to many small sets of costs at once.

Each fit is what `sklearn.mixture.GaussianMixture(2)` computes in float64 from the starting point
of PAA (Kim and Lee, ECCV 2020, section 3.1): means at the lowest and the highest cost, weights
0.5, precisions 1, then EM until the mean log-likelihood changes by less than 1e-3.

PAA wants to know which candidates of an object are good without a threshold of its own: for costs
of 0.9, 1.0, 1.1, 1.5, 3.0, 3.1 the fit finds a component about 1.1 and one about 3.05, so the first
four are good ones, however low or high all of them are.

Shapes: (N, K) with N sets of costs and K the room for costs in a set; in `_Fit`, the component
comes first.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.project.transfer import send

TOLERANCE = 1e-3
MAX_ITERATIONS = 100
REGULARISATION = 1e-6
_EMPTY = 10 * torch.finfo(torch.float64).eps
_LOG_NORM = 0.5 * math.log(2 * math.pi)


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


class _Fit(NamedTuple):
    """The parameters of N mixtures.

    Attributes:
        means: (2, N).
        precisions: (2, N), halved.
        peaks: (2, N) log of weight times density at the mean.
    """

    means: Tensor
    precisions: Tensor
    peaks: Tensor

    def log_joint(self, x: Tensor) -> Tensor:
        """Log of weight times density at costs (N, K), (2, N, K)."""
        squares = (x - self.means[..., None]).square()
        return self.peaks[..., None] - squares * self.precisions[..., None]

    def rows(self, which: Tensor) -> "_Fit":
        """Those of some of the mixtures."""
        return _Fit(*(parameter[:, which] for parameter in self))


def fit_mixtures(costs: Tensor, valid: Tensor) -> Mixtures:
    """Fit one mixture to each row of costs, on the CPU.

    A fit is up to a hundred rounds of tiny operations, which would keep a GPU waiting. It also
    makes the fits of equal costs equal, whatever the device.

    Args:
        costs: (N, K) finite costs where `valid`; other places do not count.
        valid: (N, K) bool, at least one in each row.
    """
    x, valid = costs.cpu().double(), valid.cpu()
    low = torch.where(valid, x, torch.inf).amin(1)
    high = torch.where(valid, x, -torch.inf).amax(1)
    x = torch.where(valid, x, low[:, None])
    fit = _fit(x, valid.double(), low, high)
    joint = fit.log_joint(x)
    first = (joint[0] >= joint[1]) & valid
    log_density = torch.where(valid, _log_density(joint), 0)
    found = first, log_density, fit.means.T, 0.5 / fit.precisions.T
    return Mixtures(*send(found, costs.device))


def _fit(x: Tensor, weight: Tensor, low: Tensor, high: Tensor) -> _Fit:
    """EM, until each row has ended.

    Args:
        x: (N, K) float64; at empty places anything that is finite.
        weight: (N, K) float64, 1 for a cost and 0 for an empty place.
        low: (N,) the lowest cost.
        high: (N,) the highest cost.
    """
    means = torch.stack([low, high])
    fit = _Fit(
        means=means,
        precisions=torch.full_like(means, 0.5),
        peaks=torch.full_like(means, math.log(0.5) - _LOG_NORM),
    )
    fitted = _Fit(*(torch.empty_like(parameter) for parameter in fit))
    running = torch.arange(len(x), device=x.device)
    previous = torch.full_like(low, -torch.inf)
    for _ in range(MAX_ITERATIONS):
        bound, fit = _step(x, weight, fit)
        ended = (bound - previous).abs() < TOLERANCE
        previous = bound
        if not ended.any():
            continue
        _keep(fitted, fit.rows(ended), running[ended])
        going_on = ~ended
        running, previous, fit = running[going_on], previous[going_on], fit.rows(going_on)
        x, weight = x[going_on], weight[going_on]
        if not len(running):
            break
    _keep(fitted, fit, running)
    return fitted


def _keep(fitted: _Fit, fit: _Fit, rows: Tensor) -> None:
    """Write the parameters of some mixtures to those of all.

    Args:
        fitted: of all.
        fit: of n of them.
        rows: (n,) which these are.
    """
    for whole, part in zip(fitted, fit, strict=True):
        whole[:, rows] = part


def _log_density(joint: Tensor) -> Tensor:
    """Log of the mixture's density (N, K), from what `log_joint` gives.

    Not by `logaddexp`: its rounding depends on where in a batch a number stands.
    """
    first, second = joint
    high = torch.maximum(first, second)
    return (torch.minimum(first, second) - high).exp().log1p() + high


def _step(x: Tensor, weight: Tensor, fit: _Fit) -> tuple[Tensor, _Fit]:
    """One step of EM: the mean log-likelihood before it (N,), and the fit after it.

    Args:
        x: (N, K).
        weight: (N, K), 1 for a cost and 0 for an empty place.
        fit: of the N rows.
    """
    joint = fit.log_joint(x)
    density = _log_density(joint)
    bound = (density * weight).sum(1) / weight.sum(1)
    members = (joint - density).exp() * weight
    total = members.sum(2) + _EMPTY
    means = (members * x).sum(2) / total
    variance = (members * (x - means[..., None]).square()).sum(2) / total + REGULARISATION
    share = total / (total[0] + total[1])
    return bound, _Fit(means, 0.5 / variance, (share * variance**-0.5).log() - _LOG_NORM)
