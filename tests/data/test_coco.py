"""Checked annotations as arrays, and the digest of an image's objects."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.data.coco import Objects, load_images, objects_digest
from pipeline.project.errors import UserError
from tests.coco_builder import annotation, coco, write_coco


def objects(**overrides: Any) -> Objects:
    arrays = {
        "boxes": np.array([[1.0, 2.0, 5.0, 6.0], [0.5, 0.0, 9.0, 3.0]]),
        "labels": np.array([1, 0]),
        "crowd": np.array([False, True]),
    }
    return Objects(**(arrays | overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        {"boxes": np.array([[1.0, 2.0, 5.0, 6.0], [0.5, 0.0, 9.0, np.nextafter(3, 4)]])},
        {"boxes": objects().boxes[::-1].copy()},
        {"labels": np.array([1, 1])},
        {"crowd": np.array([False, False])},
        {"boxes": np.zeros((0, 4)), "labels": np.zeros(0, int), "crowd": np.zeros(0, bool)},
    ],
    ids=["last bit of a box", "order of boxes", "label", "crowd", "no objects"],
)
def test_objects_digest_changes(overrides: dict[str, Any]):
    assert objects_digest(objects()) == objects_digest(objects())
    assert objects_digest(objects(**overrides)) != objects_digest(objects())


def test_objects_digest_is_the_same_everywhere():
    strided = objects(boxes=np.repeat(objects().boxes, 2, axis=1)[:, ::2])
    assert objects_digest(strided) == objects_digest(objects()) == 13_211_683_656_854_403_084


@pytest.mark.parametrize(
    "overrides",
    [
        {"boxes": np.zeros((2, 5))},
        {"boxes": np.zeros((1, 4))},
        {"boxes": np.zeros((2, 4), np.float32)},
        {"labels": np.zeros((2, 1), np.int64)},
        {"labels": np.zeros(2, np.int32)},
        {"crowd": np.zeros(2, np.int64)},
    ],
)
def test_objects_refuse_other_shapes_and_types(overrides: dict[str, Any]):
    with pytest.raises(ValueError, match=r"must be \w+ \(2"):
        objects(**overrides)


def test_load_images(tmp_path: Path):
    annotations = [
        annotation(1, image_id=2, bbox=[1.5, 2, 3, 4.25]),
        annotation(2, image_id=2, category_id=3, iscrowd=1),
    ]
    file, _ = write_coco(tmp_path, annotations=annotations)
    first, second = load_images(file)
    assert (first.image_id, first.file_name, first.width, first.height) == (1, "1.png", 40, 30)
    assert first.objects.boxes.shape == (0, 4)
    np.testing.assert_array_equal(second.objects.boxes, [[1.5, 2, 4.5, 6.25], [4, 5, 14, 17]])
    assert second.objects.labels.tolist() == [0, 1]
    assert second.objects.crowd.tolist() == [False, True]


def test_a_file_is_parsed_once_until_it_changes(tmp_path: Path):
    file, _ = write_coco(tmp_path)
    first = load_images(file)
    assert load_images(file) is first
    file.write_text(json.dumps(coco(annotations=[annotation(1, bbox=[1, 2, 3, 4])])))
    os.utime(file, ns=(0, 1))
    (one, none) = load_images(file)
    np.testing.assert_array_equal(one.objects.boxes, [[1, 2, 4, 6]])
    assert not len(none.objects.labels)


def test_a_file_that_is_missing_is_told_each_time(tmp_path: Path):
    file = tmp_path / "train.json"
    for _ in range(2):
        with pytest.raises(UserError, match="can't read the annotation file"):
            load_images(file)
    write_coco(tmp_path)
    assert len(load_images(file)) == 2
