import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image
from pycocotools.coco import COCO

from pipeline.ingest.check import check_split
from pipeline.ingest.digits import write_digits
from pipeline.ingest.settings import Digits
from pipeline.project.errors import UserError
from tests.coco_builder import contents

SIZES = [(256, 192), (96, 128)]


def write(folder: Path, **overrides: Any) -> Path:
    settings = {"train_images": 40, "val_images": 6, "sizes": SIZES, "seed": 3} | overrides
    write_digits(folder, Digits(**settings))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("digits"))


@pytest.mark.parametrize(("split", "count"), [("train", 40), ("val", 6)])
def test_is_a_sound_coco_data_set(folder: Path, split: str, count: int):
    checked = check_split(folder / f"{split}.json", folder / "images", "fail")
    assert checked.classes == tuple("0123456789")
    assert checked.images == count
    assert checked.dropped == {}
    assert checked.reach_outside == checked.crowd == 0

    loaded = COCO(folder / f"{split}.json")
    loaded.info()
    assert [image["file_name"] for image in loaded.imgs.values()] == [
        f"{split}/{number:06d}.jpg" for number in range(1, count + 1)
    ]
    sizes = [(image["width"], image["height"]) for image in loaded.imgs.values()]
    assert sizes == [SIZES[i % 2] for i in range(count)]


def test_same_seed_gives_the_same_files(folder: Path, tmp_path: Path):
    assert contents(write(tmp_path)) == contents(folder)


def test_seed_changes_scenes(folder: Path, tmp_path: Path):
    other = write(tmp_path, seed=4, train_images=1, val_images=1)
    name = "images/train/000001.jpg"
    assert (other / name).read_bytes() != (folder / name).read_bytes()


def test_scene_does_not_depend_on_how_many_there_are(folder: Path, tmp_path: Path):
    few = contents(write(tmp_path, train_images=5, val_images=2))
    many = contents(folder)
    assert all(many[name] == few[name] for name in few if name.endswith(".jpg"))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_does_not_depend_on_the_other(folder: Path, tmp_path: Path, split: str):
    digits = Digits(train_images=40, val_images=6, sizes=SIZES, seed=3)
    write_digits(tmp_path, digits, [split])
    both = contents(folder)
    assert contents(tmp_path) == {
        name: both[name]
        for name in both
        if name == f"{split}.json" or name.startswith(f"images/{split}/")
    }


def test_no_handwritten_digit_is_in_both_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    known = sklearn.datasets.load_digits()
    known.target = np.arange(len(known.target))  # The label tells which digit was drawn.
    monkeypatch.setattr(sklearn.datasets, "load_digits", lambda: known)
    write(tmp_path, train_images=300, val_images=300, sizes=[(64, 64)])
    drawn = [
        {
            a["category_id"]
            for a in json.loads((tmp_path / f"{split}.json").read_text())["annotations"]
        }
        for split in ("train", "val")
    ]
    assert min(map(len, drawn)) > 300
    assert drawn[0].isdisjoint(drawn[1])


def test_some_scenes_are_empty_and_most_are_not(tmp_path: Path):
    file = write(tmp_path, train_images=150, val_images=1, sizes=[(64, 64)]) / "train.json"
    content = json.loads(file.read_text())
    counts = [0] * 151
    for annotation in content["annotations"]:
        counts[annotation["image_id"]] += 1
    assert 1 <= counts[1:].count(0) <= 10
    assert max(counts) <= 8
    assert {annotation["category_id"] for annotation in content["annotations"]} == set(range(1, 11))


def test_boxes_are_tight_around_the_ink(folder: Path):
    content = json.loads((folder / "train.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    for annotation in content["annotations"]:
        with Image.open(folder / "images" / names[annotation["image_id"]]) as image:
            grey = np.asarray(image.convert("L"), float)
        x, y, w, h = annotation["bbox"]
        box = grey[y : y + h, x : x + w]
        paper, ink = np.median(grey), box.min()
        dark = box < paper - 0.2 * (paper - ink)
        # Ink touches all four sides, give or take what JPEG blurs.
        for side in (dark[:2], dark[-2:], dark[:, :2], dark[:, -2:]):
            assert side.any(), annotation


def test_too_small_a_scene(tmp_path: Path):
    with pytest.raises(UserError, match="expected sides of at least 48 pixels, got 256 x 40"):
        write(tmp_path, sizes=[(256, 192), (256, 40)])
