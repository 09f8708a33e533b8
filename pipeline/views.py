"""Views: the replayable geometric versions of an image, and which one shows in which epoch.

Sizes are (height, width) in pixels; a resize scale is mmdet's pair of bounds for the long and the
short side, in either order.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from pipeline.params import Views

Shape = tuple[int, int]


@dataclass(frozen=True)
class View:
    """One geometric version of an image: resized to fit `scale`, then flipped or not."""

    scale: Shape
    flip: bool

    def resized_shape(self, height: int, width: int) -> Shape:
        """The (height, width) of an image of this size in this view.

        The arithmetic is that of `mmcv.rescale_size`, which resizes the image.
        """
        factor = min(
            max(self.scale) / max(height, width),
            min(self.scale) / min(height, width),
        )
        return int(height * factor + 0.5), int(width * factor + 0.5)


def view_plan(views: Views) -> tuple[View, ...]:
    """The views that exist of every image: each scale with each flip."""
    return tuple(
        View(scale=scale, flip=flip == "horizontal")
        for scale, flip in product(views.scales, views.flips)
    )


def padded_shape(shape: Shape, divisor: int) -> Shape:
    """The (height, width) padded to multiples of `divisor`, as mmdet pads a batch of one."""
    height, width = shape
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al., OOPSLA 2014): every bit depends on every bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def choose_views(
    seed: int, epoch: int, image_ids: npt.NDArray[np.int64], num_views: int
) -> npt.NDArray[np.int64]:
    """The view that each image shows in an epoch, uniform over the plan.

    It depends on the seed, the epoch and the image's id alone: not on the order of images, on
    loader workers, on ranks or on a resume.

    Args:
        seed: the training's seed.
        epoch: counted from 0.
        image_ids: (N,) ids of the annotation file.
        num_views: number of views in the plan.

    Returns:
        (N,) indices into the plan.
    """
    state = np.zeros(len(image_ids), np.uint64)
    for part in (np.int64(seed), np.int64(epoch), image_ids.astype(np.int64)):
        state = _mix(state + np.asarray(part).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return (state % np.uint64(num_views)).astype(np.int64)
