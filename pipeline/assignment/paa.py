"""The PAA rule: which prior learns which object (Kim and Lee, ECCV 2020, section 3.1).

The definition is mmdet's `PAAHead`. Here it runs for all objects, images and levels of a batch
at once, on the device of its inputs; LAD (WACV 2022) is the same rule on a teacher's costs.

Shapes: B images on one grid of P priors, M room for objects in an image, N candidates. Boxes are
xyxy in pixels of the view.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.assignment.iou import prior_ious
from pipeline.assignment.mixture import fit_mixtures
from pipeline.data.ground_truth import GroundTruth
from pipeline.views.priors import Priors

POSITIVE_IOU = 0.1
TOP_K = 9


def find_candidates(
    priors: Priors, truth: GroundTruth, valid_flags: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Which prior may learn which object: mmdet's `MaxIoUAssigner` with PAA's settings.

    A prior is a candidate of the object that it overlaps most, by an IoU of 0.1 or more. After
    that, every object takes the priors that overlap it most, however little; of two objects that
    want the same prior, the later one gets it.

    For example, with the IoUs of two objects (rows) with four priors (columns)

        0.3   0.6   0.2   0
        0.05  0     0.4   0.04

    the first three priors are candidates of the objects 0, 0 and 1. Both objects already have the
    prior that overlaps them most, so the last prior stays background.

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
    # An object whose best is at least that has it among what is found.
    far, small = (best < POSITIVE_IOU).nonzero(as_tuple=True)
    which, nearest = (iou[far, small] == best[far, small, None]).nonzero(as_tuple=True)
    found[far[which], nearest] = True
    prior, image = found.T.nonzero(as_tuple=True)
    near = iou[image, :, prior]
    # The last object that wants the prior comes before the one of highest IoU, which is 1 or less.
    wish = torch.arange(2, 2 + near.shape[1], dtype=iou.dtype, device=iou.device)
    return image, prior, torch.where(near == best[image], wish, near).argmax(1)


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
    image, prior, taken = find_candidates(priors, truth, valid_flags)
    return Candidates(
        image=image,
        prior=prior,
        object=taken,
        group=image * truth.boxes.shape[1] + taken,
        level=priors.levels[prior],
        anchors=priors.boxes[prior],
        labels=truth.labels[image, taken],
        boxes=truth.boxes[image, taken],
    )


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

    For example, of the costs 0.9, 1.0, 1.1, 1.5, 3.0, 3.1 the first component has the first four,
    and its density is highest at 1.1: the candidates of cost 0.9, 1.0 and 1.1 are positive.

    Args:
        costs: (N,) cost of each candidate.
        objects: (N,) int64, the object of each candidate, numbered through the whole batch.
        levels: (N,) int64, the level of each candidate's prior.
        num_levels: number of levels.
    """
    members = pool_candidates(costs, objects, levels, num_levels)
    members = members[sort_by_group(costs[members], objects[members])]
    slot = place_in_group(objects[members])
    present = objects[members[slot == 0]]
    row = (slot == 0).cumsum(0) - 1

    # A row for each object, with its costs ascending.
    pool = costs.new_zeros(len(present), TOP_K * num_levels, dtype=torch.float64)
    valid = torch.zeros_like(pool, dtype=torch.bool)
    pool[row, slot] = costs[members].double()
    valid[row, slot] = True
    mixtures = fit_mixtures(pool, valid)
    first, log_density = mixtures.first, mixtures.log_density
    last = torch.where(first, log_density, -torch.inf).argmax(1)
    places = torch.arange(pool.shape[1], device=costs.device)
    positive = first & (places <= last[:, None])
    broken = objects[~costs.isfinite()].unique()
    collapsed = (log_density.isnan() & valid).any(1)
    failed = torch.isin(present, broken) | collapsed
    positive = torch.where(failed[:, None], places < TOP_K, positive)
    positive &= valid[:, 1:2]

    chosen = torch.zeros_like(costs, dtype=torch.bool)
    chosen[members] = positive[row, slot]
    return Positives(chosen, torch.cat([broken, present[collapsed]]).unique())


def pool_candidates(costs: Tensor, objects: Tensor, levels: Tensor, num_levels: int) -> Tensor:
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
    ordered = sort_by_group(costs, group)
    pooled = ordered[place_in_group(group[ordered]) < TOP_K]
    return pooled[costs[pooled].isfinite()]


def sort_by_group(costs: Tensor, groups: Tensor) -> Tensor:
    """Indices in order of group, cost and index, (N,) int64; costs that are not finite come last.

    Args:
        costs: (N,).
        groups: (N,) int64.
    """
    by_cost = torch.where(costs.isfinite(), costs, torch.inf).argsort(stable=True)
    return by_cost[groups[by_cost].argsort(stable=True)]


def place_in_group(groups: Tensor) -> Tensor:
    """The place of each entry among those of its group: 0 1 2 0 0 1 for groups 4 4 4 5 8 8.

    Args:
        groups: (N,) int64, ascending.
    """
    return torch.arange(len(groups), device=groups.device) - torch.searchsorted(groups, groups)
