"""The grid of priors of a view: one square anchor per feature-map cell, level after level.

A prior's index counts the cells of the first level row by row, then those of the next level, as
mmdet does when it concatenates levels.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.views.plan import Shape, View, ViewPlan, padded_shape


@dataclass(frozen=True)
class Priors:
    """The priors of a view, one for each cell: level after level, row after row.

    Attributes:
        boxes: (P, 4).
        shapes: (rows, columns) of each level.
        level_strides: pixels per cell of each level.
    """

    boxes: Tensor
    shapes: list[Shape]
    level_strides: tuple[int, ...]

    @property
    def sizes(self) -> list[int]:
        """The number of priors of each level."""
        return [rows * columns for rows, columns in self.shapes]

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

        A prior's are those of its column and its row.
        """
        levels = [
            level.view(*shape, 4)
            for level, shape in zip(self.boxes.split(self.sizes), self.shapes, strict=True)
        ]
        return (
            torch.cat([level[0, :, 0::2] for level in levels]).T.contiguous(),
            torch.cat([level[:, 0, 1::2] for level in levels]).T.contiguous(),
        )


@dataclass(frozen=True)
class PriorGrid:
    """The priors of a head: one per cell, of side `scale` x stride, centred on the cell's corner.

    Attributes:
        strides: pixels per cell, a level each.
        scale: side of a prior in strides (8 for PAA).
    """

    strides: tuple[int, ...]
    scale: float = 8.0

    def level_shapes(self, padded: Shape) -> list[Shape]:
        """(rows, columns) of each level's feature map, for a padded image size."""
        height, width = padded
        return [(-(-height // s), -(-width // s)) for s in self.strides]

    def count(self, padded: Shape) -> int:
        """The number of priors of a view with this padded size."""
        return sum(rows * columns for rows, columns in self.level_shapes(padded))

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
    for stride, (rows, columns) in zip(grid.strides, shapes, strict=True):
        half = grid.scale * stride / 2
        y, x = torch.meshgrid(
            torch.arange(rows, device=device, dtype=torch.float32) * stride,
            torch.arange(columns, device=device, dtype=torch.float32) * stride,
            indexing="ij",
        )
        levels.append(torch.stack([x - half, y - half, x + half, y + half], -1).view(-1, 4))
    return Priors(torch.cat(levels), shapes, grid.strides)


@lru_cache(maxsize=256)
def _places_within(grid: PriorGrid, own: Shape, padded: Shape) -> npt.NDArray[np.int64]:
    """A data set has few padded sizes, so that most pairs of them are found here."""
    places, start = [], 0
    for (own_rows, own_columns), (rows, columns) in zip(
        grid.level_shapes(own), grid.level_shapes(padded), strict=True
    ):
        cells = np.arange(start, start + rows * columns).reshape(rows, columns)
        places.append(cells[:own_rows, :own_columns].ravel())
        start += rows * columns
    return np.concatenate(places)
