"""IoU of objects with boxes: those of a grid of priors, or predicted ones.

The float32 operations on a number are those of `mmdet.structures.bbox.bbox_overlaps`, in their
order, so that comparisons with a threshold or for equality come out alike.

Shapes: B images on one grid of P priors, M room for objects in an image. Boxes are xyxy in pixels
of the view.
"""

import torch
from torch import Tensor

from pipeline.data.ground_truth import GroundTruth
from pipeline.views.priors import Priors


def prior_ious(truth: GroundTruth, priors: Priors) -> Tensor:
    """IoU of every object with every prior, 0 for what is not valid.

    What an object shares with a column and with a row is found once for each.

    Args:
        truth: the objects.
        priors: of the images.

    Returns:
        (B, M, P).
    """
    boxes = truth.boxes.masked_fill(~truth.valid[..., None], 0)
    left, top, right, bottom = boxes[..., None].unbind(2)
    (lefts, rights), (tops, bottoms) = priors.sides
    widths = _shared_sides(left, right, lefts, rights)
    heights = _shared_sides(top, bottom, tops, bottoms)
    areas = (right - left) * (bottom - top) + priors.areas
    shared = torch.empty_like(areas)
    levels = zip(
        shared.split(priors.sizes, 2),
        heights.split([rows for rows, _ in priors.shapes], 2),
        widths.split([columns for _, columns in priors.shapes], 2),
        priors.shapes,
        strict=True,
    )
    for level, height, width, shape in levels:
        torch.mul(height[..., None], width[..., None, :], out=level.unflatten(2, shape))
    return _ratio(shared, areas)


def max_iou(predicted: Tensor, truth: GroundTruth) -> Tensor:
    """The highest IoU of each predicted box with an object of its image.

    Args:
        predicted: (B, P, 4).
        truth: the objects.

    Returns:
        (B, P), 0 for an image without objects.
    """
    if not truth.boxes.shape[1]:
        return predicted.new_zeros(predicted.shape[:2])
    boxes = truth.boxes.masked_fill(~truth.valid[..., None], 0)
    left, top, right, bottom = boxes[:, :, None].unbind(-1)
    # As columns: a stride between the numbers of a coordinate makes each operation slower.
    lefts, tops, rights, bottoms = predicted.movedim(-1, 0).contiguous().unsqueeze(2)
    widths = _shared_sides(left, right, lefts, rights)
    shared = widths.mul_(_shared_sides(top, bottom, tops, bottoms))
    areas = (rights - lefts) * (bottoms - tops)
    return _ratio(shared, (right - left) * (bottom - top) + areas).amax(1)


def _shared_sides(start: Tensor, end: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
    """How long the part of a side is that lies within each of others."""
    return torch.minimum(end, ends).sub_(torch.maximum(start, starts)).clamp_(min=0)


def _ratio(shared: Tensor, areas: Tensor) -> Tensor:
    """IoU from shared areas and the sums of both areas; overwrites them."""
    return shared.div_(areas.sub_(shared).clamp_(min=1e-6))
