"""Priors against mmdet's anchors; views against mmcv's resize."""

import mmcv
import numpy as np
import pytest
import torch
from mmdet.models.task_modules.prior_generators import AnchorGenerator

from pipeline.project.params import Views
from pipeline.views.plan import View, choose_views, padded_shape, view_plan
from pipeline.views.priors import PriorGrid

GRID = PriorGrid((8, 16, 32, 64, 128))
SHAPES = [(192, 256), (32, 32), (800, 1344), (96, 160)]


@pytest.mark.parametrize("padded", SHAPES)
def test_boxes_equal_mmdets_anchors(padded: tuple[int, int]) -> None:
    generator = AnchorGenerator(
        strides=[8, 16, 32, 64, 128], ratios=[1.0], octave_base_scale=8, scales_per_octave=1
    )
    anchors = torch.cat(generator.grid_priors(GRID.level_shapes(padded), device="cpu"))
    assert torch.equal(GRID.priors(padded).boxes, anchors)
    assert GRID.count(padded) == len(anchors) == len(GRID.priors(padded).levels)


@pytest.mark.parametrize("padded", SHAPES)
def test_cells_name_every_prior(padded: tuple[int, int]) -> None:
    cells = GRID.cells(np.arange(GRID.count(padded)), padded)
    assert (cells[:, 0] == GRID.priors(padded).levels.numpy()).all()
    stride = np.array(GRID.strides)[cells[:, 0]]
    centres = GRID.priors(padded).boxes.numpy().reshape(-1, 2, 2).mean(1)
    assert (cells[:, 2] * stride == centres[:, 0]).all()
    assert (cells[:, 1] * stride == centres[:, 1]).all()


def test_sizes_equal_mmcvs_resize() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = rng.integers(20, 2000, 2)
        scale = tuple(int(side) for side in rng.integers(100, 1400, 2))
        expected = mmcv.rescale_size((int(width), int(height)), scale)
        assert View(scale, False).resized_shape(int(height), int(width)) == expected[::-1]


@pytest.mark.parametrize(
    ("shape", "expected"), [((1, 1), (32, 32)), ((32, 33), (32, 64)), ((750, 1333), (768, 1344))]
)
def test_padded_shape(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    assert padded_shape(shape, 32) == expected


def test_plan_is_every_scale_with_every_flip() -> None:
    plan = view_plan(Views(scales=[(256, 192), (128, 96)], flips=["none", "horizontal"]))
    assert [(view.scale, view.flip) for view in plan.views] == [
        ((256, 192), False),
        ((256, 192), True),
        ((128, 96), False),
        ((128, 96), True),
    ]


def test_the_view_depends_on_seed_epoch_and_image_alone() -> None:
    ids = np.arange(1000)
    views = choose_views(1, 2, ids, 4)
    order = np.random.default_rng(0).permutation(1000)
    assert (choose_views(1, 2, ids[order], 4) == views[order]).all()
    assert (choose_views(1, 2, ids, 4) == views).all()
    for other in (choose_views(2, 2, ids, 4), choose_views(1, 3, ids, 4)):
        assert 0.6 < (other != views).mean() < 0.9


def test_views_are_chosen_evenly() -> None:
    counts = np.bincount(
        np.concatenate([choose_views(0, epoch, np.arange(500), 6) for epoch in range(40)])
    )
    assert len(counts) == 6
    assert np.abs(counts / counts.sum() - 1 / 6).max() < 0.01
