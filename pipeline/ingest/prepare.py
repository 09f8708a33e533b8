"""Makes the checked data set: the work of the stage `data`."""

import json
import shutil
from pathlib import Path
from typing import Any

from pipeline.data.coco import annotations_digest
from pipeline.ingest.coco_check import CheckedSplit, check_same_classes, check_split
from pipeline.ingest.digits import write_digits
from pipeline.project.errors import UserError
from pipeline.project.params import BUILT_IN_DATA, Params, Split
from pipeline.project.paths import Paths


def prepare_data(params: Params, paths: Paths) -> dict[str, Any]:
    """Check the data set, or make the built-in one and check it, and write `paths.data`.

    The folder is made beside its final place and takes it when it is complete, so an interrupted
    run leaves no half of it.

    Returns:
        The content of `data.json`: the classes and, per split, the folder of the images, digests
        and counts.

    Raises:
        UserError: the data set is missing or has problems.
    """
    new = paths.data.with_name(f"{paths.data.name}.partial")
    _remove(new)
    new.mkdir(parents=True)
    try:
        info = _write(params, paths, new)
    except BaseException:
        _remove(new)
        raise
    # Renamed before it is removed: a folder that is half removed could pass for a complete one.
    old = paths.data.with_name(f"{paths.data.name}.old")
    _remove(old)
    if paths.data.exists():
        paths.data.rename(old)
    new.rename(paths.data)
    _remove(old)
    return info


def _write(params: Params, paths: Paths, new: Path) -> dict[str, Any]:
    """Write the content of `paths.data` to the folder `new`."""
    settings = params.data
    splits = {"train": settings.train, "val": settings.val}
    if settings.source == BUILT_IN_DATA:
        source, final_source = new / "source", paths.data / "source"
        write_digits(source, settings.digits)
        splits = {
            name: Split(annotations=f"{name}.json", images="images") for name in ("train", "val")
        }
    else:
        source = final_source = _source_folder(settings.source, paths)

    checked = {
        name: check_split(source / split.annotations, source / split.images, settings.problems)
        for name, split in splits.items()
    }
    check_same_classes(checked["train"], checked["val"])

    info: dict[str, Any] = {"classes": list(checked["train"].classes)}
    for name, split in checked.items():
        (new / f"{name}.json").write_text(json.dumps(split.annotations))
        info[name] = _describe(split, final_source / splits[name].images)
    (new / "data.json").write_text(json.dumps(info, indent=2) + "\n")
    return info


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


def _describe(split: CheckedSplit, images: Path) -> dict[str, Any]:
    return {
        "images_folder": _portable(images),
        "annotations_digest": annotations_digest(split.annotations),
        "images_digest": split.images_digest,
        "images": split.images,
        "objects": split.objects,
        "crowd": split.crowd,
        "empty": split.empty,
        "reach_outside": split.reach_outside,
        "dropped": split.dropped,
    }


def _portable(folder: Path) -> str:
    """Relative to the current directory where `folder` lies below it, so that both can move."""
    path = folder.absolute()
    if ".." not in path.parts and path.is_relative_to(Path.cwd()):
        return path.relative_to(Path.cwd()).as_posix()
    return folder.resolve().as_posix()


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
