"""Makes the checked data set: the work of the stage `data`."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipeline.data.dataset import ABOUT, ANNOTATIONS, INFO
from pipeline.ingest.check import CheckResult, check_split, notes_on_both, with_classes_of
from pipeline.ingest.decoded_images import DecodedImages
from pipeline.ingest.digits import SPLITS, write_digits
from pipeline.ingest.settings import BUILT_IN_DATA, Data
from pipeline.project.digests import digest
from pipeline.project.errors import UserError
from pipeline.project.files import whole_folder
from pipeline.project.paths import Paths


def prepare_data(settings: Data, paths: Paths) -> dict[str, dict[str, Any]]:
    """Check the data set, or make the built-in one and check it; write a folder for each split.

    The folders appear when both splits are checked, so an interrupted run leaves no half of them.

    Returns:
        By split the content of its `split.json` (classes and digests) and `about.json` (the folder
        of the images, counts and notes).

    Raises:
        UserError: the data set is missing or has problems.
    """
    source = None if settings.source == BUILT_IN_DATA else _source_folder(settings.source, paths)
    with ExitStack() as stack:
        # The built-in images are drawn anew each time.
        remembered = paths.decoded_images if source else None
        decoded = stack.enter_context(DecodedImages(remembered))
        new = {name: stack.enter_context(whole_folder(paths.split(name))) for name in SPLITS}
        checked: dict[str, CheckResult] = {}
        images: dict[str, Path] = {}
        for name, folder in new.items():
            if source:
                files = getattr(settings, name)
                images[name] = source / files.images
                annotations = source / files.annotations
                checked[name] = check_split(annotations, images[name], settings.problems, decoded)
            else:
                write_digits(folder, settings.digits, [name])
                images[name] = paths.split(name) / "images"
                annotations = folder / f"{name}.json"
                checked[name] = check_split(
                    annotations, folder / "images", settings.problems, decoded
                )
                annotations.unlink()
        checked["val"] = with_classes_of(checked["train"], checked["val"])
        found = {name: _describe(checked[name], images[name]) for name in new}
        found["train"]["notes"] += notes_on_both(checked["train"], checked["val"])
        for name, folder in new.items():
            (folder / ANNOTATIONS).write_text(json.dumps(checked[name].annotations))
            for file, content in ((INFO, _decides(checked[name])), (ABOUT, found[name])):
                (folder / file).write_text(json.dumps(content, indent=2) + "\n")
    return {name: _decides(checked[name]) | about for name, about in found.items()}


def _source_folder(source: str, paths: Paths) -> Path:
    folder = Path(source)
    if not folder.is_dir():
        raise UserError(
            f"data.source: no folder {folder} in {Path.cwd()}; name the folder of a COCO-format "
            f"data set, or {BUILT_IN_DATA}"
        )
    if folder.resolve().is_relative_to(paths.data.resolve()):
        raise UserError(
            f"data.source: {folder} lies in {paths.data}, which this stage replaces; "
            "move the data set elsewhere"
        )
    return folder


def _decides(split: CheckResult) -> dict[str, Any]:
    return {
        "classes": list(split.classes),
        "annotations_digest": digest(split.annotations),
        "images_digest": split.images_digest,
    }


def _describe(split: CheckResult, images: Path) -> dict[str, Any]:
    return {
        "images_folder": _portable(images),
        "images": split.images,
        "objects": split.objects,
        "crowd": split.crowd,
        "empty": split.empty,
        "reach_outside": split.reach_outside,
        "dropped": split.dropped,
        "notes": list(split.notes),
    }


def _portable(folder: Path) -> str:
    """Relative to the current directory where `folder` lies below it, so that both can move."""
    path = folder.absolute()
    if ".." not in path.parts and path.is_relative_to(Path.cwd()):
        return path.relative_to(Path.cwd()).as_posix()
    return folder.resolve().as_posix()
