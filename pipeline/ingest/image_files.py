"""The files of a data set's images: their sizes and contents, read without decoding them."""

import hashlib
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image
from tqdm import tqdm

EXIF_ORIENTATION = 0x0112
QUARTER_TURNS = (5, 6, 7, 8)
THREADS = 8


@dataclass(frozen=True)
class Problem:
    """What is wrong with an image or annotation: a kind to count, and the details."""

    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


@dataclass(frozen=True)
class ImageFile:
    """A readable image file: (width, height) in pixels as OpenCV decodes it, and its digest."""

    size: tuple[int, int]
    sha256: str


def read_image_files(folder: Path, names: Sequence[str]) -> dict[str, ImageFile | Problem]:
    """Read the headers and digests of the files `names` in `folder`, with a progress bar.

    A name that leaves the folder is a problem: what it leads to is not part of the data set.
    """
    # Pillow loads most of its formats at the first file that needs them. Two threads that do so at
    # once make one of them fail.
    Image.init()
    root = folder.resolve()
    executor = ThreadPoolExecutor(THREADS)
    try:
        files = executor.map(lambda name: _read_image_file(folder, root, name), names)
        progress = tqdm(files, "reading images", len(names), unit="image", disable=None)
        return dict(zip(names, progress, strict=True))
    finally:
        executor.shutdown(cancel_futures=True)


def _read_image_file(folder: Path, root: Path, name: str) -> ImageFile | Problem:
    path = folder / name
    try:
        leaves = Path(name).is_absolute() or ".." in Path(name).parts
        if leaves or not path.resolve().is_relative_to(root):
            return Problem("file name leaves the image folder", name)
        if not path.is_file():
            return Problem("image file is missing", str(path))
        content = path.read_bytes()
        size = _size(content)
    # RuntimeError: a loop of symlinks. The others: what Pillow raises for a broken file.
    except (
        *(OSError, RuntimeError, ValueError, SyntaxError, struct.error),
        Image.DecompressionBombError,
    ) as error:
        return Problem("image file can't be read", f"{path}, {type(error).__name__}")
    return ImageFile(size, hashlib.sha256(content).hexdigest())


def _size(content: bytes) -> tuple[int, int]:
    """(width, height) after the turn that EXIF asks for, which OpenCV applies on reading."""
    with Image.open(BytesIO(content)) as image:
        # Not `image.getexif()`: it also takes the orientation in XMP, which OpenCV ignores.
        exif = Image.Exif()
        exif.load(image.info.get("exif", b""))
        width, height = image.size
    return (height, width) if exif.get(EXIF_ORIENTATION) in QUARTER_TURNS else (width, height)
