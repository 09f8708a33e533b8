"""A folder like COCO 2017's, for its sizes alone: `python -m tests.coco_stand_in data/coco`.

Its training set has COCO's number of images and about its mix of sizes and objects, so that
`lad estimate` can tell what a preset in `configs/params` costs where COCO itself is not at hand.
Pictures are digit scenes, one file of each size.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.random_teacher import CLASSES, OBJECTS_PER_IMAGE, random_objects
from pipeline.ingest.digits import write_digits
from pipeline.ingest.settings import Digits

IMAGES = 118_287
SIZES = {
    (640, 480): 0.42,
    (480, 640): 0.15,
    (640, 427): 0.22,
    (427, 640): 0.07,
    (500, 375): 0.07,
    (375, 500): 0.03,
    (640, 360): 0.03,
    (640, 640): 0.01,
}
"""(width, height), and about how many of COCO's images have it."""


def write_stand_in(folder: Path, images: int) -> None:
    """Write `annotations/instances_{train,val}2017.json` and their image folders.

    Args:
        folder: where there is nothing yet.
        images: for training; there are 8 for validation.
    """
    for split, count in (("train", images), ("val", len(SIZES))):
        pictures = folder / f"{split}2017"
        digits = Digits(train_images=len(SIZES), sizes=list(SIZES))
        write_digits(pictures, digits, ["train"])
        drawn = json.loads((pictures / "train.json").read_text())["images"]
        content = _instances([image["file_name"] for image in drawn], count)
        file = folder / f"annotations/instances_{split}2017.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content))


def _instances(files: list[str], images: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    sizes = list(SIZES)
    kinds = rng.choice(len(sizes), images, p=list(SIZES.values()))
    counts = rng.geometric(1 / OBJECTS_PER_IMAGE, images)
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": n + 1, "name": f"class {n}"} for n in range(CLASSES)],
    }
    for number, (kind, count) in enumerate(zip(tqdm(kinds, desc="images"), counts, strict=True)):
        width, height = sizes[kind]
        content["images"].append(
            {"id": number, "file_name": f"images/{files[kind]}", "width": width, "height": height}
        )
        objects = random_objects(rng, int(count), (width, height))
        for (left, top, right, bottom), label in zip(objects.boxes, objects.labels, strict=True):
            box = [left, top, right - left, bottom - top]
            content["annotations"].append(
                {
                    "id": len(content["annotations"]),
                    "image_id": number,
                    "category_id": int(label) + 1,
                    "bbox": [round(side, 2) for side in box],
                    "area": round(box[2] * box[3], 2),
                    "iscrowd": 0,
                }
            )
    return content


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=IMAGES)
    arguments = parser.parse_args()
    write_stand_in(arguments.folder, arguments.images)
