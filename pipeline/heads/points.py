"""Priors that are points, as mmdet has them with their strides."""

import torch
from torch import Tensor

from pipeline.views.priors import Priors


def with_strides(priors: Priors, offset: float = 0.0) -> Tensor:
    """(P, 4) x, y, stride and stride of each prior, in pixels.

    Args:
        priors: of a view.
        offset: how far the point lies from the prior, in strides.
    """
    strides = priors.strides[:, None].expand(-1, 2).to(priors.boxes.dtype)
    return torch.cat([priors.centres + strides * offset, strides], 1)
