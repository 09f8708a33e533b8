"""The files of a data set's images, decoded once as the loader of views decodes them."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from pipeline.ingest.problems import Problem
from pipeline.project.machine import cores

EXIF_ORIENTATION = 0x0112
_CAN_BE_TURNED = (b"Exif", b"eXIf", b"EXIF", b"irot", b"imir")
_TIFF = (b"II*\0", b"MM\0*")
"""What an image that is to be turned or mirrored has near its start, in any format."""


@dataclass(frozen=True)
class Decoded:
    """What OpenCV makes of the bytes of a file.

    Attributes:
        width: in pixels, after the turn that EXIF asks for.
        height: likewise.
        turned: whether OpenCV has turned or mirrored it.
    """

    width: int
    height: int
    turned: bool


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


class DecodedImages:
    """Remembers in a file what was decoded, so that nothing is decoded twice.

    A line is written for each image as it is decoded, so a killed run has not worked in vain. What
    another version of OpenCV decoded does not count.

    Args:
        file: a line for each sha256.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._known: dict[str, Decoded | None] = {}
        self._lock = Lock()

    def __enter__(self) -> "DecodedImages":
        head = json.dumps({"opencv": cv2.__version__}) + "\n"
        text = _text(self.file)
        if not text.startswith(head):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(text := head)
        for line in text.splitlines()[1:]:
            self._read(line)
        self._new = self.file.open("a", buffering=1)
        if not text.endswith("\n"):
            self._new.write("\n")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._new.close()

    def decode(self, content: bytes, sha256: str) -> Decoded | None:
        """What is in an image; None where OpenCV can't decode it.

        Args:
            content: of the file.
            sha256: of the content.
        """
        if sha256 not in self._known:
            decoded = decode_image(content)
            with self._lock:
                self._known[sha256] = decoded
                self._new.write(
                    json.dumps({"sha256": sha256, "decoded": decoded and asdict(decoded)}) + "\n"
                )
        return self._known[sha256]

    def _read(self, line: str) -> None:
        try:
            entry: Any = json.loads(line)
            decoded = entry["decoded"]
            self._known[entry["sha256"]] = decoded and Decoded(**decoded)
        except (ValueError, KeyError, TypeError):
            return  # half of a line, which a kill has left


def decode_image(content: bytes) -> Decoded | None:
    """Decode an image as mmcv's `LoadImageFromFile` does; None where that fails."""
    pixels = _decode(content, cv2.IMREAD_COLOR)
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 3:
        return None
    height, width, _ = pixels.shape
    turned = False
    if _asks_for_a_turn(content):
        as_stored = _decode(content, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        turned = as_stored is None or not np.array_equal(as_stored, pixels)
    return Decoded(width, height, turned)


def _decode(content: bytes, flags: int) -> np.ndarray | None:
    try:
        return cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error:
        return None


def _asks_for_a_turn(content: bytes) -> bool:
    """Whether it may be turned: what OpenCV makes of that, only decoding tells."""
    start = content[: 1 << 16]
    if not start.startswith(_TIFF) and not any(mark in start for mark in _CAN_BE_TURNED):
        return False
    try:
        with Image.open(BytesIO(content)) as image:
            return image.getexif().get(EXIF_ORIENTATION, 1) != 1
    except Exception:  # Pillow raises anything for a file that it can't read, or finds too large
        return True


def read_image_files(
    folder: Path, names: Sequence[str], decoded: DecodedImages | None
) -> list[ImageFile | Problem]:
    """Read and decode files on all cores, with a progress bar.

    Args:
        folder: of the images.
        names: paths of files in it.
        decoded: remembers what is in them; None decodes all.
    """
    # OpenCV writes its warnings wherever the progress bar stands.
    before = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    # Pillow loads most of its formats at the first file that needs them. Two threads that do so at
    # once make one of them fail.
    Image.init()
    executor = ThreadPoolExecutor(cores())
    try:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        files = executor.map(lambda name: _read_image_file(folder, name, decoded), names)
        return list(tqdm(files, "decoding images", len(names), unit="image", disable=None))
    finally:
        executor.shutdown(cancel_futures=True)
        cv2.utils.logging.setLogLevel(before)


def _read_image_file(folder: Path, name: str, decoded: DecodedImages | None) -> ImageFile | Problem:
    path = folder / name
    try:
        content = path.read_bytes()
    except OSError as error:
        return Problem("image file can't be read", f"{path}, {error.strerror}")
    sha256 = hashlib.sha256(content).hexdigest()
    found = decoded.decode(content, sha256) if decoded else decode_image(content)
    if found is None:
        return Problem("image file can't be decoded", f"{path}, {_what_it_is(content)}")
    return ImageFile(name, sha256, found)


def _what_it_is(content: bytes) -> str:
    """What one can say of a file that OpenCV can't decode."""
    if not content:
        return "which is empty"
    try:
        with Image.open(BytesIO(content)) as image:
            kind = f"{image.format}, {image.mode}"
            image.load()
    except Exception as error:  # Pillow raises anything for a broken file
        return f"which is cut off or broken ({str(error) or type(error).__name__})"
    return f"which OpenCV, that reads images for training, can't read ({kind}): save it as PNG"


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
