"""The built-in data set: scenes of handwritten digits on paper, from scikit-learn's `load_digits`.

It needs no download, and detectors learn it on two CPU cores in minutes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipeline.ingest.settings import Digits
from pipeline.project.errors import UserError

Floats = npt.NDArray[np.float32]
Box = tuple[int, int, int, int]  # x, y, width, height in pixels

SPLITS = ("train", "val")
SMALLEST_SIDE = 48  # of a scene, in pixels
DIGIT_SIZES = (20, 96)  # the height of a digit in pixels, about
MOST_DIGITS = 8
EMPTY_SHARE = 0.02
MOST_COVERED = 0.05  # share of a digit's box that another's may cover
PLACES_TRIED = 25
INK = 0.35  # the opacity from which a pixel counts as ink, hence lies in the box


def write_digits(folder: Path, digits: Digits, splits: Sequence[str] = SPLITS) -> None:
    """Write the data set in COCO format: `SPLIT.json` and `images/SPLIT/*.jpg` of each split.

    A scene depends on the seed, its split and its number alone. No handwritten digit is in both
    splits.

    Args:
        folder: an empty folder, or one to be made.
        digits: the number of scenes, their sizes (taken in turn) and the seed.
        splits: which of `SPLITS` to write.

    Raises:
        UserError: a size is too small to hold digits.
    """
    for size in digits.sizes:
        if min(size) < SMALLEST_SIDE:
            raise UserError(
                f"data.digits.sizes: expected sides of at least {SMALLEST_SIDE} pixels, "
                f"got {size[0]} x {size[1]}; make it larger"
            )
    # Imported here, because it takes a second that checking a data set of one's own can do without.
    from sklearn.datasets import load_digits

    known = load_digits()
    glyphs = (known.images / 16).astype(np.float32)
    counts = {"train": digits.train_images, "val": digits.val_images}
    for split in splits:
        number = SPLITS.index(split)
        own = slice(number, None, 2)
        _write_split(folder, split, number, counts[split], digits, glyphs[own], known.target[own])


def _write_split(
    folder: Path,
    split: str,
    number: int,
    scenes: int,
    digits: Digits,
    glyphs: Floats,
    labels: npt.NDArray[np.int64],
) -> None:
    """Write the images and the annotation file of one split; `glyphs` are [instances, 8, 8]."""
    (folder / "images" / split).mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(scenes):
        rng = np.random.default_rng([digits.seed, number, index])
        width, height = digits.sizes[index % len(digits.sizes)]
        scene, drawn = _draw_scene(rng, width, height, glyphs)
        image_id, name = index + 1, f"{split}/{index + 1:06d}.jpg"
        Image.fromarray(scene).save(folder / "images" / name, quality=90)
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        annotations += [
            {
                "id": len(annotations) + i,
                "image_id": image_id,
                "category_id": int(labels[instance]) + 1,
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": 0,
            }
            for i, (instance, box) in enumerate(drawn, start=1)
        ]
    content = {
        "info": {"description": f"handwritten digits on paper, {split}, seed {digits.seed}"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": label + 1, "name": str(label)} for label in range(10)],
    }
    (folder / f"{split}.json").write_text(json.dumps(content))


def _draw_scene(
    rng: np.random.Generator, width: int, height: int, glyphs: Floats
) -> tuple[npt.NDArray[np.uint8], list[tuple[int, Box]]]:
    """One scene, uint8 [height, width, 3], and (index of the glyph, box) of each digit in it."""
    scene = _draw_paper(rng, width, height)
    wanted = 0 if rng.random() < EMPTY_SHARE else rng.integers(1, MOST_DIGITS + 1)
    drawn: list[tuple[int, Box]] = []
    for _ in range(wanted):
        instance = int(rng.integers(len(glyphs)))
        opacity = _draw_glyph(rng, glyphs[instance], min(width, height))
        box = _find_place(rng, opacity, width, height, [other for _, other in drawn])
        if box is None:
            continue
        x, y, w, h = box
        ink = rng.uniform(10, 90) + rng.uniform(-10, 30, 3).astype(np.float32)
        strength = rng.uniform(0.75, 1) * opacity[:, :, None]
        scene[y : y + h, x : x + w] += strength * (ink - scene[y : y + h, x : x + w])
        drawn.append((instance, box))
    return scene.clip(0, 255).astype(np.uint8), drawn


def _draw_paper(rng: np.random.Generator, width: int, height: int) -> Floats:
    """Light paper with soft stains and fine grain, [height, width, 3] in 0..255."""
    colour = rng.uniform(200, 240) + rng.uniform(-12, 12, 3)
    stains = rng.normal(0, 10, (height // 32 + 2, width // 32 + 2)).astype(np.float32)
    grain = rng.normal(0, 3, (height, width)).astype(np.float32)
    shade = _resize(stains, width, height) + grain
    return (shade[:, :, None] + colour).astype(np.float32)


def _draw_glyph(rng: np.random.Generator, glyph: Floats, shorter_side: int) -> Floats:
    """The opacity of a digit's ink, 0..1, cropped to the ink's box."""
    smallest, largest = DIGIT_SIZES
    size = rng.uniform(smallest, min(largest, shorter_side / 2))
    stretch = rng.uniform(0.85, 1.2)
    # Drawn from a margin of paper, so that strokes end smoothly. The digit has 8 of 10 rows.
    smooth = _resize(np.pad(glyph, 1), round(size * stretch * 10 / 8), round(size * 10 / 8))
    # A steep slope gives pen strokes instead of blurs; where it lies makes them thin or bold.
    opacity = ((smooth - rng.uniform(0.25, 0.42)) * 4).clip(0, 1)
    rows, columns = (np.flatnonzero((opacity > INK).any(axis=axis)) for axis in (1, 0))
    return opacity[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _resize(values: Floats, width: int, height: int) -> Floats:
    image = Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float32)


def _find_place(
    rng: np.random.Generator, opacity: Floats, width: int, height: int, others: list[Box]
) -> Box | None:
    """A box for this ink inside the scene that hardly overlaps the others, if one is found."""
    h, w = opacity.shape
    for _ in range(PLACES_TRIED):
        box = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1)), w, h
        if all(_covered(box, other) <= MOST_COVERED for other in others):
            return box
    return None


def _covered(box: Box, other: Box) -> float:
    """The larger of the shares that one box covers of the other."""
    overlap = 1
    for start, side in ((0, 2), (1, 3)):
        end = min(box[start] + box[side], other[start] + other[side])
        overlap *= max(0, end - max(box[start], other[start]))
    return overlap / min(box[2] * box[3], other[2] * other[3])
