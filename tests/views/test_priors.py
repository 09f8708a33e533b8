"""Priors against mmdet's anchors; views against mmcv's resize."""

import mmcv
import numpy as np
import pytest
import torch
from mmdet.models.task_modules.prior_generators import AnchorGenerator, MlvlPointGenerator
from mmdet.structures.bbox import bbox2distance, distance2bbox

from pipeline.views.plan import View, choose_views, padded_shape, view_plan
from pipeline.views.priors import PriorGrid
from pipeline.views.settings import Views

GRID = PriorGrid((8, 16, 32, 64, 128))
SHAPES = [(192, 256), (32, 32), (800, 1344), (96, 160)]
ANCHORS = AnchorGenerator(
    strides=[8, 16, 32, 64, 128], ratios=[1.0], octave_base_scale=8, scales_per_octave=1
)


@pytest.mark.parametrize("padded", SHAPES)
def test_boxes_equal_mmdets_anchors(padded: tuple[int, int]) -> None:
    anchors = torch.cat(ANCHORS.grid_priors(GRID.level_shapes(padded), device="cpu"))
    assert torch.equal(GRID.priors(padded).boxes, anchors)
    assert GRID.count(padded) == len(anchors) == len(GRID.priors(padded).levels)


@pytest.mark.parametrize("padded", SHAPES)
def test_levels_strides_and_centres_equal_mmdets_points(padded: tuple[int, int]) -> None:
    generator = MlvlPointGenerator(GRID.strides, offset=0)
    shapes = GRID.level_shapes(padded)
    levels = generator.grid_priors(shapes, device="cpu", with_stride=True)
    points, strides = torch.cat(levels)[:, :2], torch.cat(levels)[:, 2:]
    priors = GRID.priors(padded)
    assert priors.levels.tolist() == [n for n, level in enumerate(levels) for _ in level]
    assert (priors.strides[:, None] == strides).all()
    assert torch.equal(priors.centres, points)


@pytest.mark.parametrize(
    ("own", "padded"),
    [
        pytest.param((192, 256), (192, 256), id="all of it"),
        pytest.param((160, 256), (192, 256), id="lower"),
        pytest.param((192, 224), (192, 256), id="narrower"),
        pytest.param((96, 160), (800, 1344), id="lower and narrower"),
        pytest.param((32, 32), (800, 1344), id="a cell of the last level"),
    ],
)
def test_the_places_of_a_view_in_a_larger_grid_are_mmdets_valid_flags(
    own: tuple[int, int], padded: tuple[int, int]
) -> None:
    places = torch.from_numpy(GRID.places_within(own, padded))
    shapes = GRID.level_shapes(padded)
    flags = torch.cat(ANCHORS.valid_flags(shapes, own, device="cpu")).bool()
    assert torch.equal(places, flags.nonzero()[:, 0])
    anchors = torch.cat(ANCHORS.grid_priors(shapes, device="cpu"))
    assert torch.equal(GRID.priors(own).boxes, anchors[places])


def test_distances_are_mmdets_in_strides() -> None:
    generator = torch.Generator().manual_seed(0)
    padded = (96, 160)
    count = GRID.count(padded)
    anchors = torch.cat(ANCHORS.grid_priors(GRID.level_shapes(padded), device="cpu"))
    centres = anchors.view(-1, 2, 2).mean(1)
    cells = zip(GRID.strides, GRID.level_shapes(padded), strict=True)
    strides = torch.cat([torch.full((rows * columns, 1), s) for s, (rows, columns) in cells])
    priors = GRID.priors(padded)

    boxes = torch.rand(2, count, 4, generator=generator) * 200 - 20
    expected = bbox2distance(centres.expand(2, -1, -1), boxes) / strides
    assert torch.equal(priors.distances(boxes), expected)

    some = torch.randperm(count, generator=generator)[:50]
    distances = torch.randn(50, 4, generator=generator) * 5
    expected = distance2bbox(centres[some], distances * strides[some])
    assert torch.equal(priors.boxes_at(some, distances), expected)


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
