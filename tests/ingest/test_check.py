"""What the check of a COCO data set refuses, leaves out and keeps; mmdet reads all that stays."""

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image, features
from pycocotools.coco import COCO

from pipeline.data.coco import load_images
from pipeline.ingest.check import CheckResult, check_split, notes_on_both, with_classes_of
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
        (coco(categories=[{"id": "one", "name": "a"}]), "an integer `id`"),
        (coco(categories=[{"id": True, "name": "a"}]), "an integer `id`"),
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
        (coco(annotations=[]), r"no object to learn or to measure \(it has no annotations\)"),
        (
            coco(annotations=[annotation(1, iscrowd=1), annotation(2, iscrowd="1")]),
            r"no object to learn or to measure \(all 2 are crowds\)",
        ),
        (
            coco(annotations=[annotation(1, ignore=1)]),
            r"no annotations but for 1 that were left out",
        ),
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


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


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
        ({"id": "x"}, "image id is not an integer of 64 bits", r"image 'x': .*'x' \(str\)"),
        ({"id": 1.5}, "image id is not an integer of 64 bits", r"image 1\.5: .*1\.5 \(float\)"),
        ({"id": True}, "image id is not an integer of 64 bits", r"image True: .*\(bool\)"),
        ({"id": 1e30}, "image id is not an integer of 64 bits", r"image 1e\+30"),
        ({"id": 2**63}, "image id is not an integer of 64 bits", f"image {2**63}"),
        ({"file_name": None}, "image without a file_name", "image 3"),
        ({"file_name": 7}, "image without a file_name", r"image 3: .*7 \(int\)"),
        (
            {"file_name": "1.pgn"},
            "image file is missing",
            r"image 3: .*images/1\.pgn; the nearest name there is '1\.png'",
        ),
        (
            {"file_name": "C:\\photos\\1.png"},
            "image file is missing",
            r"image 3: .*; the nearest name there is '1\.png'",
        ),
        ({"file_name": ""}, "image file is missing", "image 3"),
        ({"file_name": "a\0b.png"}, "image file is missing", "image 3"),
        ({"file_name": "loop.png"}, "image file is missing", r"image 3: .*a link to loop\.png"),
        ({"file_name": "gone.png"}, "image file is missing", r"image 3: .*a link to /no/such\.png"),
        ({"file_name": "text.png"}, "image file can't be decoded", r"image 3: .*text\.png, which"),
        ({"file_name": "empty.png"}, "image file can't be decoded", "image 3: .*which is empty"),
        (
            {"file_name": "cut.jpg"},
            "image file can't be decoded",
            r"image 3: .*cut\.jpg, which is cut off or broken \(image file is truncated",
        ),
        ({"file_name": "cut.png"}, "image file can't be decoded", "image 3: .*which is cut off"),
        (
            {"file_name": "float.tif"},
            "image file can't be decoded",
            r"image 3: .*can't read \(TIFF, F\): save it as PNG",
        ),
        ({"file_name": "1.tga"}, "image file can't be decoded", r"image 3: .*\(TGA, RGB\)"),
        ({"file_name": "1.pcx"}, "image file can't be decoded", r"image 3: .*\(PCX, RGB\)"),
        ({"file_name": "../out.png"}, "file name leaves the image folder", "image 3"),
        ({"file_name": "..\\out.png"}, "file name leaves the image folder", "image 3"),
        ({"file_name": "a/../1.png"}, "file name leaves the image folder", "image 3"),
        ({"file_name": "/etc/hostname"}, "file name leaves the image folder", "image 3"),
        (
            {"width": 41},
            "image size differs from its file",
            "image 3: .*1.png is 40 x 30 pixels, annotated as 41 x 30",
        ),
        (
            {"width": 30, "height": 40},
            "image size differs from its file",
            "annotated as 30 x 40; width and height are swapped, as for a file that EXIF",
        ),
        (
            {"width": 30, "height": 40, "file_name": "turned.png"},
            "image size differs from its file",
            "image 3: .*turned.png is 40 x 30 pixels, annotated as 30 x 40; EXIF turns this file",
        ),
        (
            {"width": "wide"},
            "image size differs from its file",
            r"annotated as 'wide' \(str\) x 30 \(int\)",
        ),
    ],
)
def test_image_with_a_problem(tmp_path: Path, overrides: dict[str, Any], kind: str, where: str):
    data = tmp_path / "data"
    file, images = write_coco(data, **with_image(**overrides))
    write_image(data / "out.png")
    (images / "text.png").write_bytes(b"no image")
    (images / "empty.png").touch()
    (images / "loop.png").symlink_to("loop.png")
    (images / "gone.png").symlink_to("/no/such.png")
    for name in ("cut.jpg", "cut.png"):
        file_content = write_image(images / name).read_bytes()
        (images / name).write_bytes(file_content[: len(file_content) // 2])
    Image.fromarray(np.zeros((30, 40), np.float32)).save(images / "float.tif")
    write_image(images / "1.tga")
    write_image(images / "1.pcx")
    write_image(images / "turned.png", 30, 40, exif=turned(6))

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
        ({"id": 1.5}, r"annotation id is not an integer of 64 bits: 1\.5 \(float\)"),
        ({"id": 1}, "annotation id stands twice"),
        ({"image_id": 9}, "annotation of an unknown image"),
        ({"image_id": [1]}, "annotation of an unknown image"),
        ({"category_id": 9}, "annotation of an unknown category: 9"),
        ({"category_id": None}, "annotation of an unknown category: None"),
        ({"bbox": None}, "box is not four finite numbers: None"),
        ({"bbox": [1, 2, 3]}, "box is not four finite numbers"),
        ({"bbox": [1, 2, 3, "four"]}, "box is not four finite numbers"),
        ({"bbox": [1, 2, 3, "nan"]}, "box is not four finite numbers"),
        ({"bbox": [1, 2, 3, True]}, "box is not four finite numbers"),
        ({"bbox": [1, 2, 3, float("nan")]}, "box is not four finite numbers"),
        ({"bbox": [float("inf"), 2, 3, 4]}, "box is not four finite numbers"),
        ({"bbox": [1, 2, 3, 10**400]}, "box is not four finite numbers"),
        ({"bbox": [1, 2, 0.99, 5]}, "box under 1 pixel wide or high"),
        ({"bbox": [1, 2, 5, 0]}, "box under 1 pixel wide or high"),
        ({"bbox": [1, 2, -5, 4]}, "box under 1 pixel wide or high"),
        ({"bbox": [40, 2, 5, 5]}, r"box outside its image: \[40, 2, 5, 5\] in 40 x 30 pixels"),
        ({"bbox": [-5, 2, 5, 5]}, "box outside its image"),
        ({"bbox": [1, 30.5, 5, 5]}, "box outside its image"),
        ({"bbox": [39.9995, 2, 5, 5]}, "box under 1 pixel wide or high inside its image"),
        ({"bbox": [1, -4.1, 5, 5]}, "box under 1 pixel wide or high inside its image"),
        ({"iscrowd": 2}, r"iscrowd is neither 0 nor 1: 2 \(int\)"),
        ({"iscrowd": "no"}, r"iscrowd is neither 0 nor 1: 'no' \(str\)"),
        ({"ignore": []}, r"ignore is neither 0 nor 1: \[\] \(list\)"),
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
        annotation(8, ignore="true"),
    ]
    images = [image(1), image(2), image(-3, file_name="1.png", license=1)]
    split = check(tmp_path, images=images, annotations=annotations)
    assert split.annotations["annotations"] == [
        annotation(6, area=120),  # pycocotools can't match id 0
        annotation(5, bbox=[-3, -4, 10, 12], iscrowd=1),
        annotation(-6, category_id=3, bbox=[35, 25, 10.5, 2], area=21.0),
    ]
    assert split.annotations["images"][2] == image(-3, file_name="1.png")
    assert (split.images, split.objects, split.crowd, split.empty) == (3, 3, 1, 2)
    assert split.reach_outside == 2
    assert split.dropped == {"annotation marked ignore": 2}
    assert split.notes == [
        "1 images have the file of another image, under an id of their own",
        "1 x ignore was given as text and read as a number",
    ]


@pytest.mark.parametrize(
    ("overrides", "note"),
    [
        ({"image_id": "2"}, "1 x image_id was given as text and read as a number"),
        ({"image_id": 2.0}, "1 x image_id was given as float and read as a number"),
        ({"category_id": "7"}, "1 x category_id was given as text and read as a number"),
        ({"category_id": "7.0"}, "1 x category_id was given as text and read as a number"),
        ({"id": " 9 "}, "1 x id was given as text and read as a number"),
        ({"bbox": ["4", 5, "10.0", 12]}, "1 x bbox was given as text and read as a number"),
        ({"iscrowd": "0"}, "1 x iscrowd was given as text and read as a number"),
        ({"iscrowd": "False"}, "1 x iscrowd was given as text and read as a number"),
        ({"iscrowd": 0.0}, "1 x iscrowd was given as float and read as a number"),
        ({"ignore": "0"}, "1 x ignore was given as text and read as a number"),
        ({"iscrowd": None, "ignore": False}, None),
        ({"area": "100"}, None),
    ],
)
def test_numbers_of_another_type_are_read_and_counted(
    tmp_path: Path, overrides: dict[str, Any], note: str | None
):
    sound = annotation(9, image_id=2)
    annotations = [*coco()["annotations"], sound | overrides]
    split = check(tmp_path, annotations=annotations)
    expected = sound | ({"area": 120} if "area" in overrides else {})
    assert split.annotations["annotations"][3] == expected
    assert split.notes == ([note] if note else [])


@pytest.mark.parametrize("given", [{"width": "40"}, {"height": 30.0}, {"width": None}, {}])
def test_the_file_says_the_size(tmp_path: Path, given: dict[str, Any]):
    images = [image(1), {"id": 2, "file_name": "2.png"} | given]
    split = check(tmp_path, images=images)
    assert split.annotations["images"] == coco()["images"]
    assert "1 images say no width or height, which their files do" in split.notes


def test_ids_that_restart_in_each_image_are_numbered_anew(tmp_path: Path):
    annotations = [
        annotation(0),
        annotation(1, bbox=[1, 2, 3, 4]),
        annotation(0, image_id=2),
        annotation(1, image_id=2, category_id=3),
        annotation(1, image_id=2, bbox=[1, 2, 3, 4]),  # nor does an image tell them apart
    ]
    split = check(tmp_path, annotations=annotations)
    expected = [one | {"id": number} for number, one in enumerate(annotations, 1)]
    assert split.annotations["annotations"] == expected
    assert split.notes == ["annotation ids stand more than once: all were numbered anew"]


def test_an_image_with_more_objects_than_a_store_can_count(tmp_path: Path):
    many = [annotation(number, image_id=2) for number in range(1, 2**15 + 1)]
    annotations = [annotation(2**16), *many]
    message = r"image 2: image with more objects than a label store .*: 32,768, expected at most"
    with pytest.raises(UserError, match=message):
        check(tmp_path, annotations=annotations)
    split = check(tmp_path, "drop", annotations=annotations)
    assert split.annotations["images"] == [image(1)]
    assert split.objects == 1


def test_an_image_with_more_objects_than_coco_counts_is_noted(tmp_path: Path):
    many = [annotation(number, image_id=2) for number in range(1, 102)]
    (note,) = check(tmp_path, annotations=many).notes
    assert note.startswith("1 images have more than 100 objects, 101 at most: COCO's evaluation")


def test_images_may_be_links(tmp_path: Path):
    file, images = write_coco(tmp_path / "data")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (images / "1.png").rename(elsewhere / "1")
    (images / "1.png").symlink_to(elsewhere / "1")
    (images / "linked").symlink_to(elsewhere, target_is_directory=True)
    file.write_text(json.dumps(coco(images=[image(1), image(2), image(3, file_name="linked/1")])))
    split = check_split(file, images, "fail")
    assert [one["file_name"] for one in split.annotations["images"]] == [
        "1.png",
        "2.png",
        "linked/1",
    ]


@pytest.mark.parametrize(
    "spell",
    [
        lambda images: "a\\b\\grün.png",
        lambda images: "./a/b/grün.png",
        lambda images: str(images / "a/b/grün.png"),
        lambda images: unicodedata.normalize("NFD", "a/b/grün.png"),
        lambda images: unicodedata.normalize("NFD", str(images / "a/b/grün.png")),
    ],
)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_file_is_found_under_other_spellings(
    tmp_path: Path, spell: Callable[[Path], str], form: Any
):
    file, images = write_coco(tmp_path)
    there = unicodedata.normalize(form, "a/b/grün.png")
    write_image(images / there)
    file.write_text(json.dumps(coco(images=[image(1), image(2, file_name=spell(images))])))
    split = check_split(file, images, "fail")
    assert split.annotations["images"][1]["file_name"] == there


@pytest.mark.parametrize(
    ("suffix", "orientation", "size"),
    [("jpg", 6, (30, 40)), ("jpg", 3, (40, 30)), ("png", 8, (30, 40)), ("webp", 5, (30, 40))],
)
def test_size_is_that_after_the_exif_turn(
    tmp_path: Path, suffix: str, orientation: int, size: tuple[int, int]
):
    name = f"turned.{suffix}"
    write_image(tmp_path / "images" / name, exif=turned(orientation))
    split = check(
        tmp_path,
        images=[image(1, file_name=name, width=size[0], height=size[1])],
        annotations=[annotation(1)],
    )
    assert split.images == 1
    assert split.notes == ["1 images are turned or mirrored as their EXIF data ask"]


def test_what_exif_asks_of_the_loader_alone_counts(tmp_path: Path):
    """Of an orientation of an unusual type, and of one in AVIF, OpenCV and Pillow think apart."""
    usual = write_image(tmp_path / "usual.jpg", exif=turned(6)).read_bytes()
    tag = b"\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"
    assert tag in usual
    files = {"long.jpg": usual.replace(tag, b"\x01\x12\x00\x04\x00\x00\x00\x01\x00\x00\x00\x06")}
    if features.check("avif"):
        files["turned.avif"] = write_image(tmp_path / "one.avif", exif=turned(6)).read_bytes()
    for name, content in files.items():
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / name).write_bytes(content)
        images = [{"id": 1, "file_name": name}]
        split = check(tmp_path, images=images, annotations=[annotation(1)])
        loaded = LoadImageFromFile()({"img_path": str(tmp_path / "images" / name)})["img"]
        (checked,) = split.annotations["images"]
        assert (checked["height"], checked["width"]) == loaded.shape[:2]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cat", "bird"], r"only in train: \['dog'\]; only in val: \['bird'\]"),
        (["cat", "dog", "bird"], r"only in train: \[\]; only in val: \['bird'\]"),
    ],
)
def test_val_with_other_classes(tmp_path: Path, names: list[str], message: str):
    train = check(tmp_path)
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    val = check(tmp_path, annotations=[annotation(1, category_id=0)], categories=categories)
    with pytest.raises(UserError, match=message):
        with_classes_of(train, val)


def test_classes_of_val_are_found_by_name(tmp_path: Path):
    train = check(tmp_path)
    assert with_classes_of(train, train) == train
    categories = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    annotations = [annotation(1, category_id=1), annotation(2, category_id=2)]
    val = with_classes_of(train, check(tmp_path, annotations=annotations, categories=categories))
    assert val.classes == train.classes
    assert val.annotations["categories"] == train.annotations["categories"]
    assert [one["category_id"] for one in val.annotations["annotations"]] == [3, 7]

    dogs = check(tmp_path, annotations=annotations[:1], categories=categories[:1])
    val = with_classes_of(train, dogs)
    assert val.classes == train.classes
    assert val.annotations["annotations"][0]["category_id"] == 3
    assert val.notes == ["1 classes of train are not in val: cat"]


def test_notes_on_both_splits(tmp_path: Path):
    train = check(tmp_path, annotations=[annotation(1)])
    val = check(tmp_path, images=[image(2)], annotations=[annotation(1, image_id=2)])
    assert notes_on_both(train, val) == [
        "1 image files of val are in train, too: what is measured on them says little",
        "1 classes have no object in train: dog",
    ]


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
        annotation(2, image_id=2, bbox=[39, 2, 1.5, 1]),
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
