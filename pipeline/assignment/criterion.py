"""Which of two networks teaches an object (CoLAD of LAD, WACV 2022).

Both networks have computed the cost of every candidate. The one whose costs tell good candidates
from bad ones more clearly decides the object's assignment, level by level or as a whole.

Shapes: N candidates of a batch, G groups of them: the objects, or their levels.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipeline.assignment.mixture import fit_mixtures
from pipeline.assignment.paa import TOP_K, place_in_group, pool_candidates

Criterion = Literal["std_mean", "fisher"]


@dataclass(frozen=True)
class Teachers:
    """Who teaches whom.

    Attributes:
        of_candidate: (N,) int64, 0 or 1: the network whose cost counts for the candidate.
        fractions: (2,) float64, the part of the groups that each network teaches; 0 and 0 where
            there is no candidate at all.
    """

    of_candidate: Tensor
    fractions: Tensor


def choose_teachers(
    costs: Tensor,
    objects: Tensor,
    levels: Tensor,
    num_levels: int,
    criterion: Criterion,
    per_level: bool,
) -> Teachers:
    """The network of the higher score teaches; of equal scores, the first.

    A single candidate has no spread: the network of the smaller cost teaches. A network with a
    cost that is not finite teaches only where the other has one, too.

    Args:
        costs: (2, N) what each network says of the candidates.
        objects: (N,) int64, the object of each candidate, numbered through the whole batch.
        levels: (N,) int64, the level of each candidate's prior.
        num_levels: number of levels.
        criterion: what the score is, see `std_mean` and `fisher`.
        per_level: whether each level of an object has a teacher of its own.
    """
    key = objects * num_levels + levels if per_level else objects
    _, group, count = key.unique(return_inverse=True, return_counts=True)
    costs = costs.double()
    mean = _mean(costs, group, count)
    if criterion == "std_mean":
        score = std_mean(costs, group, count)
    else:
        pooled = [pool_candidates(one, objects, levels, num_levels) for one in costs]
        score = torch.stack(
            [
                fisher(one, group, len(count), there)
                for one, there in zip(costs, pooled, strict=True)
            ]
        )
    score = torch.where(count < 2, -mean, score)
    score = torch.where(mean.isfinite() & ~score.isnan(), score, -torch.inf)
    second = score[1] > score[0]
    taught = torch.stack([~second, second]).double().sum(1)
    return Teachers(of_candidate=second.long()[group], fractions=taught / max(len(count), 1))


def std_mean(costs: Tensor, group: Tensor, count: Tensor) -> Tensor:
    """Standard deviation over mean of each group's costs, (K, G); 0 / 0 is NaN.

    Args:
        costs: (K, N) float64 of K networks, not negative.
        group: (N,) int64, in which group each candidate is.
        count: (G,) how many candidates each group has.
    """
    mean = _mean(costs, group, count)
    return _mean((costs - mean[:, group]).square(), group, count).sqrt() / mean


def fisher(costs: Tensor, group: Tensor, num_groups: int, pooled: Tensor) -> Tensor:
    """Fisher's score of the two components of each group's mixture, (G,).

    (mu+ - mu-)^2 / (sigma+^2 + sigma-^2), of the mixture that PAA fits to the costs of the pooled
    candidates; NaN for groups with fewer than 2 of them.

    Args:
        costs: (N,) float64 of one network, finite where pooled.
        group: (N,) int64, in which group each candidate is.
        num_groups: G.
        pooled: (M,) int64, indices of the candidates that PAA's mixture is fitted to.
    """
    members = pooled[group[pooled].argsort(stable=True)]
    row, slot = group[members], place_in_group(group[members])
    pool = costs.new_zeros(num_groups, int(slot.max()) + 1 if len(slot) else TOP_K)
    valid = torch.zeros_like(pool, dtype=torch.bool)
    pool[row, slot] = costs[members]
    valid[row, slot] = True
    enough = valid.sum(1) >= 2
    mixtures = fit_mixtures(pool[enough], valid[enough])
    score = costs.new_full((num_groups,), torch.nan)
    distance = (mixtures.means[:, 0] - mixtures.means[:, 1]).square()
    score[enough] = distance / mixtures.variances.sum(1)
    return score


def _mean(values: Tensor, group: Tensor, count: Tensor) -> Tensor:
    """The mean of each group, (K, G), of (K, N) values."""
    sums = values.new_zeros(len(values), len(count))
    return sums.index_add(1, group, values) / count
