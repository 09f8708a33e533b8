"""Checks a COCO-format data set, once, so that mmdet reads all of it as it stands."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.data.coco import SET_DATA, Record, read_coco
from pipeline.ingest.annotations import AnnotationCheck
from pipeline.ingest.decoded_images import DecodedImages
from pipeline.ingest.images import check_images
from pipeline.ingest.problems import Problems
from pipeline.ingest.values import Values
from pipeline.project.errors import UserError


@dataclass(frozen=True)
class CheckResult:
    """A split of which mmdet reads every image and every annotation, and what was left out.

    Attributes:
        annotations: a COCO dict with the images, annotations (without segmentations) and
            categories in file order; `area` and `iscrowd` are always there.
        classes: category names in file order.
        images_digest: sha256 over the sorted (file name, sha256 of the file) of all images.
        sha256s: of the image files.
        dropped: what was left out, counted by kind.
        images: number of images.
        objects: number of annotations, crowds included.
        crowd: number of annotations that are crowds.
        empty: number of images without any annotation.
        reach_outside: number of boxes that lie partly outside their image; mmdet clips them.
        notes: what else there is to say, a line each.
    """

    annotations: Record
    classes: tuple[str, ...]
    images_digest: str
    sha256s: set[str]
    dropped: dict[str, int]
    images: int
    objects: int
    crowd: int
    empty: int
    reach_outside: int
    notes: list[str]


def check_split(
    annotations: Path,
    images: Path,
    problems: Literal["fail", "drop"],
    decoded: DecodedImages | None = None,
) -> CheckResult:
    """Check a COCO annotation file against its folder of images.

    Annotations marked `ignore` are left out in any case, as mmdet skips them. With `drop`, so is
    what has a problem: an annotation, or an image with all its annotations.

    Args:
        annotations: the COCO JSON file.
        images: the folder that `file_name` starts from.
        problems: what an image or annotation with a problem does.
        decoded: remembers what is in image files; None decodes all.

    Raises:
        UserError: the file is missing, is not COCO JSON, has doubtful categories, no image or no
            object left; with `fail`, also any problem of an image or annotation: the message lists
            the first 20 and counts all.
    """
    content = read_coco(annotations, SET_DATA)
    if not images.is_dir():
        raise UserError(
            f"no folder {images}, from which the images of {annotations} are to be read; "
            "set `data.source` and the split's `images`"
        )
    values, found = Values(), Problems()
    categories = _check_categories(annotations, content["categories"], values)
    files = check_images(content["images"], images, decoded or DecodedImages(), values, found)
    by_id = {image["id"]: image for image in files.records}
    category_ids = [category["id"] for category in categories]
    checked = AnnotationCheck(by_id, files.known, category_ids, values, found).check(
        content["annotations"]
    )
    if found.counts and problems == "fail":
        raise UserError(
            f"{annotations}, with its images in {images}, has problems:\n{found}\n"
            "fix them, or set `data.problems: drop` to leave them out"
        )
    kept = checked.records
    if not by_id:
        raise UserError(f"{annotations}: no image is left to use{_listed(found)}")
    crowd = sum(annotation["iscrowd"] for annotation in kept)
    if crowd == len(kept):
        kinds = f"all {crowd} are crowds" if crowd else "it has no annotations"
        if dropped := found.counts + checked.left_out:
            kinds += f" but for {dropped.total()} that were left out"
        raise UserError(
            f"{annotations}: there is no object to learn or to measure ({kinds}){_listed(found)}; "
            "set the split's `annotations` to a file with objects"
        )
    return CheckResult(
        annotations={
            "info": {},
            "images": list(by_id.values()),
            "annotations": kept,
            "categories": categories,
        },
        classes=tuple(category["name"] for category in categories),
        images_digest=files.digest,
        sha256s=files.sha256s,
        dropped=dict(found.counts + checked.left_out),
        images=len(by_id),
        objects=len(kept),
        crowd=crowd,
        empty=len(by_id.keys() - {annotation["image_id"] for annotation in kept}),
        reach_outside=sum(_reaches_outside(a["bbox"], by_id[a["image_id"]]) for a in kept),
        notes=[*files.notes, *checked.notes, *values.notes()],
    )


def with_classes_of(train: CheckResult, val: CheckResult) -> CheckResult:
    """The validation split with the categories of the training split, found by name.

    Raises:
        UserError: it has a category that the training split has not; the message says which.
    """
    only_val = [name for name in val.classes if name not in train.classes]
    only_train = [name for name in train.classes if name not in val.classes]
    if only_val:
        raise UserError(
            "train must have the categories of val, by name; "
            f"only in train: {only_train}; only in val: {only_val}; "
            "mend `categories` in one of the annotation files"
        )
    notes = list(val.notes)
    if only_train:
        notes.append(f"{len(only_train)} classes of train are not in val: {', '.join(only_train)}")
    id_of = {category["name"]: category["id"] for category in train.annotations["categories"]}
    new_id = {category["id"]: id_of[category["name"]] for category in val.annotations["categories"]}
    annotations = [
        annotation | {"category_id": new_id[annotation["category_id"]]}
        for annotation in val.annotations["annotations"]
    ]
    categories = train.annotations["categories"]
    return replace(
        val,
        annotations=val.annotations | {"annotations": annotations, "categories": categories},
        classes=train.classes,
        notes=notes,
    )


def notes_on_both(train: CheckResult, val: CheckResult) -> list[str]:
    """What there is to say of the two splits together, a line each."""
    notes = []
    if shared := len(train.sha256s & val.sha256s):
        notes.append(
            f"{shared} image files of val are in train, too: what is measured on them says little"
        )
    learnt = {one["category_id"] for one in train.annotations["annotations"] if not one["iscrowd"]}
    never = [c["name"] for c in train.annotations["categories"] if c["id"] not in learnt]
    if never:
        notes.append(f"{len(never)} classes have no object in train: {', '.join(never)}")
    return notes


def _listed(found: Problems) -> str:
    return f"\n{found}\n" if found.counts else ""


def _twice(values: Iterable[Any]) -> list[Any]:
    return [value for value, count in Counter(values).items() if count > 1]


def _check_categories(file: Path, records: list[Record], values: Values) -> list[Record]:
    """The categories with `id` and `name` alone."""
    if not records:
        raise UserError(f"{file}: `categories` is empty; name at least one class")
    categories = []
    for record in records:
        id_, name = values.whole(record, "id"), record.get("name")
        if id_ is None or not isinstance(name, str):
            raise UserError(
                f"{file}: expected each category to have an integer `id` and a `name`, got {record}"
            )
        categories.append({"id": id_, "name": name})
    for key in ("id", "name"):
        if twice := _twice(category[key] for category in categories):
            raise UserError(f"{file}: category {key} {twice[0]!r} stands twice; make it unique")
    return categories


def _reaches_outside(box: list[float], image: Record) -> bool:
    x, y, width, height = box
    return x < 0 or y < 0 or x + width > image["width"] or y + height > image["height"]
