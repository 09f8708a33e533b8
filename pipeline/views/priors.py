"""The grid of priors of a view: one or more per feature-map cell, level after level.

A prior's index counts the cells of the first level row by row, the priors of each cell one after
the other, then those of the next level, as mmdet does when it concatenates levels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.views.plan import Shape, View, ViewPlan, padded_shape


@dataclass(frozen=True)
class Priors:
    """The priors of a view: level after level, row after row, cell after cell.

    Attributes:
        boxes: (P, 4); those of points have no extent.
        shapes: (rows, columns) of each level.
        level_strides: pixels per cell of each level.
        per_cell: the number of priors of a cell.
    """

    boxes: Tensor
    shapes: list[Shape]
    level_strides: tuple[int, ...]
    per_cell: int = 1

    @property
    def sizes(self) -> list[int]:
        """The number of priors of each level."""
        return [rows * columns * self.per_cell for rows, columns in self.shapes]

    @cached_property
    def levels(self) -> Tensor:
        """The level of each prior, (P,) int64."""
        device = self.boxes.device
        sizes = torch.tensor(self.sizes, device=device)
        numbers = torch.arange(len(sizes), device=device)
        return numbers.repeat_interleave(sizes, output_size=len(self.boxes))

    @cached_property
    def strides(self) -> Tensor:
        """The pixels per cell of each prior, (P,) int64."""
        return torch.tensor(self.level_strides, device=self.boxes.device)[self.levels]

    @cached_property
    def centres(self) -> Tensor:
        """The middle of each prior, (P, 2) x and y."""
        return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2

    def distances(self, boxes: Tensor) -> Tensor:
        """How far the sides of boxes are from their priors' centres, in strides.

        Args:
            boxes: (..., P, 4), one for each prior.

        Returns:
            (..., P, 4) to the left, top, right and bottom.
        """
        pixels = torch.cat([self.centres - boxes[..., :2], boxes[..., 2:] - self.centres], -1)
        return pixels / self.strides[:, None]

    def boxes_at(self, priors: Tensor, distances: Tensor) -> Tensor:
        """Boxes from what `distances` gives for some priors.

        Args:
            priors: (N,) int64 indices.
            distances: (N, 4) of each, in strides.

        Returns:
            (N, 4).
        """
        pixels = distances * self.strides[priors][:, None]
        centres = self.centres[priors]
        return torch.cat([centres - pixels[:, :2], centres + pixels[:, 2:]], 1)

    @cached_property
    def areas(self) -> Tensor:
        """The area of each prior, (P,)."""
        left, top, right, bottom = self.boxes.T
        return (right - left) * (bottom - top)

    @cached_property
    def sides(self) -> tuple[Tensor, Tensor]:
        """Left and right of all levels' columns, (2, columns); top and bottom of rows, (2, rows).

        A prior's are those of its column and its row, where a cell has one prior.
        """
        levels = [
            level.view(*shape, 4)
            for level, shape in zip(self.boxes.split(self.sizes), self.shapes, strict=True)
        ]
        return (
            torch.cat([level[0, :, 0::2] for level in levels]).T.contiguous(),
            torch.cat([level[:, 0, 1::2] for level in levels]).T.contiguous(),
        )


Box = tuple[float, float, float, float]
"""Left, top, right and bottom."""
POINT: Box = (0.0, 0.0, 0.0, 0.0)
SQUARE: Box = (-4.0, -4.0, 4.0, 4.0)
"""The anchor of PAA, ATSS, GFL, VFNet, TOOD and DDOD: of 8 strides, around its cell's corner."""


@dataclass(frozen=True)
class PriorGrid:
    """The priors of a head, which are the same in every cell.

    Attributes:
        strides: pixels per cell, a level each.
        cell: the priors of a cell as boxes in strides, from the top left corner of the cell.
    """

    strides: tuple[int, ...]
    cell: tuple[Box, ...] = (SQUARE,)

    def plain(self) -> dict[str, Any]:
        """What two heads must share for one to learn what the other decided, as plain values.

        A label says where a prior is, and a distance is measured from its centre. So a point and
        an anchor around it are the same prior, unless there are several in a cell: then their boxes
        tell them apart.
        """
        strides = list(self.strides)
        if len(self.cell) == 1:
            left, top, right, bottom = self.cell[0]
            return {"strides": strides, "centre": [(left + right) / 2, (top + bottom) / 2]}
        return {"strides": strides, "anchors": [list(box) for box in self.cell]}

    @classmethod
    def read(cls, plain: Mapping[str, Any]) -> "PriorGrid":
        """The grid of what `plain` gives; a single prior of a cell as a point."""
        if "centre" in plain:
            cell: tuple[Box, ...] = ((*plain["centre"], *plain["centre"]),)
        else:
            cell = tuple(tuple(box) for box in plain["anchors"])
        return cls(tuple(plain["strides"]), cell)

    def level_shapes(self, padded: Shape) -> list[Shape]:
        """(rows, columns) of each level's feature map, for a padded image size."""
        height, width = padded
        return [(-(-height // s), -(-width // s)) for s in self.strides]

    def level_sizes(self, padded: Shape) -> list[int]:
        """The number of priors of each level."""
        return [rows * columns * len(self.cell) for rows, columns in self.level_shapes(padded)]

    def count(self, padded: Shape) -> int:
        """The number of priors of a view with this padded size."""
        return sum(self.level_sizes(padded))

    @torch.inference_mode(False)  # else a training could not use what a teacher has asked for
    def priors(self, padded: Shape, device: torch.device | str = "cpu") -> Priors:
        """The priors of a view, equal to mmdet's anchors.

        Args:
            padded: (height, width) of the view, in pixels.
            device: where they are.
        """
        return _priors(self, tuple(padded), torch.device(device))

    def places_within(self, own: Shape, padded: Shape) -> npt.NDArray[np.int64]:
        """Where the priors of a view lie in the grid of a larger padded size, (P,).

        A prior keeps its cell: of 3 x 2 cells in a grid of 3 x 4, the places are
        0 1, 4 5, 8 9.

        Args:
            own: (height, width) of the view's own padded size, P priors.
            padded: (height, width) of the larger one.
        """
        return _places_within(self, tuple(own), tuple(padded))


@dataclass(frozen=True)
class PaddedViews:
    """The views of every image as a network takes them: padded, with their priors.

    Attributes:
        plan: the view plan.
        grid: the priors of the network's head.
        divisor: padded sides are multiples of it, in pixels.
    """

    plan: ViewPlan
    grid: PriorGrid
    divisor: int

    def padded(self, view: View, height: int, width: int) -> Shape:
        """The padded (height, width) of a view of an image of this size."""
        return padded_shape(view.shape(height, width), self.divisor)


@lru_cache(maxsize=64)
def _priors(grid: PriorGrid, padded: Shape, device: torch.device) -> Priors:
    levels = []
    shapes = grid.level_shapes(padded)
    cell = torch.tensor(grid.cell, device=device)
    for stride, (rows, columns) in zip(grid.strides, shapes, strict=True):
        y, x = torch.meshgrid(
            torch.arange(rows, device=device, dtype=torch.float32) * stride,
            torch.arange(columns, device=device, dtype=torch.float32) * stride,
            indexing="ij",
        )
        corners = torch.stack([x, y, x, y], -1)
        levels.append((corners[:, :, None] + cell * stride).view(-1, 4))
    return Priors(torch.cat(levels), shapes, grid.strides, len(grid.cell))


@lru_cache(maxsize=256)
def _places_within(grid: PriorGrid, own: Shape, padded: Shape) -> npt.NDArray[np.int64]:
    """A data set has few padded sizes, so that most pairs of them are found here."""
    places, start, each = [], 0, len(grid.cell)
    for (own_rows, own_columns), (rows, columns) in zip(
        grid.level_shapes(own), grid.level_shapes(padded), strict=True
    ):
        count = rows * columns * each
        row_of_priors = np.arange(start, start + count).reshape(rows, columns * each)
        places.append(row_of_priors[:own_rows, : own_columns * each].ravel())
        start += count
    return np.concatenate(places)
