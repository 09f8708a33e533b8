"""Decoding image files once: as mmcv's loader does, and remembered by their contents."""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from pipeline.ingest.decoded_images import DecodedImages
from pipeline.ingest.image_files import ImageFile, read_image_files
from pipeline.ingest.problems import Problem
from tests.coco_builder import write_image


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for number, suffix in enumerate(("png", "jpg", "webp", "gif", "bmp", "ppm", "tif", "jp2")):
        write_image(folder / f"{number}.{suffix}", width=30 + number)
    pixels = np.random.default_rng(0).integers(0, 2**16, (20, 30), dtype=np.uint16)
    Image.fromarray(pixels).save(folder / "deep.png")
    Image.fromarray((pixels >> 8).astype(np.uint8)).save(folder / "grey.png")
    Image.open(folder / "1.jpg").convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(pixels.astype(np.float32)).save(folder / "float.tif")
    (folder / "cut.jpg").write_bytes((folder / "1.jpg").read_bytes()[:-2])
    (folder / "empty.png").touch()
    return folder


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_what_the_loader_can_read_is_read_and_nothing_else(images: Path):
    names = names_in(images)
    loader = LoadImageFromFile()
    for name, found in read_image_files(images, names, DecodedImages()).items():
        try:
            loaded = loader({"img_path": str(images / name)})["img"]
        except Exception:
            assert isinstance(found, Problem), name
        else:
            assert isinstance(found, ImageFile), name
            assert found.size == loaded.shape[1::-1]


def lines_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def believed(file: Path, images: Path, read: bool) -> int:
    """How many images are known from the file: what it says of widths is changed, and believed."""
    head, *lines = lines_of(file)
    for line in lines:
        if line["decoded"]:
            line["decoded"]["width"] += 1000
    file.write_text("\n".join(map(json.dumps, [head, *lines])) + "\n")
    with DecodedImages(file) as decoded:
        found = read_image_files(images, names_in(images), decoded)
    assert (len(lines_of(file)) > 1 + len(lines)) == read
    return sum(isinstance(one, ImageFile) and one.size[0] > 1000 for one in found.values())


def test_nothing_is_decoded_twice(images: Path, tmp_path: Path):
    file, names = tmp_path / "out/decoded.jsonl", names_in(images)
    with DecodedImages(file) as decoded:
        first = read_image_files(images, names, decoded)
    assert lines_of(file)[0] == {"opencv": cv2.__version__}
    sound = sum(isinstance(one, ImageFile) for one in first.values())
    assert believed(file, images, read=False) == sound
    # Elsewhere they must be read, but need not be decoded.
    moved = tmp_path / "moved"
    shutil.copytree(images, moved)
    assert believed(file, moved, read=True) == sound


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: "",
        lambda text: text[:-30],  # what a kill leaves
        lambda text: text.replace(cv2.__version__, "0.1"),
        lambda text: text.replace('"width"', '"breadth"'),
        lambda text: "no file of ours\n",
    ],
)
def test_what_is_not_known_for_sure_is_decoded_again(images: Path, tmp_path: Path, spoil):
    file, names = tmp_path / "decoded.jsonl", names_in(images)
    with DecodedImages(file) as decoded:
        first = read_image_files(images, names, decoded)
    file.write_text(spoil(file.read_text()))
    for _ in range(2):
        with DecodedImages(file) as decoded:
            assert read_image_files(images, names, decoded) == first


def test_an_image_that_changes_is_decoded_again(images: Path, tmp_path: Path):
    with DecodedImages(tmp_path / "decoded.jsonl") as decoded:
        read_image_files(images, ["0.png"], decoded)
        write_image(images / "0.png", width=77)
        found = read_image_files(images, ["0.png"], decoded)["0.png"]
    assert isinstance(found, ImageFile)
    assert found.size == (77, 30)


def test_an_image_of_the_same_size_and_time_is_decoded_again(images: Path, tmp_path: Path):
    """As after `cp -p` or an archive that keeps times."""
    file = images / "0.bmp"
    write_image(file, width=30, height=40)
    before = file.stat()
    with DecodedImages(tmp_path / "decoded.jsonl") as decoded:
        read_image_files(images, ["0.bmp"], decoded)
    other = write_image(tmp_path / "0.bmp", width=30, height=40, seed=1)
    file.write_bytes(other.read_bytes())
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    with DecodedImages(tmp_path / "decoded.jsonl") as decoded:
        read_image_files(images, ["0.bmp"], decoded)
    assert len(lines_of(tmp_path / "decoded.jsonl")) == 3
