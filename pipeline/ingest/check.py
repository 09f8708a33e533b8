"""Checks a COCO-format data set, once, so that mmdet reads all of it as it stands."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.data.coco import Record, read_coco
from pipeline.ingest.image_files import ImageFile, Problem, read_image_files
from pipeline.project.errors import UserError

EXAMPLES = 20
"""How many problems an error message lists one by one."""


@dataclass(frozen=True)
class CheckResult:
    """A split of which mmdet reads every image and every annotation, and what was left out.

    Attributes:
        annotations: a COCO dict with the images, annotations (without segmentations) and
            categories in file order; `area` and `iscrowd` are always there.
        classes: category names in file order.
        images_digest: sha256 over the sorted (file name, sha256 of the file) of all images.
        dropped: what was left out, counted by kind.
        images: number of images.
        objects: number of annotations, crowds included.
        crowd: number of annotations that are crowds.
        empty: number of images without any annotation.
        reach_outside: number of boxes that lie partly outside their image; mmdet clips them.
    """

    annotations: Record
    classes: tuple[str, ...]
    images_digest: str
    dropped: dict[str, int]
    images: int
    objects: int
    crowd: int
    empty: int
    reach_outside: int


class _Problems:
    """Collects what is wrong, and what was left out because of it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.counts: Counter[str] = Counter()

    def add(self, problem: Problem, where: str) -> None:
        self.counts[problem.kind] += 1
        if len(self.lines) < EXAMPLES:
            self.lines.append(f"  {where}: {problem}")

    def __str__(self) -> str:
        more = self.counts.total() - len(self.lines)
        lines = [*self.lines, f"  and {more} more"] if more else self.lines
        counts = [f"  {count} x {kind}" for kind, count in self.counts.items()]
        return "\n".join([*lines, "in all", *counts])


def check_split(annotations: Path, images: Path, problems: Literal["fail", "drop"]) -> CheckResult:
    """Check a COCO annotation file against its folder of images.

    Annotations marked `ignore` are left out in any case, as mmdet skips them. With `drop`, so is
    what has a problem: an annotation, or an image with all its annotations. Of annotations with
    the same id the first stays. An annotation with id 0 gets a new id, because pycocotools takes
    a detection that matches it for an unmatched one.

    Args:
        annotations: the COCO JSON file.
        images: the folder that `file_name` starts from.
        problems: what an image or annotation with a problem does.

    Raises:
        UserError: the file is missing, is not COCO JSON, has doubtful categories or no image left;
            with `fail`, also any problem of an image or annotation: the message lists the first 20
            and counts all.
    """
    content = read_coco(annotations)
    if not images.is_dir():
        raise UserError(
            f"no folder {images}, from which the images of {annotations} are to be read; "
            "set `data.source` and the split's `images`"
        )
    category_ids, classes = _check_categories(annotations, content["categories"])
    found = _Problems()
    left_out: Counter[str] = Counter()

    kept_images, digest = _check_images(content["images"], images, found)
    known = {image["id"] for image in content["images"] if _is_id(image.get("id"))}
    by_id = {image["id"]: image for image in kept_images}
    kept: list[Record] = []
    taken: set[int] = set()
    for annotation in content["annotations"]:
        image_id = annotation.get("image_id")
        if annotation.get("ignore"):
            left_out["annotation marked ignore"] += 1
        elif _is_id(image_id) and image_id in known and image_id not in by_id:
            left_out["annotation of an image with a problem"] += 1
        elif problem := _annotation_problem(annotation, by_id, category_ids, taken):
            found.add(problem, f"annotation {annotation.get('id')!r} of image {image_id!r}")
        else:
            taken.add(annotation["id"])
            kept.append(_normal(annotation))

    if found.counts and problems == "fail":
        raise UserError(
            f"{annotations}, with its images in {images}, has problems:\n{found}\n"
            "fix them, or set `data.problems: drop` to leave them out"
        )
    if not kept_images:
        raise UserError(f"{annotations}: no image is left to use\n{found}")
    for annotation in kept:
        if annotation["id"] == 0:
            annotation["id"] = max(taken) + 1
    return CheckResult(
        annotations={
            "info": {},
            "images": kept_images,
            "annotations": kept,
            "categories": [
                {"id": id_, "name": name} for id_, name in zip(category_ids, classes, strict=True)
            ],
        },
        classes=classes,
        images_digest=digest,
        dropped=dict(found.counts + left_out),
        images=len(kept_images),
        objects=len(kept),
        crowd=sum(annotation["iscrowd"] for annotation in kept),
        empty=len(by_id.keys() - {annotation["image_id"] for annotation in kept}),
        reach_outside=sum(_reaches_outside(a["bbox"], by_id[a["image_id"]]) for a in kept),
    )


def check_same_classes(train: CheckResult, val: CheckResult) -> None:
    """Check that two splits have the same classes in the same order.

    Raises:
        UserError: they differ; the message says how.
    """
    if train.classes == val.classes:
        return
    only_train = [name for name in train.classes if name not in val.classes]
    only_val = [name for name in val.classes if name not in train.classes]
    if only_train or only_val:
        difference = f"only in train: {only_train}; only in val: {only_val}"
    else:
        difference = f"the order differs, train: {list(train.classes)}; val: {list(val.classes)}"
    raise UserError(
        f"train and val must have the same categories in the same order; {difference}; "
        "mend `categories` in one of the annotation files"
    )


def _is_id(value: Any) -> bool:
    """Whether `value` is an integer of 64 bits, which the label store can hold."""
    return type(value) is int and -(2**63) <= value < 2**63


def _twice(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _check_categories(file: Path, categories: list[Record]) -> tuple[list[int], tuple[str, ...]]:
    if not categories:
        raise UserError(f"{file}: `categories` is empty; name at least one class")
    for category in categories:
        if not _is_id(category.get("id")) or not isinstance(category.get("name"), str):
            raise UserError(
                f"{file}: expected each category to have an integer `id` and a `name`, "
                f"got {category}"
            )
    for key in ("id", "name"):
        if twice := _twice(category[key] for category in categories):
            raise UserError(f"{file}: category {key} {twice[0]!r} stands twice; make it unique")
    return [c["id"] for c in categories], tuple(c["name"] for c in categories)


def _check_images(
    records: list[Record], folder: Path, found: _Problems
) -> tuple[list[Record], str]:
    """The images without a problem, and the digest of their files."""
    twice = set(_twice(image["id"] for image in records if _is_id(image.get("id"))))
    names = {image["file_name"] for image in records if isinstance(image.get("file_name"), str)}
    files = read_image_files(folder, sorted(names))
    kept = []
    digests = set()
    for image in records:
        file = _usable_file(image, twice, files)
        if isinstance(file, Problem):
            found.add(file, f"image {image.get('id')!r}")
            continue
        name, (width, height) = image["file_name"], file.size
        kept.append({"id": image["id"], "file_name": name, "width": width, "height": height})
        digests.add((name, file.sha256))
    return kept, hashlib.sha256(json.dumps(sorted(digests)).encode()).hexdigest()


def _usable_file(
    image: Record, twice: set[int], files: dict[str, ImageFile | Problem]
) -> ImageFile | Problem:
    if not _is_id(image.get("id")):
        return Problem("image id is not an integer of 64 bits")
    if image["id"] in twice:
        # All of them go: nothing says which of them the annotations belong to.
        return Problem("image id stands twice")
    name, size = image.get("file_name"), (image.get("width"), image.get("height"))
    if not isinstance(name, str):
        return Problem("image without a file_name")
    file = files[name]
    if isinstance(file, ImageFile) and file.size != size:
        return Problem(
            "image size differs from its file",
            f"{name} is {file.size[0]} x {file.size[1]} pixels, annotated as {size[0]} x {size[1]}",
        )
    return file


def _annotation_problem(
    annotation: Record, images: dict[int, Record], category_ids: list[int], taken: set[int]
) -> Problem | None:
    if not _is_id(annotation.get("id")):
        return Problem("annotation id is not an integer of 64 bits")
    if annotation["id"] in taken:
        return Problem("annotation id stands twice")
    image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
    if not _is_id(image_id) or image_id not in images:
        return Problem("annotation of an unknown image")
    if not _is_id(category_id) or category_id not in category_ids:
        return Problem("annotation of an unknown category", repr(category_id))
    box = annotation.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        return Problem("box is not four finite numbers", repr(box))
    x, y, width, height = box
    if width < 1 or height < 1:
        return Problem("box under 1 pixel wide or high", repr(box))
    image = images[image_id]
    # As mmdet computes it.
    inside_width = max(0, min(x + width, image["width"]) - max(x, 0))
    inside_height = max(0, min(y + height, image["height"]) - max(y, 0))
    if inside_width * inside_height == 0:
        return Problem(
            "box outside its image", f"{box} in {image['width']} x {image['height']} pixels"
        )
    return None


def _is_number(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:
        return False


def _normal(annotation: Record) -> Record:
    box, area = annotation["bbox"], annotation.get("area", 0)
    return {
        "id": annotation["id"],
        "image_id": annotation["image_id"],
        "category_id": annotation["category_id"],
        "bbox": box,
        "area": area if _is_number(area) and area > 0 else box[2] * box[3],
        "iscrowd": int(bool(annotation.get("iscrowd"))),
    }


def _reaches_outside(box: list[float], image: Record) -> bool:
    x, y, width, height = box
    return x < 0 or y < 0 or x + width > image["width"] or y + height > image["height"]
