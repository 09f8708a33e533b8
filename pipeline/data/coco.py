"""Checked COCO-format annotations, as arrays.

Boxes are xyxy in pixels of the original image, [x, y, x + width, y + height]. Objects are those of
the annotation file in its order, before any filter, so that an index into them keeps its meaning.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.project.errors import UserError

Record = dict[str, Any]
MOST_OBJECTS = np.iinfo(np.int16).max
"""Of an image: a label store numbers them by int16."""
SET_DATA = "set `data.source` and the split's `annotations`"
"""What to do where an annotation file is missing."""


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of one image, crowds included.

    Attributes:
        boxes: float64 [objects, 4], xyxy pixels of the original image.
        labels: int64 [objects], index into the classes.
        crowd: bool [objects].
    """

    boxes: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    crowd: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        count = len(self.labels)
        for name, shape, dtype in (
            ("boxes", (count, 4), np.float64),
            ("labels", (count,), np.int64),
            ("crowd", (count,), np.bool_),
        ):
            array = getattr(self, name)
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(
                    f"{name} must be {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}"
                )


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """One image of a checked annotation file; sizes in pixels."""

    image_id: int
    file_name: str
    width: int
    height: int
    objects: Objects


def load_images(file: Path) -> tuple[AnnotatedImage, ...]:
    """Read a checked annotation file, in file order; labels are positions in its categories.

    A process parses a file once, however often it is asked for.

    Raises:
        UserError: the file is missing, or not what the stage `data` writes.
    """
    found = file.stat() if file.is_file() else None
    version = found and (found.st_mtime_ns, found.st_size, found.st_ino)
    return _load_images(file, version)


@lru_cache(maxsize=4)
def _load_images(file: Path, version: tuple[int, int, int] | None) -> tuple[AnnotatedImage, ...]:
    """The images of a file that is parsed anew where its version is another."""
    try:
        content = read_coco(file, "run `lad data`")
        label_of = {category["id"]: i for i, category in enumerate(content["categories"])}
        by_image: dict[int, list[Record]] = {image["id"]: [] for image in content["images"]}
        for annotation in content["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
        return tuple(
            AnnotatedImage(
                image_id=image["id"],
                file_name=image["file_name"],
                width=image["width"],
                height=image["height"],
                objects=_objects(by_image[image["id"]], label_of),
            )
            for image in content["images"]
        )
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file}: expected images and annotations as `lad data` writes them, got {error!r}; "
            "run `lad data`, which checks and completes them"
        ) from None


def objects_digest(objects: Objects) -> int:
    """A 64-bit unsigned digest of boxes, labels and crowd flags, the same on every machine."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(len(objects.labels).to_bytes(8, "little"))
    digest.update(objects.boxes.astype("<f8").tobytes())
    digest.update(objects.labels.astype("<i8").tobytes())
    digest.update(objects.crowd.astype("u1").tobytes())
    return int.from_bytes(digest.digest(), "little")


def read_coco(file: Path, remedy: str) -> dict[str, list[Record]]:
    """The lists `images`, `annotations` and `categories` of a COCO file.

    Args:
        file: to read.
        remedy: what to do where it can't be read, for the error.

    Raises:
        UserError: it is missing or is not COCO JSON.
    """
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(
            f"can't read the annotation file {file} ({error.strerror}); {remedy}"
        ) from None
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON: {error}; {remedy} or export it again") from None
    if not isinstance(content, dict):
        raise UserError(
            f"{file}: expected a JSON object in COCO format, got {type(content).__name__}; {remedy}"
        )
    for key in ("images", "annotations", "categories"):
        records = content.get(key)
        if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
            raise UserError(
                f"{file}: expected `{key}` to be a list of objects, as in COCO format, "
                f"got {'nothing' if records is None else type(records).__name__}; {remedy}"
            )
    return content


def _objects(annotations: list[Record], label_of: dict[int, int]) -> Objects:
    boxes = [(x, y, x + w, y + h) for x, y, w, h in (a["bbox"] for a in annotations)]
    return Objects(
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        labels=np.array([label_of[a["category_id"]] for a in annotations], dtype=np.int64),
        crowd=np.array([a["iscrowd"] for a in annotations], dtype=np.bool_),
    )
