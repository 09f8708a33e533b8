"""The entry `annotations` of an annotation file: what becomes an object, and what does not."""

from collections import Counter
from dataclasses import dataclass

from pipeline.data.coco import MOST_OBJECTS, Record
from pipeline.ingest.problems import Problem, Problems
from pipeline.ingest.values import Values, positive, shown

MOST_DETECTIONS = 100
"""Of an image, which COCO's evaluation counts, and most heads give."""

FAR = 10
"""A box that is so many times as large as its image is a mistake."""


@dataclass(frozen=True)
class CheckedAnnotations:
    """The annotations without a problem.

    Attributes:
        records: in file order; `area` and `iscrowd` are always there, segmentations never.
        left_out: what was left out beside those with a problem, counted by kind.
        notes: what else there is to say of them, a line each.
    """

    records: list[Record]
    left_out: Counter[str]
    notes: list[str]


class AnnotationCheck:
    """Checks annotations one by one.

    Args:
        images: the images without a problem, by id.
        known: the ids of all images.
        category_ids: of the file.
        values: reads numbers.
        found: collects the problems.
    """

    def __init__(
        self,
        images: dict[int, Record],
        known: set[int],
        category_ids: list[int],
        values: Values,
        found: Problems,
    ) -> None:
        self.images = images
        self.known = known
        self.category_ids = set(category_ids)
        self.values = values
        self.found = found
        self._taken: set[tuple[float | None, ...]] = set()

    def check(self, annotations: list[Record]) -> CheckedAnnotations:
        """Check all annotations of a file.

        Those marked `ignore` are left out, as mmdet skips them, and so are those of images with a
        problem. Of the same object with the same id the first stays. Ids that stand twice otherwise
        are numbered anew, as nothing refers to them; so is 0, because pycocotools takes a detection
        that matches it for an unmatched one.
        """
        left_out: Counter[str] = Counter()
        kept: list[Record] = []
        for annotation in annotations:
            image_id = self.values.whole(annotation, "image_id")
            ignore = self.values.flag(annotation, "ignore")
            if ignore:
                left_out["annotation marked ignore"] += 1
            elif image_id in self.known and image_id not in self.images:
                left_out["annotation of an image with a problem"] += 1
            elif isinstance(record := self._read(annotation, image_id, ignore), Problem):
                self.found.add(
                    record,
                    f"annotation {annotation.get('id')!r} of image {annotation.get('image_id')!r}",
                )
            else:
                kept.append(record)
        kept = self._without_crowded(kept, left_out)
        return CheckedAnnotations(kept, left_out, [*_number_anew(kept), *_crowded_notes(kept)])

    def _read(
        self, annotation: Record, image_id: int | None, ignore: int | None
    ) -> Record | Problem:
        values = self.values
        id_ = values.whole(annotation, "id")
        if id_ is None:
            return Problem(
                "annotation id is not an integer of 64 bits", shown(annotation.get("id"))
            )
        if image_id is None or image_id not in self.images:
            return Problem("annotation of an unknown image", shown(annotation.get("image_id")))
        category_id = values.whole(annotation, "category_id")
        if category_id not in self.category_ids:
            return Problem(
                "annotation of an unknown category", _told(annotation.get("category_id"))
            )
        crowd = values.flag(annotation, "iscrowd")
        for key, flag in (("iscrowd", crowd), ("ignore", ignore)):
            if flag is None:
                return Problem(f"{key} is neither 0 nor 1", shown(annotation.get(key)))
        box = values.box(annotation)
        if box is None:
            return Problem("box is not four finite numbers", _told(annotation.get("bbox")))
        if problem := _box_problem(box, self.images[image_id]):
            return problem
        if (same := (image_id, id_, category_id, *box)) in self._taken:
            return Problem("annotation id stands twice", "the same object in the same image")
        self._taken.add(same)
        return {
            "id": id_,
            "image_id": image_id,
            "category_id": category_id,
            "bbox": box,
            "area": _area(annotation.get("area"), box, self.images[image_id]),
            "iscrowd": crowd,
        }

    def _without_crowded(self, kept: list[Record], left_out: Counter[str]) -> list[Record]:
        """Without the images that have more objects than a store can count, and their objects."""
        counts = Counter(one["image_id"] for one in kept)
        crowded = {id_: count for id_, count in counts.items() if count > MOST_OBJECTS}
        for id_, count in crowded.items():
            self.found.add(
                Problem(
                    "image with more objects than a label store can count",
                    f"{count:,}, expected at most {MOST_OBJECTS:,}",
                ),
                f"image {id_!r}",
            )
            left_out["annotation of an image with a problem"] += count
            del self.images[id_]
        return [one for one in kept if one["image_id"] not in crowded]


def _area(given: object, box: list[float], image: Record) -> float:
    """The given area, or the box's; at most the image's, as COCO's evaluation has bounds."""
    return min(positive(given) or box[2] * box[3], image["width"] * image["height"])


def _told(value: object) -> str:
    """A value without its type where that is the expected one."""
    return repr(value) if type(value) in (int, list) else shown(value)


def _box_problem(box: list[float], image: Record) -> Problem | None:
    x, y, width, height = box
    if width < 1 or height < 1:
        return Problem("box under 1 pixel wide or high", repr(box))
    inside_width = min(x + width, image["width"]) - max(x, 0)
    inside_height = min(y + height, image["height"]) - max(y, 0)
    if inside_width <= 0 or inside_height <= 0:
        kind = "box outside its image"
    elif inside_width < 1 or inside_height < 1:
        # An IoU with nearly nothing divides by nearly nothing.
        kind = "box under 1 pixel wide or high inside its image"
    elif width > FAR * image["width"] or height > FAR * image["height"]:
        kind = f"box over {FAR} times as wide or high as its image"
    else:
        return None
    return Problem(kind, f"{box} in {image['width']} x {image['height']} pixels")


def _number_anew(annotations: list[Record]) -> list[str]:
    """Give ids that pycocotools can tell apart; returns a note where ids were not."""
    ids = [annotation["id"] for annotation in annotations]
    if len(set(ids)) < len(ids):
        for number, annotation in enumerate(annotations, 1):
            annotation["id"] = number
        return ["annotation ids stand more than once: all were numbered anew"]
    for annotation in annotations:
        if annotation["id"] == 0:
            annotation["id"] = max(ids) + 1
    return []


def _crowded_notes(annotations: list[Record]) -> list[str]:
    counts = Counter(one["image_id"] for one in annotations if not one["iscrowd"])
    many = [count for count in counts.values() if count > MOST_DETECTIONS]
    if not many:
        return []
    return [
        f"{len(many)} images have more than {MOST_DETECTIONS} objects, {max(many)} at most: COCO's "
        f"evaluation counts {MOST_DETECTIONS} detections of an image, and a head gives "
        "test_cfg.max_per_img"
    ]
