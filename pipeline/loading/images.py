"""Loads images of the checked data set, in mmdet's pipelines."""

from pathlib import Path
from typing import Any

from mmcv.transforms import LoadImageFromFile
from mmdet.registry import TRANSFORMS

from pipeline.project.errors import UserError

CHECK = "run `lad data`, which checks all of them"


@TRANSFORMS.register_module()
class LoadCheckedImage(LoadImageFromFile):
    """Loads an image of the data set, or says what has become of it since `lad data`.

    Required keys: img_path, height, width. Added keys: those of mmcv's `LoadImageFromFile`.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Load `results["img_path"]`.

        Raises:
            UserError: it is gone, is no image any more, or has another size.
        """
        file = Path(results["img_path"])
        try:
            loaded: dict[str, Any] = super().transform(results)
        except Exception as error:  # OpenCV's and the file system's
            raise UserError(_what_became_of(file, error)) from None
        height, width = loaded["ori_shape"]
        if (height, width) != (results["height"], results["width"]):
            raise UserError(
                f"the image {file} has another size than `lad data` has found: expected "
                f"{results['width']} x {results['height']} pixels, found {width} x {height}; "
                f"bring the old file back, or mend its annotations, and {CHECK}"
            )
        return loaded


def _what_became_of(file: Path, error: Exception) -> str:
    """Why an image of a data set can't be loaded, and what to do."""
    if not file.parent.is_dir():
        return (
            f"the folder {file.parent} of the images is gone; bring it back, or set `data.source` "
            f"to where it is now and {CHECK}"
        )
    if isinstance(error, OSError):
        what = "is gone" if not file.exists() else f"can't be read ({error.strerror})"
    else:
        what = "can't be decoded"
    return (
        f"the image {file} {what}; bring it back, or take it out of the annotation file, and "
        f"{CHECK}"
    )
