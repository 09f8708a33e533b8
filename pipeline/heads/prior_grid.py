"""The grid of a head's priors, read from mmdet's generator of them."""

from typing import Any

import torch
from mmdet.models.task_modules import AnchorGenerator, MlvlPointGenerator

from pipeline.project.errors import UserError
from pipeline.views.priors import PriorGrid


def read_grid(generator: Any) -> PriorGrid:
    """The priors of mmdet's generator of anchors or points.

    Raises:
        UserError: it is another one, or its priors differ from level to level.
    """
    strides = tuple(int(stride[0]) for stride in generator.strides)
    if isinstance(generator, AnchorGenerator):
        levels = [
            (base / stride).tolist()
            for base, stride in zip(generator.base_anchors, strides, strict=True)
        ]
    elif isinstance(generator, MlvlPointGenerator):
        levels = [[[generator.offset] * 4] for _ in strides]
    else:
        raise UserError(f"unknown priors: {generator}")
    cell = tuple(tuple(box) for box in levels[0])
    grid = PriorGrid(strides, cell)
    some = (3 * max(strides), 2 * max(strides))
    theirs = torch.cat(generator.grid_priors(grid.level_shapes(some), device="cpu"))
    ours = grid.priors(some).boxes[:, : theirs.shape[1]]
    if ours.shape != theirs.shape or not torch.equal(ours, theirs):
        raise UserError(f"the head's priors must be the same in every cell; found {generator}")
    return grid
