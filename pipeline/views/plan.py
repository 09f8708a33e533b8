"""Views: the replayable geometric versions of an image, and which one shows in which epoch.

Sizes are (height, width) in pixels; a resize scale is mmdet's pair of bounds for the long and the
short side, in either order.
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.project.errors import UserError
from pipeline.views.settings import Crop, Sampled, Views

Shape = tuple[int, int]
Window = tuple[int, int, int, int]
"""Top, left, height and width in pixels."""

WINDOW_STEP = 64
"""Sides of windows of a relative size are multiples of it, so that buckets stay few."""


@contextmanager
def of_image(name: str) -> Iterator[None]:
    """Say of which image an error is."""
    try:
        yield
    except UserError as error:
        raise UserError(f"the image {name}: {error}") from None


@dataclass(frozen=True)
class View:
    """One geometric version of an image: resized, then cropped, then flipped.

    Attributes:
        scale: the image is resized to fit it, its aspect kept.
        flip: whether it is flipped horizontally.
        crop: the window of the resized image that it shows; None for all of it.
    """

    scale: Shape
    flip: bool
    crop: Window | None = None

    def resized_shape(self, height: int, width: int) -> Shape:
        """The (height, width) of an image of this size, resized.

        The arithmetic is that of `mmcv.rescale_size`, which resizes the image.

        Raises:
            UserError: nothing would be left of it.
        """
        factor = min(
            max(self.scale) / max(height, width),
            min(self.scale) / min(height, width),
        )
        resized = int(height * factor + 0.5), int(width * factor + 0.5)
        if 0 in resized:
            long, short = max(self.scale), min(self.scale)
            raise UserError(
                f"resized to fit {long} x {short} pixels, {width} x {height} pixels would become "
                f"{resized[1]} x {resized[0]}: leave the image out of the annotation file, or set "
                "larger scales"
            )
        return resized

    def window(self, height: int, width: int) -> Window:
        """What it shows of an image of this size, in pixels of the resized image."""
        return self.crop or (0, 0, *self.resized_shape(height, width))

    def shape(self, height: int, width: int) -> Shape:
        """The (height, width) of an image of this size in this view."""
        return self.window(height, width)[2:]

    def geometry(self, height: int, width: int) -> tuple[int, ...]:
        """What a store records of the view of an image of this size.

        Returns:
            Bounds of the long and the short side, whether it is flipped, and its window.
        """
        return max(self.scale), min(self.scale), int(self.flip), *self.window(height, width)


@dataclass(frozen=True)
class FixedPlan:
    """The same views of every image."""

    views: tuple[View, ...]

    def __len__(self) -> int:
        return len(self.views)

    def view(self, number: int, image_id: int, height: int, width: int) -> View:
        """The view `number` of an image."""
        return self.views[number]

    def plain(self) -> list[dict[str, Any]]:
        """For the fingerprint; see `read_plan`."""
        return [{"scale": list(view.scale), "flip": view.flip} for view in self.views]

    def describe(self) -> list[str]:
        """Lines of text."""
        return ["views of every image:"] + [
            f"  {number}: {view.scale[0]} x {view.scale[1]}{', flipped' if view.flip else ''}"
            for number, view in enumerate(self.views)
        ]


@dataclass(frozen=True)
class SampledPlan:
    """Views of its own for every image, drawn from the seed, the image's id and size alone."""

    settings: Sampled

    def __len__(self) -> int:
        return self.settings.count

    def view(self, number: int, image_id: int, height: int, width: int) -> View:
        """The view `number` of an image.

        Args:
            number: less than `len(self)`.
            image_id: of the annotation file.
            height: of the image.
            width: of the image.
        """
        settings = self.settings
        scale, flip, *window = _draws(settings.seed, image_id, number)
        scales = settings.all_scales()
        view = View(scale=scales[int(scale * len(scales))], flip=flip < settings.flip)
        if settings.crop is None:
            return view
        crop = _window(settings.crop, view.resized_shape(height, width), window)
        return View(view.scale, view.flip, crop)

    def plain(self) -> dict[str, Any]:
        """For the fingerprint; see `read_plan`."""
        return self.settings.model_dump(exclude={"range"}) | {"scales": self.settings.all_scales()}

    def describe(self) -> list[str]:
        """Lines of text."""
        settings = self.settings
        scales = ", ".join(f"{long} x {short}" for long, short in settings.all_scales())
        lines = [
            f"views of every image: {settings.count}, drawn with the seed {settings.seed}",
            f"  scales: {scales}",
            f"  flipped: {settings.flip:.0%}",
        ]
        if settings.crop and settings.crop.size:
            lines.append("  cropped to: {} x {} pixels".format(*settings.crop.size))
        if settings.crop and settings.crop.relative:
            least, greatest = settings.crop.relative
            lines.append(f"  cropped to: {least:.0%} to {greatest:.0%} of each side")
        return lines


ViewPlan = FixedPlan | SampledPlan


def view_plan(views: Views) -> ViewPlan:
    """The views that exist of every image: each scale with each flip, or sampled ones."""
    if views.sampled:
        return SampledPlan(views.sampled)
    return FixedPlan(
        tuple(
            View(scale=scale, flip=flip == "horizontal")
            for scale, flip in product(views.all_scales(), views.flips)
        )
    )


def read_plan(plain: Any) -> ViewPlan:
    """The plan that gave these plain values (see `plain`)."""
    if isinstance(plain, dict):
        return SampledPlan(Sampled.model_validate(plain))
    return FixedPlan(tuple(View(tuple(view["scale"]), view["flip"]) for view in plain))


def _draws(seed: int, image_id: int, number: int) -> list[float]:
    """Six numbers, uniform in [0, 1)."""
    digest = hashlib.blake2b(f"{seed} {image_id} {number}".encode(), digest_size=48).digest()
    return [(word >> 11) * 2.0**-53 for word in struct.unpack("<6Q", digest)]


def _window(crop: Crop, resized: Shape, draws: Sequence[float]) -> Window:
    """A window of an image of the size `resized` by four draws: height, width, top, left."""
    if crop.size:
        sides = [min(side, most) for side, most in zip(crop.size[::-1], resized, strict=True)]
    else:
        assert crop.relative
        low, high = crop.relative
        sides = [
            _in_steps(most * (low + draw * (high - low)), most)
            for most, draw in zip(resized, draws[:2], strict=True)
        ]
    height, width = sides
    top = int(draws[2] * (resized[0] - height + 1))
    left = int(draws[3] * (resized[1] - width + 1))
    return top, left, height, width


def _in_steps(side: float, most: int) -> int:
    """The nearest multiple of `WINDOW_STEP` of at least one step; `most` if that is less."""
    steps = max(1, min(round(side / WINDOW_STEP), most // WINDOW_STEP))
    return min(steps * WINDOW_STEP, most)


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
