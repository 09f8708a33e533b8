"""Files and folders appear whole or not at all, whatever ends the writing."""

import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipeline.project.files import bytes_on_disk, remove_folder, whole_folder, write_whole
from tests.coco_builder import contents
from tests.conftest import ROOT

OLD = {"a": b"old", "sub/b": b"old, too"}
NEW = {"c": b"new"}


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def names_in(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


@contextmanager
def largest_file(count: int) -> Iterator[None]:
    """The system refuses to write more bytes into a file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("wait", [False, True], ids=["", "waits for the disk"])
@pytest.mark.parametrize(
    ("content", "written"),
    [(b"\x00\xff", b"\x00\xff"), ("é\n", b"\xc3\xa9\n"), (b"", b""), ("", b"")],
)
def test_a_file_is_written_and_written_again(
    tmp_path: Path, content: bytes | str, written: bytes, wait: bool
) -> None:
    file = tmp_path / "folder/is new/file.json"
    for before in (b"anything longer than that", content):
        write_whole(file, before, wait)
    assert file.read_bytes() == written
    assert names_in(file.parent) == ["file.json"]


@pytest.mark.parametrize("there", [True, False], ids=["a file was there", "none was there"])
@pytest.mark.parametrize(
    ("content", "error"),
    [
        pytest.param(b"x" * 5000, OSError, id="the disk is full"),
        pytest.param("x" * 5000, OSError, id="the disk is full, a text"),
        pytest.param("\ud800", UnicodeEncodeError, id="no text"),
    ],
)
def test_an_error_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, content: bytes | str, error: type[Exception], there: bool
) -> None:
    if there:
        (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(error), largest_file(1000):
        write_whole(tmp_path / "file", content)
    assert contents(tmp_path) == ({"file": b"old"} if there else {})


def test_a_folder_of_that_name_stays(tmp_path: Path) -> None:
    fill(tmp_path / "file", OLD)
    with pytest.raises(OSError, match="file"):
        write_whole(tmp_path / "file", b"new")
    assert contents(tmp_path / "file") == OLD
    assert names_in(tmp_path) == ["file"]


def test_nobody_sees_half_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    texts = [str(number) * 100_000 for number in range(4)]
    write_whole(file, texts[0])

    def write(text: str) -> None:
        for _ in range(30):
            write_whole(file, text)

    with ThreadPoolExecutor(4) as threads:
        writers = [threads.submit(write, text) for text in texts]
        seen = {file.read_text()}
        while not all(one.done() for one in writers):
            seen.add(file.read_text())
        for one in writers:
            one.result()
    assert seen <= set(texts)
    assert names_in(tmp_path) == ["file"]


@pytest.mark.parametrize("before", [None, {}, OLD], ids=["nothing", "an empty one", "an old one"])
def test_a_folder_takes_the_place_of_what_is_there(
    tmp_path: Path, before: dict[str, bytes] | None
) -> None:
    folder = tmp_path / "is new/folder"
    if before is not None:
        folder.mkdir(parents=True)
        fill(folder, before)
    with whole_folder(folder) as building:
        assert names_in(building) == []
        fill(building, NEW)
        assert (contents(folder) if folder.exists() else None) == before
    assert contents(folder) == NEW
    assert names_in(folder.parent) == ["folder"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("there", [True, False], ids=["one was there", "none was there"])
def test_an_error_inside_leaves_the_old_folder(
    tmp_path: Path, error: type[BaseException], there: bool
) -> None:
    if there:
        fill(tmp_path / "folder", OLD)

    def fail_inside() -> None:
        with whole_folder(tmp_path / "folder") as building:
            fill(building, NEW)
            raise error

    with pytest.raises(error):
        fail_inside()
    assert names_in(tmp_path) == (["folder"] if there else [])
    assert contents(tmp_path) == ({f"folder/{name}": OLD[name] for name in OLD} if there else {})


KILLED = """
import os, signal
from pathlib import Path
from pipeline.project.files import whole_folder
with whole_folder(Path({folder!r})) as building:
    (building / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_inside_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = fill(tmp_path / "folder", OLD)
    for _ in range(2):  # the second one finds what the first one left
        program = KILLED.format(folder=str(folder))
        killed = subprocess.run([sys.executable, "-c", program], cwd=ROOT)
        assert killed.returncode == -signal.SIGKILL
        assert contents(folder) == OLD
    with whole_folder(folder) as building:
        assert names_in(building) == []
        fill(building, NEW)
    assert contents(folder) == NEW
    assert names_in(tmp_path) == ["folder"]


# What a kill can leave, by the names of folders; each holds files of its own.
LEFT_OVERS = [
    pytest.param(["folder", "folder.partial"], id="while it was filled"),
    pytest.param(["folder.partial", "folder.removed"], id="between the two renames"),
    pytest.param(["folder", "folder.removed"], id="while the old one was removed"),
    pytest.param(["folder", "folder.partial.removed"], id="while a half one was removed"),
    pytest.param(
        ["folder", "folder.partial", "folder.removed", "folder.partial.removed"], id="all of it"
    ),
]


@pytest.mark.parametrize("left", LEFT_OVERS)
def test_left_overs_of_a_kill_do_not_disturb(tmp_path: Path, left: list[str]) -> None:
    for name in left:
        fill(tmp_path / name, {f"of {name}": b"", "sub/rest": b""})
    with whole_folder(tmp_path / "folder") as building:
        assert names_in(building) == []
        fill(building, NEW)
    assert contents(tmp_path / "folder") == NEW
    assert names_in(tmp_path) == ["folder"]


@pytest.mark.parametrize("left", [[], ["folder"], ["folder.removed"], ["folder", "folder.removed"]])
def test_remove_folder(tmp_path: Path, left: list[str]) -> None:
    fill(tmp_path / "folder beside", OLD)
    for name in left:
        fill(tmp_path / name, OLD)
    remove_folder(tmp_path / "folder")
    assert names_in(tmp_path) == ["folder beside"]
    assert contents(tmp_path / "folder beside") == OLD


@pytest.mark.parametrize(
    ("files", "expected"),
    [({}, 0), ({"a": b""}, 0), ({"a": b"123", "sub/b": b"4567", "sub/sub/c": b"8"}, 8)],
)
def test_bytes_on_disk(tmp_path: Path, files: dict[str, bytes], expected: int) -> None:
    assert bytes_on_disk(fill(tmp_path, files)) == expected
