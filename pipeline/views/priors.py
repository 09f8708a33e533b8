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

from pipeline.views.plan import Shape


@dataclass(frozen=True)
class Priors:
    """The priors of a view, one for each cell: level after level, row after row.

    Attributes:
        boxes: (P, 4).
        shapes: (rows, columns) of each level.
    """

    boxes: Tensor
    shapes: list[Shape]

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

    def level_sizes(self, padded: Shape) -> list[int]:
        """The number of priors of each level."""
        return [rows * columns for rows, columns in self.level_shapes(padded)]

    def count(self, padded: Shape) -> int:
        """The number of priors of a view with this padded size."""
        return sum(self.level_sizes(padded))

    def priors(self, padded: Shape, device: torch.device | str = "cpu") -> Priors:
        """The priors of a view, equal to mmdet's anchors."""
        levels = []
        shapes = self.level_shapes(padded)
        for stride, (rows, columns) in zip(self.strides, shapes, strict=True):
            half = self.scale * stride / 2
            y, x = torch.meshgrid(
                torch.arange(rows, device=device, dtype=torch.float32) * stride,
                torch.arange(columns, device=device, dtype=torch.float32) * stride,
                indexing="ij",
            )
            levels.append(torch.stack([x - half, y - half, x + half, y + half], -1).view(-1, 4))
        return Priors(torch.cat(levels), shapes)

    def cells(self, priors: npt.NDArray[np.int64], padded: Shape) -> npt.NDArray[np.int16]:
        """Where priors lie, independent of the padded size: (N, 3) level, row, column.

        Args:
            priors: (N,) indices in the grid of a view with the size `padded`.
            padded: (height, width) of that view.
        """
        return _all_cells(self, padded).take(priors, axis=0)


@lru_cache(maxsize=256)
def _all_cells(grid: PriorGrid, padded: Shape) -> npt.NDArray[np.int16]:
    """Level, row and column of each prior, (P, 3); a data set has few padded sizes."""
    levels = [
        np.stack([np.full(rows * columns, level), *np.indices((rows, columns)).reshape(2, -1)], -1)
        for level, (rows, columns) in enumerate(grid.level_shapes(padded))
    ]
    return np.concatenate(levels).astype(np.int16)
