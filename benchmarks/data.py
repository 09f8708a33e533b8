"""What checking a data set costs beside decoding its images, and what it costs again."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import cv2
import numpy as np

from benchmarks.measure import Figures, Ratio, alternate
from pipeline.ingest.check import check_split
from pipeline.ingest.decoded_images import DecodedImages
from pipeline.ingest.digits import write_digits
from pipeline.ingest.settings import Digits
from pipeline.project.machine import cores

SIZE = (640, 480)


def decode_all(files: list[Path]) -> None:
    """Decode images on all cores, and nothing else."""
    with ThreadPoolExecutor(cores()) as threads:
        for shape in threads.map(_decode, files):
            assert shape[1::-1] == SIZE


def _decode(file: Path) -> tuple[int, ...]:
    pixels = cv2.imdecode(np.frombuffer(file.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert pixels is not None
    return pixels.shape


def measure_data(images: int, repeats: int) -> Figures:
    """Check a data set of images of COCO's size, for the first time and again.

    Args:
        images: how many it has.
        repeats: rounds.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_digits(folder, Digits(train_images=images, sizes=[SIZE]), ["train"])
        files = sorted(folder.glob("images/train/*"))

        def check(known: str) -> None:
            with DecodedImages(folder / known) as decoded:
                check_split(folder / "train.json", folder / "images", "fail", decoded)

        spent = alternate(
            {
                "decoding alone": lambda round_: decode_all(files),
                "first": lambda round_: check(f"first {round_}"),
                "again": lambda round_: check(f"first {round_}"),
            },
            repeats,
        )
    seconds = {way: median(times) for way, times in spent.items()}
    rate = {way: images / one for way, one in seconds.items()}
    return Figures(
        [
            Ratio(
                "checking images, first run",
                rate["first"],
                "decoding alone",
                rate["decoding alone"],
                "images/s",
                at_least=0.8,
            ),
            Ratio(
                "checking images, again",
                seconds["again"],
                "first run",
                seconds["first"],
                "s",
                at_most=0.1,
            ),
        ],
        f"{images} images of {SIZE[0]} x {SIZE[1]} pixels, {cores()} threads",
        {"seconds": spent},
    )
