"""The grid of a training batch with views of several sizes, against mmdet's own."""

import math

import numpy as np
import pytest
import torch
from mmdet.models.task_modules.prior_generators import anchor_inside_flags
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from pipeline.detector.build import build_detector, load_model_config, without_downloads
from pipeline.heads.batch_grid import BatchGrid, ground_truth
from pipeline.heads.registry import family_of
from pipeline.views.priors import PriorGrid
from tests.conftest import DEVICES, ROOT

SIZES = [
    pytest.param([(192, 256), (160, 224), (192, 192), (96, 256), (192, 256)], id="several sizes"),
    pytest.param([(192, 256)] * 3, id="one size"),
    # The batch is as high as one view and as wide as another; no view fills it.
    pytest.param([(320, 64), (32, 416)], id="high and wide"),
    # One cell of the coarse levels, and sides that are no multiples of their strides.
    pytest.param([(8, 8), (104, 72), (200, 136)], id="small"),
]


def head_of(scale: int = 8):
    model = without_downloads(load_model_config(ROOT / "configs/paa_r18_quarter.py", 10))
    model.bbox_head.anchor_generator.octave_base_scale = scale
    return build_detector(model).bbox_head


def samples_of(sizes: list[tuple[int, int]]) -> list[DetDataSample]:
    """Samples as the preprocessor leaves them, of images that are a bit smaller than padded."""
    batch = max(height for height, _ in sizes), max(width for _, width in sizes)
    return [
        DetDataSample(
            metainfo={
                "img_shape": (height - 3, width - 5),
                "pad_shape": (height, width),
                "batch_input_shape": batch,
            }
        )
        for height, width in sizes
    ]


def level_shapes(size: tuple[int, int]) -> list[tuple[int, int]]:
    """(rows, columns) of the feature maps of a padded image."""
    height, width = size
    return [(math.ceil(height / s), math.ceil(width / s)) for s in (8, 16, 32, 64, 128)]


def mmdets(head, samples, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """mmdet's anchors (P, 4), and which each view learns (B, P)."""
    metas = [sample.metainfo for sample in samples]
    anchors, valid = head.get_anchors(
        level_shapes(metas[0]["batch_input_shape"]), metas, device=device
    )
    flags = [
        anchor_inside_flags(
            torch.cat(own), torch.cat(flags), meta["img_shape"], head.train_cfg.allowed_border
        )
        for own, flags, meta in zip(anchors, valid, metas, strict=True)
    ]
    return torch.cat(anchors[0]), torch.stack(flags)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("scale", [8, 4])
def test_flags_and_anchors_are_mmdets(device: str, sizes: list, scale: int) -> None:
    head, samples = head_of(scale), samples_of(sizes)
    anchors, flags = mmdets(head, samples, device)
    grid = BatchGrid.of(family_of(head).grid, samples, torch.device(device))
    assert grid.valid_flags.device.type == device
    assert grid.valid_flags.dtype == torch.bool
    assert torch.equal(grid.valid_flags, flags)
    assert torch.equal(grid.priors.boxes, anchors)
    everything = torch.arange(flags.numel(), device=device)
    assert torch.equal(grid.anchors(everything), anchors.repeat(len(sizes), 1))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("sizes", SIZES)
def test_a_prior_of_a_view_keeps_its_anchor(device: str, sizes: list) -> None:
    """The anchors that mmdet has of each view alone, and in the same order."""
    head, samples = head_of(), samples_of(sizes)
    generator = torch.Generator().manual_seed(0)
    grid = BatchGrid.of(family_of(head).grid, samples, torch.device(device))
    alone = [
        torch.cat(head.prior_generator.grid_priors(level_shapes(size), device=device))
        for size in sizes
    ]
    chosen = [torch.randperm(len(own), generator=generator)[:20].sort().values for own in alone]
    chosen[1] = chosen[1][:0]  # of one view, none
    indices = grid.indices([one.numpy() for one in chosen])
    assert indices.dtype == np.int64
    assert (np.diff(indices) > 0).all()
    indices = torch.from_numpy(indices).to(device)
    count = grid.valid_flags.shape[1]
    assert torch.equal(
        (indices // count).cpu(),
        torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor([len(c) for c in chosen])),
    )
    assert grid.valid_flags.flatten()[indices].all()
    expected = torch.cat([own[one.to(device)] for own, one in zip(alone, chosen, strict=True)])
    assert torch.equal(grid.anchors(indices), expected)


@pytest.mark.parametrize("sizes", SIZES)
def test_all_priors_of_all_views_are_the_valid_ones(sizes: list) -> None:
    grid = BatchGrid.of(family_of(head_of()).grid, samples_of(sizes), torch.device("cpu"))
    everything = [
        np.arange(sum(rows * columns for rows, columns in level_shapes(size))) for size in sizes
    ]
    assert grid.indices(everything).tolist() == grid.valid_flags.flatten().nonzero()[:, 0].tolist()


@pytest.mark.parametrize("device", DEVICES)
def test_a_box_comes_back_from_its_distances(device: str) -> None:
    sizes = [(192, 256), (96, 128)]
    grid = BatchGrid.of(PriorGrid((8, 16, 32, 64, 128)), samples_of(sizes), torch.device(device))
    count = len(grid.priors.boxes)
    random = torch.Generator().manual_seed(0)
    indices = torch.randint(2 * count, (50,), generator=random).to(device)
    boxes = (torch.rand(50, 4, generator=random) * 300 - 50).to(device)
    # By hand: in strides from the middle of the anchor, to the left, top, right and bottom.
    anchors = grid.anchors(indices)
    middle, stride = (anchors[:, :2] + anchors[:, 2:]) / 2, (anchors[:, 2:3] - anchors[:, :1]) / 8
    distances = torch.cat([(middle - boxes[:, :2]) / stride, (boxes[:, 2:] - middle) / stride], 1)
    torch.testing.assert_close(grid.boxes_at(indices, distances), boxes, rtol=0, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_the_objects_of_a_batch(device: str) -> None:
    samples = samples_of([(192, 256), (96, 128), (64, 64)])
    objects = [
        InstanceData(bboxes=torch.rand(count, 4), labels=torch.arange(count)) for count in (2, 0, 3)
    ]
    for sample, own in zip(samples, objects, strict=True):
        sample.gt_instances = own
    found = ground_truth(samples, torch.device(device))
    assert found.boxes.device.type == device
    assert found.valid.tolist() == [[True, True, False], [False] * 3, [True] * 3]
    for view, own in enumerate(objects):
        assert torch.equal(found.boxes[view].cpu()[: len(own)], own.bboxes)
        assert torch.equal(found.labels[view].cpu()[: len(own)], own.labels)
