"""What is in an image file, found out once by decoding it as the loader of views does."""

import hashlib
import json
import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import IO, Any

import cv2
import numpy as np
from PIL import Image

EXIF_ORIENTATION = 0x0112
_TURNED_BY = (
    (b"\xff\xd8", (b"Exif",)),
    (b"\x89PNG", (b"eXIf",)),
    (b"RIFF", (b"EXIF",)),
    (b"II*\0", (b"",)),
    (b"MM\0*", (b"",)),
    (b"\0\0\0", (b"Exif", b"irot", b"imir")),
)
"""How JPEG, PNG, WebP, TIFF and AVIF begin, and what one that is to be turned has somewhere."""


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


Status = tuple[int, ...]
"""What changes when a file does: its size, times and place on the disk."""


@dataclass(frozen=True)
class Seen:
    """What is known of a file.

    Attributes:
        status: of the file when it was read.
        sha256: of its bytes.
        decoded: what is in it; None where OpenCV can't decode it.
    """

    status: Status
    sha256: str
    decoded: Decoded | None


class DecodedImages:
    """Remembers what was decoded, so that nothing is decoded twice, nor read if it is as it was.

    Lines are written as images are decoded, so a killed run has not worked in vain. What another
    version of OpenCV decoded does not count.

    Args:
        file: has a line for each image; None remembers nothing longer than this object lives.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self._files: dict[str, Seen] = {}
        self._contents: dict[str, Decoded | None] = {}
        self._lines: IO[str] | None = None
        self._lock = Lock()

    def __enter__(self) -> "DecodedImages":
        if self.file is None:
            return self
        head = json.dumps({"opencv": cv2.__version__}) + "\n"
        text = _text(self.file)
        if not text.startswith(head):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self.file.write_text(text := head)
        for line in text.splitlines()[1:]:
            self._read(line)
        self._lines = self.file.open("a")
        if not text.endswith("\n"):  # half of a line, which a kill has left
            self._lines.write("\n")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._lines:
            self._lines.close()

    def known(self, file: str) -> Seen | None:
        """What `read` gives, of a file that is as it was when it was read; None of others."""
        seen = self._files.get(file)
        return seen if seen and seen.status == _status(file) else None

    def read(self, file: str) -> Seen:
        """Read a file, and decode it if there was none with its bytes.

        Raises:
            OSError: it can't be read.
        """
        status = _status(file)
        content = Path(file).read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 not in self._contents:
            self._contents[sha256] = decode_image(content)
        seen = self._files[file] = Seen(status, sha256, self._contents[sha256])
        if self._lines:
            decoded = seen.decoded and vars(seen.decoded)
            line = {"file": file, "status": status, "sha256": sha256, "decoded": decoded}
            with self._lock:
                self._lines.write(json.dumps(line) + "\n")
        return seen

    def _read(self, line: str) -> None:
        try:
            entry: Any = json.loads(line)
            found = entry["decoded"]
            decoded = None if found is None else Decoded(**found)
            seen = Seen(tuple(entry["status"]), entry["sha256"], decoded)
            self._files[entry["file"]] = seen
            self._contents[seen.sha256] = decoded
        except (ValueError, KeyError, TypeError):
            return


def _status(file: str) -> Status:
    found = os.stat(file)  # noqa: PTH116  several times as quick
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


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
    marks = next((marks for begin, marks in _TURNED_BY if content.startswith(begin)), ())
    if not any(mark in content for mark in marks):
        return False
    try:
        with Image.open(BytesIO(content)) as image:
            return image.getexif().get(EXIF_ORIENTATION, 1) != 1
    except Exception:  # Pillow raises anything for a file that it can't read, or finds too large
        return True


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
