"""Files and folders that appear whole or not at all, and what they take on disk."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

PARTIAL = ".partial"
REMOVED = ".removed"
"""The ends of the names of what is not whole yet, and of what is not whole any more."""


def write_whole(file: Path, content: bytes | str, wait: bool = False) -> None:
    """Write a file such that nobody ever sees half of it, replacing the one that is there.

    Args:
        file: its folder is made where it is missing.
        content: text is written as UTF-8.
        wait: until it is on the disk, for what must survive a power failure.

    Raises:
        OSError: the disk is full, or fails; what was there stays.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    # Two processes may write the same file at once.
    building = file.with_name(f"{file.name}.{uuid4().hex}{PARTIAL}")
    try:
        building.write_bytes(content.encode() if isinstance(content, str) else content)
        if wait:
            wait_for_disk(building)
        building.replace(file)
    except BaseException:
        building.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Gives an empty folder to fill, which then takes the place of `folder`.

    Where the block is left by an error, what was there stays.
    """
    building = folder.with_name(folder.name + PARTIAL)
    remove_folder(building)
    building.mkdir(parents=True)
    try:
        yield building
    except BaseException:
        remove_folder(building)
        raise
    old = _put_aside(folder)
    building.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder, if it is there, such that no kill leaves half of it under its name."""
    shutil.rmtree(_put_aside(folder), ignore_errors=True)


def _put_aside(folder: Path) -> Path:
    """Rename a folder: one that is half removed could pass for a whole one."""
    old = folder.with_name(folder.name + REMOVED)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    return old


def wait_for_disk(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def bytes_on_disk(path: Path) -> int:
    """The sizes of all files in a folder, together."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
