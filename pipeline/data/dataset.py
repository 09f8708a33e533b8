"""The checked data set, as the stage `data` leaves it for the others."""

import json
from dataclasses import dataclass
from pathlib import Path

from pipeline.project.errors import UserError
from pipeline.project.paths import Paths


@dataclass(frozen=True)
class SplitInfo:
    """A checked split.

    Attributes:
        annotations: the COCO file; `pipeline.data.coco.load_images` reads it.
        images_folder: the folder that its file names start from.
        annotations_digest: sha256 of the checked annotations.
        images_digest: sha256 over the names and contents of the image files.
    """

    annotations: Path
    images_folder: Path
    annotations_digest: str
    images_digest: str


@dataclass(frozen=True)
class DataInfo:
    """The checked data set; `classes` are in the order of the labels."""

    classes: tuple[str, ...]
    train: SplitInfo
    val: SplitInfo


def load_data_info(paths: Paths) -> DataInfo:
    """Read what the stage `data` left.

    Raises:
        UserError: it has not run to its end, or its result is broken.
    """
    file = paths.data / "data.json"
    try:
        content = json.loads(file.read_text())
        train, val = (
            SplitInfo(
                annotations=paths.data / f"{split}.json",
                images_folder=Path(content[split]["images_folder"]),
                annotations_digest=content[split]["annotations_digest"],
                images_digest=content[split]["images_digest"],
            )
            for split in ("train", "val")
        )
        return DataInfo(classes=tuple(content["classes"]), train=train, val=val)
    except FileNotFoundError:
        raise UserError(f"no {file}: the data set is not checked yet; run `lad data`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is not what `lad data` writes ({error!r}); run `lad data` again"
        ) from None
