"""The batched PAA rule in the training step, against mmdet's own, object by object."""

import pipeline.mmcv_ops  # noqa: F401

from pathlib import Path

import pytest
import torch
from mmdet.models.dense_heads import LADHead
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from pipeline.batch_grid import level_shapes_of
from pipeline.detector import build_detector, load_model_config
from pipeline.online import assign_batch
from pipeline.teacher import stack_levels

CONFIG = Path(__file__).parents[1] / "configs/paa_r18_quarter.py"
CLASSES = 10
MIXED = [(192, 256), (160, 224), (192, 192), (96, 256), (192, 256)]
SAME = [(192, 256)] * 5


@MODELS.register_module()
class DoubleLADHead(LADHead):
    """mmdet's head, which hands its costs to scikit-learn in float64 instead of float32.

    In float32, scikit-learn's rounding makes ties between thresholds.
    """

    def paa_reassign(self, pos_losses: torch.Tensor, *args) -> tuple:
        return super().paa_reassign(pos_losses.double(), *args)


def lad_head(kind: str = "LADHead"):
    model = load_model_config(CONFIG, CLASSES)
    model.bbox_head.type = kind
    return build_detector(model).bbox_head


def sample_of(padded: tuple[int, int], batch: tuple[int, int], boxes, crowds=()) -> DetDataSample:
    """A sample as the preprocessor leaves it."""
    height, width = padded
    sample = DetDataSample(
        metainfo={
            "img_shape": (height - 5, width - 3),
            "pad_shape": padded,
            "batch_input_shape": batch,
        }
    )
    boxes, crowds = (
        torch.as_tensor(each, dtype=torch.float32).view(-1, 4) for each in (boxes, crowds)
    )
    labels = torch.arange(len(boxes)) % CLASSES
    sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
    sample.ignored_instances = InstanceData(bboxes=crowds, labels=torch.zeros(len(crowds)).long())
    return sample


def random_boxes(count: int, padded: tuple[int, int]) -> torch.Tensor:
    height, width = padded
    size = torch.exp(torch.rand(count, 2) * 3.5 + 1.5)
    corner = torch.rand(count, 2) * torch.tensor([width, height])
    return torch.cat([corner, torch.minimum(corner + size, torch.tensor([width, height]))], 1)


def random_batch(
    seed: int, sizes: list[tuple[int, int]], counts: list[int]
) -> tuple[list[DetDataSample], list[list[torch.Tensor]]]:
    """Samples with random objects and crowds, and random outputs of a head."""
    torch.manual_seed(seed)
    batch = (max(h for h, _ in sizes), max(w for _, w in sizes))
    samples = [
        sample_of(size, batch, random_boxes(count, size), random_boxes(2, size))
        for size, count in zip(sizes, counts, strict=True)
    ]
    shapes = [(-(-batch[0] // s), -(-batch[1] // s)) for s in (8, 16, 32, 64, 128)]
    outputs = [
        [torch.randn(len(sizes), channels, *shape) * scale - shift for shape in shapes]
        for channels, scale, shift in ((CLASSES, 1.5, 3.0), (4, 0.5, 0.0), (1, 1.0, 0.0))
    ]
    return samples, outputs


def mmdets(head: LADHead, samples: list[DetDataSample], outputs) -> tuple:
    return head.get_label_assignment(
        *outputs,
        [sample.gt_instances for sample in samples],
        [sample.metainfo for sample in samples],
        [sample.ignored_instances for sample in samples],
    )


def ours(head: LADHead, samples: list[DetDataSample], outputs) -> tuple:
    return assign_batch(head, stack_levels(outputs), samples, level_shapes_of(outputs[0]))


def assert_same_assignment(found: tuple, expected: tuple) -> None:
    """What `LADHead.loss_by_feat` uses of it; box targets of the background it does not."""
    labels, weights, boxes, _, positives, anchors, count = found
    assert torch.equal(labels, expected[0])
    assert torch.equal(weights, expected[1])
    assert torch.equal(positives, expected[4])
    assert torch.equal(boxes[positives], expected[2][positives])
    assert count == expected[6]
    if count:
        assert torch.equal(anchors, expected[5])


COUNTS = [
    pytest.param([7, 3, 12, 1, 5], id="objects"),
    pytest.param([7, 0, 2, 0, 40], id="some images without objects"),
    pytest.param([0, 0, 0, 0, 0], id="no objects at all"),
]


@pytest.mark.parametrize("sizes", [pytest.param(MIXED, id="mixed"), pytest.param(SAME, id="same")])
@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("seed", range(4))
def test_assignment_equals_mmdets(seed: int, counts: list[int], sizes: list) -> None:
    samples, outputs = random_batch(seed, sizes, counts)
    expected = mmdets(lad_head("DoubleLADHead"), samples, outputs)
    assert_same_assignment(ours(lad_head(), samples, outputs), expected)
    assert bool(expected[6]) == any(counts)


def test_assignment_equals_mmdets_in_float32_but_for_ties() -> None:
    differing = positives = 0
    for seed in range(20):
        samples, outputs = random_batch(seed, MIXED, [5] * 5)
        found, expected = (one(lad_head(), samples, outputs)[0] for one in (ours, mmdets))
        differing += (found != expected).sum()
        positives += (expected < CLASSES).sum()
    assert positives > 1000
    assert differing <= 0.02 * positives
