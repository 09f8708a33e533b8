"""The grid of a training batch, which views of several sizes share, and labels on that grid.

A view is padded to the size of the largest of its batch, so the batch's grid can have priors
outside the view's own. mmdet's valid flags name them, and nothing is learnt there.

Shapes: B views, P priors of the batch's grid, K positives. Boxes are xyxy in pixels of the view.
"""

from collections.abc import Sequence

import torch
from mmdet.models.dense_heads import LADHead, PAAHead
from mmdet.structures import SampleList
from torch import Tensor

from pipeline.views.plan import Shape


def level_shapes_of(levels: Sequence[Tensor]) -> list[Shape]:
    """(rows, columns) of each level's feature map."""
    return [(level.shape[-2], level.shape[-1]) for level in levels]


def by_prior(levels: Sequence[Tensor]) -> Tensor:
    """What a head says of each prior, (B, P, C), from its maps (B, C, H, W) of the levels."""
    return torch.cat([level.permute(0, 2, 3, 1).flatten(1, 2) for level in levels], 1)


def own_grid(
    head: PAAHead, samples: SampleList, level_shapes: list[Shape], device: torch.device
) -> Tensor:
    """Which priors lie inside a view's own padded size: mmdet's valid flags, (B, P) bool.

    Args:
        head: whose priors they are.
        samples: B samples whose meta data holds `pad_shape`.
        level_shapes: (rows, columns) of the batch's feature maps.
        device: of the result.
    """
    pad_shapes = [sample.metainfo["pad_shape"] for sample in samples]
    if all(shape == samples[0].metainfo["batch_input_shape"] for shape in pad_shapes):
        priors = sum(rows * columns for rows, columns in level_shapes)
        return torch.ones(len(samples), priors, dtype=torch.bool, device=device)
    flags = []
    padded = torch.tensor(pad_shapes, device=device)
    strides = [stride for stride, _ in head.prior_generator.strides]
    for (rows, columns), stride in zip(level_shapes, strides, strict=True):
        own = torch.div(padded + stride - 1, stride, rounding_mode="floor")[..., None]
        inside_rows = torch.arange(rows, device=device) < own[:, 0]
        inside_columns = torch.arange(columns, device=device) < own[:, 1]
        flags.append((inside_rows[:, :, None] & inside_columns[:, None, :]).flatten(1))
    return torch.cat(flags, 1)


def label_assignment(
    head: LADHead, inside: Tensor, *, places: Tensor, labels: Tensor, boxes: Tensor, anchors: Tensor
) -> tuple:
    """What mmdet's `LADHead.get_label_assignment` returns, from the positives.

    Args:
        head: that learns it.
        inside: (B, P) bool, the priors of each view's own grid; others get label weight 0.
        places: (K,) int64 where the positives lie among the batch's B * P priors, ascending.
        labels: (K,) int64 the class that each learns.
        boxes: (K, 4) the box that each learns.
        anchors: (K, 4) the positives as boxes.
    """
    weights = inside.flatten().float()
    all_labels = torch.full(weights.shape, head.num_classes, device=weights.device)
    all_labels[places] = labels
    box_targets = weights.new_zeros(len(weights), 4)
    box_targets[places] = boxes
    return all_labels, weights, box_targets, None, places, anchors, len(places)
