"""Builds small COCO data sets for the tests."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write_image(
    file: Path, width: int = 40, height: int = 30, seed: int = 0, **options: Any
) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, **options)
    return file


def image(id: Any = 1, **overrides: Any) -> dict[str, Any]:
    return {"id": id, "file_name": f"{id}.png", "width": 40, "height": 30} | overrides


def annotation(id: Any = 1, **overrides: Any) -> dict[str, Any]:
    return {
        "id": id,
        "image_id": 1,
        "category_id": 7,
        "bbox": [4, 5, 10, 12],
        "area": 100,
        "iscrowd": 0,
    } | overrides


def coco(**overrides: Any) -> dict[str, Any]:
    """Two images of 40 x 30 pixels, three objects of two classes, all of them sound."""
    return {
        "images": [image(1), image(2)],
        "annotations": [
            annotation(1),
            annotation(2, image_id=2, category_id=3),
            annotation(3, image_id=2, bbox=[1.5, 2.25, 8, 9]),
        ],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    } | overrides


def write_coco(folder: Path, name: str = "train.json", **overrides: Any) -> tuple[Path, Path]:
    """The annotation file and the folder of images, which has 1.png and 2.png."""
    for id in (1, 2):
        write_image(folder / "images" / f"{id}.png", seed=id)
    (folder / name).write_text(json.dumps(coco(**overrides)))
    return folder / name, folder / "images"


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of each file below `folder`."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
