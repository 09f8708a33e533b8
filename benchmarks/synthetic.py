"""Projects made for a measurement: digit scenes, and a teacher with random weights."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger

from benchmarks.random_teacher import BACKGROUND
from pipeline.data.dataset import ANNOTATIONS, INFO
from pipeline.detector.build import build_detector, without_downloads
from pipeline.detector.model_folder import WEIGHTS, save_model
from pipeline.ingest.prepare import prepare_data
from pipeline.ingest.settings import BUILT_IN_DATA
from pipeline.project.paths import Paths
from stages.params import Params

SCENES = 32
"""Image files; a larger data set shows them again."""


def write_project(
    folder: Path,
    model: ConfigDict,
    images: int,
    size: tuple[int, int],
    classes: int = 10,
    **sections: Any,
) -> tuple[Params, Paths]:
    """Make data and teacher of a project.

    Args:
        folder: of the results.
        model: the teacher's; its weights are drawn.
        images: training images.
        size: (width, height) of all of them; the one view is of this size.
        classes: of the data set; the digits have those that there are, in turn.
        sections: of the settings; others have their defaults.
    """
    defaults: dict[str, Any] = {
        "data": {
            "source": BUILT_IN_DATA,
            "digits": {"train_images": min(images, SCENES), "val_images": 1, "sizes": [size]},
        },
        "views": {"scales": [size], "flips": ["none"]},
        "teacher": {"config": "random weights"},
        "evaluation": {"scale": size},
    }
    params, paths = Params.model_validate(defaults | sections), Paths(folder)
    prepare_data(params.data, paths)
    _change_data(paths.split("train"), images, classes)
    model = without_downloads(model)
    model.bbox_head = ConfigDict(model.bbox_head, num_classes=classes)
    # It says of each weight how it was drawn.
    MMLogger.get_current_instance().setLevel("ERROR")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = build_detector(model)
        detector.init_weights()
    save_model(paths.teacher, model, detector.state_dict(), {})
    return params, paths


def quieten(paths: Paths) -> None:
    """Have random weights say as little of the background as trained ones do.

    They would else put every probability beside the cut of the coding, and code worst.
    """
    file = paths.teacher / WEIGHTS
    content = torch.load(file, weights_only=True)
    classes = len(json.loads((paths.split("train") / INFO).read_text())["classes"])
    for name, weight in content["state_dict"].items():
        if name.startswith("bbox_head.") and name.endswith("bias") and len(weight) == classes:
            weight.fill_(math.log(BACKGROUND))
    torch.save(content, file)


def _change_data(split: Path, images: int, classes: int) -> None:
    """Repeat the images of a checked split, and spread its objects over the classes."""
    names = [f"class {number}" for number in range(classes)]
    info = json.loads((split / INFO).read_text())
    (split / INFO).write_text(json.dumps(info | {"classes": names}))
    train = json.loads((split / ANNOTATIONS).read_text())
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in train["images"]}
    for one in train["annotations"]:
        objects[one["image_id"]].append(one)
    repeated, annotations = [], list[dict[str, Any]]()
    for number in range(images):
        image = train["images"][number % len(train["images"])]
        repeated.append(image | {"id": number + 1})
        for one in objects[image["id"]]:
            place = len(annotations)
            changed = {"id": place + 1, "image_id": number + 1, "category_id": place % classes + 1}
            annotations.append(one | changed)
    categories = [{"id": place + 1, "name": name} for place, name in enumerate(names)]
    train |= {"images": repeated, "annotations": annotations, "categories": categories}
    (split / ANNOTATIONS).write_text(json.dumps(train))


def borrow_project(paths: Paths, folder: Path, images: int | None = None) -> Paths:
    """A results folder with the data and the teacher of another, for a store of its own.

    Image files stay where they are.

    Args:
        paths: of the other.
        folder: where there is nothing yet.
        images: how many training images to take, from the first on; None for all.
    """
    borrowed = Paths(folder)
    shutil.copytree(paths.data, borrowed.data, ignore=shutil.ignore_patterns("images"))
    borrowed.teacher.symlink_to(paths.teacher.resolve())
    if images is not None:
        file = borrowed.split("train") / ANNOTATIONS
        train = json.loads(file.read_text())
        train["images"] = train["images"][:images]
        kept = {image["id"] for image in train["images"]}
        train["annotations"] = [one for one in train["annotations"] if one["image_id"] in kept]
        file.write_text(json.dumps(train))
    return borrowed
