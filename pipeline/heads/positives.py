"""Which prior of a batch learns which object: as a teacher decides it, and as a student learns it.

Shapes: B views on one grid of P priors, K positives of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.heads.batch_grid import BatchGrid
from pipeline.project.transfer import send


@dataclass(frozen=True)
class Assignment:
    """What a head decides of a batch.

    Attributes:
        assigned_gt_inds: (B, P) int64, for each prior the index of its object among all of its
            view, or `BACKGROUND`, or `IGNORED`.
        fallbacks: how many objects had costs that allow no mixture; PAA's alone can be more than 0.
    """

    assigned_gt_inds: Tensor
    fallbacks: int = 0


@dataclass(frozen=True, eq=False)
class Positives:
    """What the priors of a batch learn; those that are not listed are background.

    Attributes:
        grid: of the batch.
        pos_inds: (K,) int64 where the positives lie among the B * P.
        gt_inds: (K,) int64 the object of each, an index into its view's `gt_instances`.
        ignored: (I,) int64 where the priors lie that learn nothing.
        left_out: how many positives of the teacher are among the ignored, as this head can't learn
            them.
    """

    grid: BatchGrid
    pos_inds: Tensor
    gt_inds: Tensor
    ignored: Tensor
    left_out: Tensor | int = 0

    @property
    def views(self) -> Tensor:
        """(K,) int64 the view of each positive."""
        return self.pos_inds // self.grid.count

    def by_view(self) -> Tensor:
        """(B, P) int64 as mmdet has it: -1 is ignored, 0 background, k the object k - 1."""
        grid = self.grid
        flat = torch.zeros(len(grid.own) * grid.count, dtype=torch.int64, device=grid.device)
        flat[self.pos_inds] = self.gt_inds + 1
        flat[self.ignored] = -1
        return flat.view(len(grid.own), -1)

    def of_objects(self, values: Sequence[Tensor]) -> Tensor:
        """What each positive learns, (K, ...), of what there is for the objects of each view."""
        first = [0]
        for one in values[:-1]:
            first.append(first[-1] + len(one))
        if not sum(map(len, values)):
            return values[0].new_zeros(0, *values[0].shape[1:])
        (offsets,) = send([torch.tensor(first)], self.grid.device)
        return torch.cat(list(values))[self.gt_inds + offsets[self.views]]
