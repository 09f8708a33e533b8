"""The PAA rule: which prior learns which object (Kim and Lee, ECCV 2020, section 3.1).

The definition is mmdet's `PAAHead`. Here it runs for all objects, images and levels of a batch
at once, on the device of its inputs; LAD (WACV 2022) is the same rule on a teacher's costs.

Shapes: B images on one grid of P priors, M room for objects in an image, N candidates. Boxes are
xyxy in pixels of the view.
"""

import math
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from pipeline.assignment.arrays import Array, arrays, library
from pipeline.assignment.iou import prior_ious
from pipeline.assignment.mixture import fit_arrays
from pipeline.data.ground_truth import GroundTruth
from pipeline.views.priors import Priors

BACKGROUND = -1
POSITIVE_IOU = 0.1
TOP_K = 9


def find_candidates(
    priors: Priors, truth: GroundTruth, valid_flags: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Which prior may learn which object: mmdet's `MaxIoUAssigner` with PAA's settings.

    A prior is a candidate of the object that it overlaps most, by an IoU of 0.1 or more. After
    that, every object takes the priors that overlap it most, however little; of two objects that
    want the same prior, the later one gets it.

    Args:
        priors: of the images.
        truth: the objects; what is not valid is not learnt.
        valid_flags: (B, P) bool, the priors of each image's own grid, where that is smaller; others
            are no candidates.

    Returns:
        Image, prior and object of each candidate, (N,) int64 each, in order of prior and image.
    """
    if not truth.boxes.shape[1]:
        nothing = torch.zeros(0, dtype=torch.int64, device=truth.boxes.device)
        return nothing, nothing, nothing
    iou = prior_ious(truth, priors)
    if valid_flags is not None:
        iou.masked_fill_(~valid_flags[:, None], -1)
    # As its best is infinite, what is not valid wants nothing.
    best = iou.amax(2).masked_fill_(~truth.valid, torch.inf)
    found = iou.amax(1) >= POSITIVE_IOU
    image, prior, taken = _list_found(*arrays(iou, best, found))
    return torch.as_tensor(image), torch.as_tensor(prior), torch.as_tensor(taken)


def _list_found(
    xp: ModuleType, iou: Array, best: Array, found: Array
) -> tuple[Array, Array, Array]:
    """The candidates, as `find_candidates` returns them.

    Args:
        xp: numpy or torch, whose arrays these are.
        iou: (B, M, P).
        best: (B, M) highest IoU of each object, infinite where not valid.
        found: (B, P) bool, the priors that overlap an object enough; others are added here.
    """
    far, small = xp.where(best < POSITIVE_IOU)
    if len(far):
        which, nearest = _places(xp, iou[far, small] == best[far, small, None])
        found[far[which], nearest] = True
    prior, image = _places(xp, found.T)
    _, room, count = iou.shape
    row = image * room + xp.arange(room, device=image.device)[:, None]
    near = xp.take(iou, row * count + prior)
    wanted = near == xp.take(best, row)
    # The last object that wants the prior comes before the one of highest IoU, which is 1 or less.
    wish = xp.arange(2, 2 + room, dtype=iou.dtype, device=image.device)[:, None]
    return image, prior, xp.where(wanted, wish, near).argmax(0)


def _places(xp: ModuleType, mask: Array) -> tuple[Array, Array]:
    """Rows and columns of what is true; in one dimension NumPy finds it seven times as fast."""
    (place,) = xp.where(mask.reshape(-1))
    return place // mask.shape[1], place % mask.shape[1]


@dataclass(frozen=True)
class Candidates:
    """The candidates of a batch's objects, priors ascending, so level after level.

    Attributes:
        image: (N,) int64.
        prior: (N,) int64, index in the grid.
        object: (N,) int64, index among the image's objects.
        group: (N,) int64, the object's number in the whole batch.
        level: (N,) int64, of the prior.
        anchors: (N, 4), the prior as a box.
        labels: (N,) int64, the object's class.
        boxes: (N, 4), the object's box.
    """

    image: Tensor
    prior: Tensor
    object: Tensor
    group: Tensor
    level: Tensor
    anchors: Tensor
    labels: Tensor
    boxes: Tensor


def list_candidates(
    priors: Priors, truth: GroundTruth, valid_flags: Tensor | None = None
) -> Candidates:
    """What `find_candidates` finds, with what their cost depends on.

    Args:
        priors: of the images.
        truth: the objects.
        valid_flags: (B, P) bool, as for `find_candidates`.
    """
    found = find_candidates(priors, truth, valid_flags)
    _, image, prior, taken, levels, anchors, boxes, labels = arrays(
        *found, priors.levels, priors.boxes, truth.boxes, truth.labels
    )
    learnt = image, taken
    group = image * boxes.shape[1] + taken
    rest = group, levels[prior], anchors[prior], labels[learnt], boxes[learnt]
    return Candidates(*found, *map(torch.as_tensor, rest))


@dataclass(frozen=True)
class Positives:
    """Which candidates an object keeps.

    Attributes:
        chosen: (N,) bool.
        fallbacks: (F,) the objects whose costs allowed no fit and which keep their `TOP_K`
            candidates of lowest cost.
    """

    chosen: Tensor
    fallbacks: Tensor


def select_positives(costs: Tensor, objects: Tensor, levels: Tensor, num_levels: int) -> Positives:
    """Separate the candidates of each object into positives and background.

    Of each object and level the 9 candidates of lowest cost are pooled, a mixture is fitted to
    their costs, and positives are the members of its first component up to the one of highest
    density. An object with fewer than 2 in the pool gets no positive. A cost that is not finite
    takes its candidate out; its object then falls back (see `Positives`).

    Args:
        costs: (N,) cost of each candidate.
        objects: (N,) int64, the object of each candidate, numbered through the whole batch.
        levels: (N,) int64, the level of each candidate's prior.
        num_levels: number of levels.
    """
    xp, costs, objects, levels = arrays(costs, objects, levels)
    chosen, fallbacks = _select(xp, costs, objects, levels, num_levels)
    return Positives(torch.as_tensor(chosen), torch.as_tensor(fallbacks))


def _select(
    xp: ModuleType, costs: Array, objects: Array, levels: Array, num_levels: int
) -> tuple[Array, Array]:
    """The fields of `Positives`; xp is numpy or torch, whose arrays these are."""
    members = pool_candidates(costs, objects, levels, num_levels)
    members = members[order(costs[members], objects[members])]
    slot = rank(objects[members])
    present = objects[members[slot == 0]]
    row = xp.cumsum(slot == 0, 0) - 1

    shape = (len(present), TOP_K * num_levels)
    pool = xp.zeros(shape, dtype=xp.float64, device=costs.device)
    valid = xp.zeros(shape, dtype=bool, device=costs.device)
    pool[row, slot] = xp.asarray(costs[members], dtype=xp.float64)
    valid[row, slot] = True
    first, log_density, _, _ = fit_arrays(xp, pool, valid)

    last = xp.where(first, log_density, -math.inf).argmax(1)
    positions = xp.arange(shape[1], device=costs.device)
    positive = first & (positions <= last[:, None])
    broken = xp.unique(objects[~xp.isfinite(costs)])
    collapsed = (xp.isnan(log_density) & valid).any(1)
    failed = xp.isin(present, broken) | collapsed
    positive = xp.where(failed[:, None], positions < TOP_K, positive)
    positive &= valid[:, 1:2]

    chosen = xp.zeros_like(costs, dtype=bool)
    chosen[members] = positive[row, slot]
    return chosen, xp.unique(xp.concatenate([broken, present[collapsed]]))


def pool_candidates(costs: Array, objects: Array, levels: Array, num_levels: int) -> Array:
    """The `TOP_K` candidates of lowest finite cost of each object and level, (M,) int64 indices.

    Args:
        costs: (N,) cost of each candidate.
        objects: (N,) int64, the object of each candidate, numbered through the whole batch.
        levels: (N,) int64, the level of each candidate's prior.
        num_levels: number of levels.

    Returns:
        In order of object, level, cost and index.
    """
    group = objects * num_levels + levels
    ordered = order(costs, group)
    pooled = ordered[rank(group[ordered]) < TOP_K]
    return pooled[library(costs).isfinite(costs[pooled])]


def order(costs: Array, groups: Array) -> Array:
    """Indices in order of group, cost and index, (N,) int64; costs that are not finite come last.

    Args:
        costs: (N,).
        groups: (N,) int64, not negative.
    """
    xp = library(costs)
    costs = xp.where(xp.isfinite(costs), costs, math.inf)
    if xp is torch or costs.dtype != np.float32:
        by_cost = xp.argsort(costs, stable=True)
        return by_cost[xp.argsort(groups[by_cost], stable=True)]
    # NumPy sorts by 16 bits in a sixth of the time. As whole numbers, negative floats descend.
    bits = costs.view(np.int32)
    ascending = bits ^ (bits >> 31 & 0x7FFFFFFF)
    keys = groups.astype(np.min_scalar_type(groups.max(initial=0)))
    high, low = (ascending >> 16).astype(np.int16), ascending.astype(np.uint16)
    return np.lexsort((low, high, keys))


def rank(sorted_keys: Array) -> Array:
    """The position of each entry among those of its key, for keys in ascending order."""
    xp = library(sorted_keys)
    positions = xp.arange(len(sorted_keys), device=sorted_keys.device)
    return positions - xp.searchsorted(sorted_keys, sorted_keys)
