"""The checked data set, as the stage `data` leaves it for the others: a folder a split."""

import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.project.errors import UserError
from pipeline.project.paths import Paths

ANNOTATIONS = "annotations.json"
INFO = "split.json"
"""What all that is made from the split depends on: classes, and digests of what was checked."""
ABOUT = "about.json"
"""What nothing depends on: where the images are on this machine, counts, notes."""


@dataclass(frozen=True)
class CheckedSplit:
    """A split of the data set, checked.

    Attributes:
        classes: names, in the order of the labels.
        annotations: the COCO file; `pipeline.data.coco.load_images` reads it.
        images_folder: the folder that its file names start from.
        annotations_digest: sha256 of the checked annotations.
        images_digest: sha256 over the names and contents of the image files.
    """

    classes: tuple[str, ...]
    annotations: Path
    images_folder: Path
    annotations_digest: str
    images_digest: str


def load_split(paths: Paths, name: str) -> CheckedSplit:
    """Read what the stage `data` left of a split.

    Args:
        paths: of the project.
        name: `train` or `val`.

    Raises:
        UserError: the stage has not run to its end, or its result is broken.
    """
    folder = paths.split(name)
    file = folder / INFO
    try:
        content = json.loads(file.read_text())
        decides = {
            "classes": tuple(content["classes"]),
            "annotations_digest": content["annotations_digest"],
            "images_digest": content["images_digest"],
        }
        file = folder / ABOUT
        images_folder = Path(json.loads(file.read_text())["images_folder"])
        return CheckedSplit(
            annotations=folder / ANNOTATIONS, images_folder=images_folder, **decides
        )
    except FileNotFoundError:
        raise UserError(f"no {file}: the data set is not checked yet; run `lad data`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is not what `lad data` writes ({error!r}); run `lad data` again"
        ) from None
