"""The grid of priors of a view: one square anchor per feature-map cell, level after level.

A prior's index counts the cells of the first level row by row, then those of the next level, as
mmdet does when it concatenates levels.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.views import Shape


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

    def boxes(self, padded: Shape, device: torch.device | str = "cpu") -> Tensor:
        """The priors as (P, 4) xyxy float32 in pixels of the view, equal to mmdet's anchors."""
        levels = []
        for stride, (rows, columns) in zip(self.strides, self.level_shapes(padded), strict=True):
            half = self.scale * stride / 2
            y, x = torch.meshgrid(
                torch.arange(rows, device=device, dtype=torch.float32) * stride,
                torch.arange(columns, device=device, dtype=torch.float32) * stride,
                indexing="ij",
            )
            levels.append(torch.stack([x - half, y - half, x + half, y + half], -1).view(-1, 4))
        return torch.cat(levels)

    def levels(self, padded: Shape, device: torch.device | str = "cpu") -> Tensor:
        """The level of each prior, (P,) int64."""
        sizes = torch.tensor(self.level_sizes(padded), device=device)
        return torch.repeat_interleave(
            torch.arange(len(self.strides), device=device), sizes, output_size=self.count(padded)
        )

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
