"""The files of a data set's images, read and decoded on all cores."""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import cv2
from PIL import Image
from tqdm import tqdm

from pipeline.ingest.decoded_images import Decoded, DecodedImages, Seen
from pipeline.ingest.problems import Problem
from pipeline.project.machine import cores


@dataclass(frozen=True)
class ImageFile:
    """An image file that can be decoded.

    Attributes:
        name: its path in the folder of the images.
        sha256: of its bytes.
        decoded: what is in it.
    """

    name: str
    sha256: str
    decoded: Decoded

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, as the loader shows it."""
        return self.decoded.width, self.decoded.height


def read_image_files(
    folder: Path, names: Sequence[str], images: DecodedImages
) -> dict[str, ImageFile | Problem]:
    """Read and decode files on all cores, with a progress bar.

    Args:
        folder: of the images.
        names: paths of files in it.
        images: remembers what is in them.
    """
    seen: dict[str, Seen | Problem | None] = {
        name: images.known(f"{folder}/{name}") for name in names
    }
    new = [name for name in names if seen[name] is None]
    if new:
        seen |= zip(new, _read_all(folder, new, images, known=len(names) - len(new)), strict=True)
    return {name: _as_file(folder, name, one) for name, one in seen.items() if one}


def _read_all(
    folder: Path, names: list[str], images: DecodedImages, known: int
) -> list[Seen | Problem]:
    def read(name: str) -> Seen | Problem:
        try:
            return images.read(f"{folder}/{name}")
        except OSError as error:
            return Problem("image file can't be read", f"{folder / name}, {error.strerror}")

    # OpenCV writes its warnings wherever the progress bar stands.
    before = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    # Pillow loads most of its formats at the first file that needs them. Two threads that do so at
    # once make one of them fail.
    Image.init()
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    executor = ThreadPoolExecutor(cores())
    try:
        bar = tqdm(
            executor.map(read, names),
            "decoding images",
            len(names) + known,
            initial=known,
            unit="image",
            disable=None,
        )
        return list(bar)
    finally:
        executor.shutdown(cancel_futures=True)
        cv2.utils.logging.setLogLevel(before)


def _as_file(folder: Path, name: str, seen: Seen | Problem) -> ImageFile | Problem:
    if isinstance(seen, Problem):
        return seen
    if seen.decoded is None:
        return Problem("image file can't be decoded", f"{folder / name}, {_why(folder / name)}")
    return ImageFile(name, seen.sha256, seen.decoded)


def _why(file: Path) -> str:
    """What one can say of a file that OpenCV can't decode."""
    content = file.read_bytes()
    if not content:
        return "which is empty"
    try:
        with Image.open(BytesIO(content)) as image:
            kind = f"{image.format}, {image.mode}"
            image.load()
    except Exception as error:  # Pillow raises anything for a broken file
        return f"which is cut off or broken ({str(error) or type(error).__name__})"
    return f"which OpenCV, that reads images for training, can't read ({kind}): save it as PNG"
