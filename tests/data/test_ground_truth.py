"""The objects of a batch of views: padded to as many as the view with most has, without crowds."""

import pytest
import torch
from torch import Tensor

from pipeline.data.ground_truth import GroundTruth

ONE = [[1, 2, 3, 4]]
TWO = [[5, 6, 7, 8], [9, 10, 11, 12]]


def boxes_of(*views: list[list[int]]) -> list[Tensor]:
    return [torch.tensor(view, dtype=torch.float64).reshape(-1, 4) for view in views]


def labels_of(*views: list[int]) -> list[Tensor]:
    return [torch.tensor(view, dtype=torch.int64) for view in views]


def flags_of(*views: list[int]) -> list[Tensor]:
    return [torch.tensor(view, dtype=torch.bool) for view in views]


@pytest.mark.parametrize(
    ("boxes", "labels", "crowd", "valid"),
    [
        pytest.param([TWO, TWO], [[3, 0], [1, 1]], [], [[1, 1], [1, 1]], id="as many in each"),
        pytest.param([ONE, TWO, []], [[3], [0, 2], []], [], [[1, 0], [1, 1], [0, 0]], id="padded"),
        pytest.param([TWO], [[3, 0]], [[0, 1]], [[1, 0]], id="a crowd"),
        pytest.param(
            [ONE, TWO], [[3], [0, 2]], [[0], [1, 0]], [[1, 0], [0, 1]], id="crowd, padded"
        ),
        pytest.param([ONE, ONE], [[3], [0]], [[1], [1]], [[0], [0]], id="nothing but crowds"),
        pytest.param([[], []], [[], []], [], [[], []], id="no objects"),
        pytest.param([[]], [[]], [[]], [[]], id="no objects, and no crowds"),
    ],
)
def test_pad(boxes: list, labels: list, crowd: list, valid: list) -> None:
    truth = GroundTruth.pad(boxes_of(*boxes), labels_of(*labels), flags_of(*crowd))
    views, room = len(boxes), max(map(len, labels))
    assert truth.boxes.shape == (views, room, 4)
    assert truth.boxes.dtype == torch.float32
    assert truth.labels.shape == truth.valid.shape == (views, room)
    assert truth.labels.dtype == torch.int64
    assert truth.valid.dtype == torch.bool
    assert truth.valid.int().tolist() == valid
    # Objects keep their places, crowds too: an index into them is one into the annotation file.
    for view, (own_boxes, own_labels) in enumerate(zip(boxes, labels, strict=True)):
        assert truth.boxes[view, : len(own_boxes)].tolist() == own_boxes
        assert truth.labels[view, : len(own_labels)].tolist() == own_labels


def test_the_input_stays_as_it_is() -> None:
    boxes, labels, crowd = boxes_of(ONE, TWO), labels_of([3], [0, 2]), flags_of([0], [1, 0])
    copies = [[one.clone() for one in part] for part in (boxes, labels, crowd)]
    truth = GroundTruth.pad(boxes, labels, crowd)
    truth.boxes.zero_(), truth.labels.zero_(), truth.valid.zero_()
    for part, before in zip((boxes, labels, crowd), copies, strict=True):
        assert all(map(torch.equal, part, before))


def test_on_another_device() -> None:
    truth = GroundTruth.pad(boxes_of(ONE, TWO), labels_of([3], [0, 2])).to("meta")
    assert {part.device.type for part in (truth.boxes, truth.labels, truth.valid)} == {"meta"}
