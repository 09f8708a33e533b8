"""Finds the files that an annotation file names, in the folder of the images."""

import difflib
import os
import unicodedata
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

from pipeline.ingest.problems import Problem

HINTS = 3
"""Missing files whose nearest name is looked for: with many of them that takes long."""


class ImageNames:
    """The files of a folder by the names that tools give them.

    Args:
        folder: that names start from.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._roots = [PurePosixPath(f) for f in (folder.absolute(), folder.resolve())]
        self._hints = HINTS

    def find(self, name: str) -> str | Problem:
        """The path of a named file, relative to the folder, as the disk spells it.

        Besides the name itself it may be an absolute path below the folder, have backslashes, or
        another Unicode normal form than the file. Where a link leads does not matter; a name that
        leaves the folder is a problem, as what it leads to is not part of the data set.
        """
        for candidate in self._candidates(name):
            if candidate.startswith("/") or ".." in candidate.split("/"):
                return Problem("file name leaves the image folder", name)
            if self._is_file(candidate):
                return candidate
        path = self.folder / name
        hint = f", a link to {path.readlink()}" if _is_link(path) else self._hint(name)
        return Problem("image file is missing", f"{path}{hint}")

    def _candidates(self, name: str) -> Iterator[str]:
        for spelled in dict.fromkeys((name, name.replace("\\", "/"))):
            inside = self._inside(spelled)
            yield inside
            if not inside.isascii():
                yield self._by_form.get(_composed(inside), inside)

    def _inside(self, name: str) -> str:
        """Relative to the folder, also of an absolute path that lies there."""
        path = PurePosixPath(name)
        for root in self._roots if path.is_absolute() else ():
            if path.is_relative_to(root):
                return path.relative_to(root).as_posix()
        return path.as_posix()

    def _is_file(self, name: str) -> bool:
        try:
            return os.path.isfile(f"{self.folder}/{name}")  # noqa: PTH113  thrice as quick
        except (OSError, ValueError):  # too long, or with a null byte
            return False

    @cached_property
    def _by_form(self) -> dict[str, str]:
        return {_composed(file): file for file in self._files}

    def _hint(self, name: str) -> str:
        """The nearest name that is there, for a few of the missing files."""
        if not self._hints or not self._files:
            return ""
        self._hints -= 1
        wanted = _bare(name.replace("\\", "/"))
        by_name = {_bare(file): file for file in self._files}
        nearest = difflib.get_close_matches(wanted, list(by_name), n=1)
        if not nearest:
            return f"; there are {len(self._files)} files, as {self._files[0]!r}"
        return f"; the nearest name there is {by_name[nearest[0]]!r}"

    @cached_property
    def _files(self) -> list[str]:
        """All files below the folder."""
        found = []
        for folder, _, files in os.walk(self.folder):
            inside = Path(folder).relative_to(self.folder)
            found += [(inside / file).as_posix() for file in files]
        return sorted(found)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _bare(name: str) -> str:
    """Without folders and case, by which people miss a file."""
    return _composed(PurePosixPath(name).name).casefold()


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except (OSError, ValueError):
        return False
