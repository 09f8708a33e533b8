"""What the check of a COCO data set refuses, leaves out and keeps; mmdet reads all that stays."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from pipeline.data.coco import load_images
from pipeline.ingest.check import CheckResult, check_same_classes, check_split
from pipeline.project.errors import UserError
from tests.coco_builder import annotation, coco, image, write_coco, write_image

BCCD = Path(__file__).parents[2] / "../shared/data/bccd"


def check(folder: Path, problems: str = "fail", **overrides: Any) -> CheckResult:
    return check_split(*write_coco(folder, **overrides), problems)


def written(split: CheckResult, file: Path) -> Path:
    file.write_text(json.dumps(split.annotations))
    return file


def test_sound_data_set_is_kept_as_it_is(tmp_path: Path):
    split = check(tmp_path)
    assert split.annotations == coco() | {"info": {}}
    assert split.classes == ("cat", "dog")
    assert (split.images, split.objects, split.crowd, split.empty) == (2, 3, 0, 0)
    assert split.reach_outside == 0
    assert split.dropped == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"can't read the annotation file .*train\.json .*set `data\.source`"),
        ("{", r"train\.json is not valid JSON: .* export it again"),
        ("\xff", "is not valid JSON"),
        ("[]", "expected a JSON object in COCO format, got list"),
        (coco(images=None), "expected `images` to be a list .* got nothing"),
        (coco(annotations={}), "expected `annotations` to be a list .* got dict"),
        (coco(categories=[1]), "expected `categories` to be a list of objects"),
        (coco(categories=[]), "`categories` is empty"),
        (coco(categories=[{"id": 1}]), "an integer `id` and a `name`, got {'id': 1}"),
        (coco(categories=[{"id": "1", "name": "a"}]), "an integer `id`"),
        (
            coco(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]),
            "category id 1 stands twice",
        ),
        (
            coco(categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]),
            "category name 'a' stands twice",
        ),
        (coco(images=[], annotations=[]), "no image is left"),
        (coco(images=[image(9)], annotations=[]), "no image is left|image file is missing"),
    ],
)
@pytest.mark.parametrize("problems", ["fail", "drop"])
def test_broken_file_always_fails(tmp_path: Path, content: Any, message: str, problems: str):
    file, images = write_coco(tmp_path)
    if content is None:
        file.unlink()
    elif isinstance(content, str):
        file.write_bytes(content.encode("latin-1"))
    else:
        file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        check_split(file, images, problems)


def test_missing_image_folder(tmp_path: Path):
    file, _ = write_coco(tmp_path)
    with pytest.raises(UserError, match=r"no folder .*nowhere.*set `data\.source`"):
        check_split(file, tmp_path / "nowhere", "drop")


def with_image(**overrides: Any) -> dict[str, Any]:
    """A data set with a further image, 3, that has two objects."""
    base = coco()
    id = overrides.get("id", 3)
    return {
        "images": [*base["images"], image(3, file_name="1.png") | overrides],
        "annotations": [
            *base["annotations"],
            annotation(8, image_id=id),
            annotation(9, image_id=id),
        ],
    }


@pytest.mark.parametrize(
    ("overrides", "kind", "where"),
    [
        ({"id": "x"}, "image id is not an integer of 64 bits", "image 'x'"),
        ({"id": 1.0}, "image id is not an integer of 64 bits", r"image 1\.0"),
        ({"id": 2**63}, "image id is not an integer of 64 bits", f"image {2**63}"),
        ({"file_name": None}, "image without a file_name", "image 3"),
        ({"file_name": "no.png"}, "image file is missing", r"image 3: .*images/no\.png"),
        ({"file_name": ""}, "image file is missing", "image 3"),
        ({"file_name": "broken.png"}, "image file can't be read", r"image 3: .*broken\.png"),
        ({"file_name": "loop.png"}, "image file can't be read", r"image 3: .*loop\.png"),
        ({"file_name": "a\0b.png"}, "image file can't be read", "image 3"),
        ({"file_name": "../out.png"}, "file name leaves the image folder", "image 3"),
        ({"file_name": "a/../1.png"}, "file name leaves the image folder", "image 3"),
        ({"file_name": "/etc/hostname"}, "file name leaves the image folder", "image 3"),
        ({"file_name": "link.png"}, "file name leaves the image folder", r"image 3: .*link\.png"),
        ({"file_name": "linked/out.png"}, "file name leaves the image folder", "image 3"),
        (
            {"width": 41},
            "image size differs from its file",
            "image 3: .*1.png is 40 x 30 pixels, annotated as 41 x 30",
        ),
        ({"width": 30, "height": 40}, "image size differs from its file", "annotated as 30 x 40"),
        ({"height": None}, "image size differs from its file", "annotated as 40 x None"),
    ],
)
def test_image_with_a_problem(tmp_path: Path, overrides: dict[str, Any], kind: str, where: str):
    data = tmp_path / "data"
    file, images = write_coco(data, **with_image(**overrides))
    outside = write_image(tmp_path / "elsewhere/out.png")
    write_image(data / "out.png")
    (images / "broken.png").write_bytes(b"no image")
    (images / "loop.png").symlink_to("loop.png")
    (images / "link.png").symlink_to(outside)
    (images / "linked").symlink_to(outside.parent, target_is_directory=True)

    with pytest.raises(UserError, match=rf"{where}(?s:.)*x {kind}(?s:.)*data\.problems: drop"):
        check_split(file, images, "fail")
    split = check_split(file, images, "drop")
    assert split.annotations == coco() | {"info": {}}
    assert split.dropped.pop(kind) == 1
    # Its two objects go with it.
    assert list(split.dropped.values()) == [2]


def test_images_that_share_an_id_all_go(tmp_path: Path):
    overrides = with_image(id=2)
    with pytest.raises(UserError, match="image 2: image id stands twice"):
        check(tmp_path, **overrides)
    split = check(tmp_path, "drop", **overrides)
    assert split.annotations["images"] == [image(1)]
    assert split.annotations["annotations"] == [annotation(1)]
    assert split.dropped == {
        "image id stands twice": 2,
        "annotation of an image with a problem": 4,
    }


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        ({"id": "x"}, "annotation id is not an integer of 64 bits"),
        ({"id": None}, "annotation id is not an integer of 64 bits"),
        ({"id": 1}, "annotation id stands twice"),
        ({"image_id": 9}, "annotation of an unknown image"),
        ({"image_id": [1]}, "annotation of an unknown image"),
        ({"category_id": 9}, "annotation of an unknown category: 9"),
        ({"category_id": None}, "annotation of an unknown category: None"),
        ({"bbox": None}, "box is not four finite numbers: None"),
        ({"bbox": [1, 2, 3]}, "box is not four finite numbers"),
        ({"bbox": [1, 2, 3, "4"]}, "box is not four finite numbers"),
        ({"bbox": [1, 2, 3, float("nan")]}, "box is not four finite numbers"),
        ({"bbox": [float("inf"), 2, 3, 4]}, "box is not four finite numbers"),
        ({"bbox": [1, 2, 3, 10**400]}, "box is not four finite numbers"),
        ({"bbox": [1, 2, 0.99, 5]}, "box under 1 pixel wide or high"),
        ({"bbox": [1, 2, 5, 0]}, "box under 1 pixel wide or high"),
        ({"bbox": [1, 2, -5, 4]}, "box under 1 pixel wide or high"),
        ({"bbox": [40, 2, 5, 5]}, r"box outside its image: \[40, 2, 5, 5\] in 40 x 30 pixels"),
        ({"bbox": [-5, 2, 5, 5]}, "box outside its image"),
        ({"bbox": [1, 30.5, 5, 5]}, "box outside its image"),
    ],
)
def test_annotation_with_a_problem(tmp_path: Path, overrides: dict[str, Any], kind: str):
    bad = annotation(4) | overrides
    annotations = [*coco()["annotations"], bad]
    message = rf"annotation {bad['id']!r} of image .*: {kind}"
    with pytest.raises(UserError, match=message):
        check(tmp_path, annotations=annotations)
    split = check(tmp_path, "drop", annotations=annotations)
    assert split.annotations == coco() | {"info": {}}
    assert split.dropped == {kind.split(":")[0]: 1}


def test_message_lists_some_problems_and_counts_all(tmp_path: Path):
    outside = [annotation(10 + i, bbox=[50, 0, 5, 5]) for i in range(30)]
    thin = [annotation(50, bbox=[0, 0, 0, 5])]
    with pytest.raises(UserError) as error:
        check(tmp_path, annotations=outside + thin)
    lines = str(error.value).splitlines()
    assert len([line for line in lines if line.startswith("  annotation ")]) == 20
    assert lines[21:] == [
        "  and 11 more",
        "in all",
        "  30 x box outside its image",
        "  1 x box under 1 pixel wide or high",
        "fix them, or set `data.problems: drop` to leave them out",
    ]


def test_what_is_no_problem(tmp_path: Path):
    annotations = [
        annotation(0, area=0),
        annotation(5, bbox=[-3, -4, 10, 12], iscrowd=True, segmentation=[[1, 2, 3, 4, 5, 6]]),
        {"id": -6, "image_id": 1, "category_id": 3, "bbox": [35, 25, 10.5, 2]},
        annotation(7, ignore=1),
    ]
    images = [image(1), image(2), image(-3, file_name="1.png", width=40.0, license=1)]
    split = check(tmp_path, images=images, annotations=annotations)
    assert split.annotations["annotations"] == [
        annotation(6, area=120),  # pycocotools can't match id 0
        annotation(5, bbox=[-3, -4, 10, 12], iscrowd=1),
        annotation(-6, category_id=3, bbox=[35, 25, 10.5, 2], area=21.0),
    ]
    assert split.annotations["images"][2] == image(-3, file_name="1.png")
    assert (split.images, split.objects, split.crowd, split.empty) == (3, 3, 1, 2)
    assert split.reach_outside == 2
    assert split.dropped == {"annotation marked ignore": 1}


@pytest.mark.parametrize(
    ("suffix", "orientation", "size"),
    [("jpg", 6, (30, 40)), ("jpg", 3, (40, 30)), ("png", 8, (30, 40)), ("webp", 5, (30, 40))],
)
def test_size_is_that_after_the_exif_turn(
    tmp_path: Path, suffix: str, orientation: int, size: tuple[int, int]
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    name = f"turned.{suffix}"
    write_image(tmp_path / "images" / name, exif=exif)
    split = check(
        tmp_path,
        images=[image(1, file_name=name, width=size[0], height=size[1])],
        annotations=[],
    )
    assert split.images == 1


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat", "bird"], r"only in train: \['dog'\]; only in val: \['bird'\]"),
        (["dog", "cat"], r"order differs, train: \['cat', 'dog'\]; val: \['dog', 'cat'\]"),
        (["cat"], r"only in train: \['dog'\]; only in val: \[\]"),
    ],
)
def test_splits_with_other_classes(tmp_path: Path, names: list[str], message: str):
    train = check(tmp_path)
    check_same_classes(train, train)
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    val = check(tmp_path, annotations=[], categories=categories)
    with pytest.raises(UserError, match=message):
        check_same_classes(train, val)


def rename_image(folder: Path, content: dict[str, Any]) -> None:
    (folder / "images/1.png").rename(folder / "images/a.png")
    content["images"][0]["file_name"] = "a.png"


def change_image(folder: Path, content: dict[str, Any]) -> None:
    write_image(folder / "images/2.png", seed=5)


def reverse_images(folder: Path, content: dict[str, Any]) -> None:
    content["images"].reverse()


def add_unused_file(folder: Path, content: dict[str, Any]) -> None:
    write_image(folder / "images/unused.png")


@pytest.mark.parametrize(
    ("change", "is_changed"),
    [(rename_image, True), (change_image, True), (reverse_images, False), (add_unused_file, False)],
)
def test_images_digest(tmp_path: Path, change: Callable[..., None], is_changed: bool):
    before = check(tmp_path).images_digest
    content = coco()
    change(tmp_path, content)
    (tmp_path / "train.json").write_text(json.dumps(content))
    after = check_split(tmp_path / "train.json", tmp_path / "images", "fail").images_digest
    assert (before != after) == is_changed


def assert_mmdet_reads_the_same(file: Path, classes: tuple[str, ...]):
    from mmdet.datasets import CocoDataset

    dataset = CocoDataset(
        ann_file=str(file), metainfo={"classes": classes}, data_prefix={"img": ""}, pipeline=[]
    )
    images = load_images(file)
    assert len(dataset) == len(images)
    for index, expected in enumerate(images):
        info = dataset.get_data_info(index)
        assert info["img_id"] == expected.image_id
        assert info["img_path"] == expected.file_name
        assert (info["width"], info["height"]) == (expected.width, expected.height)
        found = info["instances"]
        boxes = np.array([instance["bbox"] for instance in found], float).reshape(-1, 4)
        np.testing.assert_array_equal(boxes, expected.objects.boxes)
        assert [one["bbox_label"] for one in found] == expected.objects.labels.tolist()
        assert [one["ignore_flag"] for one in found] == expected.objects.crowd.tolist()


def test_mmdet_drops_nothing_of_a_checked_file(tmp_path: Path):
    annotations = [
        annotation(0, area=-1),
        annotation(1, image_id=2, bbox=[-3, -4, 10, 12], iscrowd=1),
        annotation(2, image_id=2, bbox=[39.5, 2, 1, 1]),
        annotation(3, category_id=3, ignore=1),
        annotation(4, category_id=3, bbox=[0, 0, 0.5, 9]),
        {"id": 5, "image_id": 2, "category_id": 3, "bbox": [1, 2, 1, 1]},
    ]
    images = [image(2), image(1), image(0, file_name="1.png")]
    split = check(tmp_path, "drop", images=images, annotations=annotations)
    assert split.objects == 4
    assert_mmdet_reads_the_same(written(split, tmp_path / "checked.json"), split.classes)


@pytest.mark.skipif(not BCCD.is_dir(), reason="needs the BCCD data set in ../shared/data/bccd")
@pytest.mark.parametrize("name", ["train", "val"])
def test_bccd_passes(tmp_path: Path, name: str):
    split = check_split(BCCD / f"{name}.json", BCCD / "images", "fail")
    assert split.classes == ("RBC", "WBC", "Platelets")
    assert split.images == {"train": 205, "val": 87}[name]
    assert split.dropped == {}
    file = written(split, tmp_path / "checked.json")
    assert len(COCO(file).anns) == split.objects
    assert_mmdet_reads_the_same(file, split.classes)
