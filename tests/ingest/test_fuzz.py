"""Mutations of a small data set: `lad data` makes each sound, or says what is wrong."""

import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.ingest.check import CheckResult, check_split, with_classes_of
from pipeline.project.errors import UserError
from tests.coco_builder import annotation, coco, image, write_coco
from tests.ingest.test_check import assert_mmdet_reads_the_same

SOUND = coco(
    images=[image(1), image(2), image(3, file_name="1.png")],
    annotations=[*coco()["annotations"], annotation(4, image_id=3, iscrowd=1, ignore=0)],
)
ENTRIES = ("images", "annotations", "categories")
NAMES = ("1.png", "./2.png", "a\\1.png", "../1.png", "no.png", "/etc/hostname", "", "\0", "ü.png")

plain_values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 50),
    st.integers(),
    st.floats(),
    st.floats(-50, 50),
    st.integers(-3, 50).map(str),
    st.sampled_from(["0", "true", "1.0", "1e3", "nan", "-0", "\u0661", "1_0", *NAMES]),
    st.text(max_size=4),
)
values = st.one_of(
    plain_values,
    st.lists(plain_values, max_size=5),
    st.lists(st.floats(-60, 60), min_size=4, max_size=4),
    st.dictionaries(st.text(max_size=3), plain_values, max_size=2),
)
KEYS = ("id", "file_name", "width", "height", "image_id", "category_id", "bbox", "area", "iscrowd")


@st.composite
def changed(draw: st.DrawFn) -> Any:
    """The content of an annotation file with up to four changes."""
    content = json.loads(json.dumps(SOUND))
    for _ in range(draw(st.integers(0, 4))):
        records = content.get(draw(st.sampled_from(ENTRIES)))
        if not isinstance(records, list) or not records:
            continue
        number = draw(st.integers(0, len(records) - 1))
        record = records[number]
        kind = draw(
            st.sampled_from(["set", "set", "set", "side", "drop key", "twice", "drop", "odd"])
        )
        if kind == "odd":
            content[draw(st.sampled_from(ENTRIES))] = draw(values)
        elif kind == "drop":
            del records[number]
        elif kind == "twice":
            records.append(json.loads(json.dumps(record)))
        elif not isinstance(record, dict):
            records[number] = draw(values)
        elif kind == "side" and isinstance(record.get("bbox"), list) and record["bbox"]:
            side = draw(st.integers(0, len(record["bbox"]) - 1))
            record["bbox"][side] = draw(plain_values)
        elif kind == "drop key" and record:
            del record[draw(st.sampled_from(sorted(record)))]
        else:
            key = draw(st.sampled_from([*sorted(record), "ignore", *KEYS]))
            record[key] = draw(values)
    return draw(st.sampled_from([content] * 20 + [[content], content.get("images"), None]))


@st.composite
def spoilt(draw: st.DrawFn) -> tuple[str, int, int]:
    """What becomes of the bytes of a file, and where."""
    kind = draw(st.sampled_from(["none"] * 4 + ["cut", "flip", "zeros", "swap"]))
    return kind, draw(st.integers(0, 3000)), draw(st.integers(1, 255))


def spoil(file: Path, how: tuple[str, int, int]) -> None:
    kind, place, value = how
    content = bytearray(file.read_bytes())
    place %= len(content)
    if kind == "cut":
        content = content[:place]
    elif kind == "flip":
        content[place] ^= value
    elif kind == "zeros":
        content[place : place + value] = bytes(len(content[place : place + value]))
    elif kind == "swap":
        content = content[place:] + content[:place]
    file.write_bytes(content)


def average_precision(split: CheckResult, file: Path) -> float:
    """Of detections that are the annotations."""
    file.write_text(json.dumps(split.annotations))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        detections = [
            {key: one[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5}
            for one in split.annotations["annotations"]
            if not one["iscrowd"]
        ]
        evaluation = COCOeval(truth, truth.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    content=changed(),
    image_bytes=st.lists(spoilt(), min_size=2, max_size=2),
    file_bytes=spoilt(),
    file_is_spoilt=st.sampled_from([False] * 9 + [True]),
    problems=st.sampled_from(["fail", "drop", "drop"]),
)
def test_a_mutated_data_set_is_sound_or_refused(
    content: Any, image_bytes: Any, file_bytes: Any, file_is_spoilt: bool, problems: Any
):
    with tempfile.TemporaryDirectory() as name:
        file, images = write_coco(Path(name))
        file.write_text(json.dumps(content))
        for number, how in enumerate(image_bytes, 1):
            spoil(images / f"{number}.png", how)
        if file_is_spoilt:
            spoil(file, file_bytes)
        try:
            split = check_split(file, images, problems)
        except UserError:
            return
        split = with_classes_of(split, split)
        checked = Path(name) / "checked.json"
        assert average_precision(split, checked) == pytest.approx(1)
        assert_mmdet_reads_the_same(checked, split.classes)
        for one in split.annotations["images"]:
            assert (images / one["file_name"]).is_file()
        boxes = np.array([one["bbox"] for one in split.annotations["annotations"]])
        assert np.isfinite(boxes.astype(np.float32)).all()
