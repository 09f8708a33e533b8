"""The PAA rule against mmdet's assigner, and where mmdet's own stops."""

import math

import numpy as np
import pytest
import torch
from mmdet.models.task_modules.assigners import MaxIoUAssigner
from mmdet.structures.bbox import bbox_overlaps
from mmengine.structures import InstanceData

from pipeline.assignment.iou import max_iou, prior_ious
from pipeline.assignment.paa import (
    find_candidates,
    place_in_group,
    select_positives,
    sort_by_group,
)
from pipeline.data.ground_truth import BACKGROUND, GroundTruth
from pipeline.views.priors import PriorGrid
from tests.conftest import DEVICES

GRID = PriorGrid((8, 16, 32, 64, 128))
PADDED = (192, 256)
PRIORS = GRID.priors(PADDED)


def random_boxes(rng: np.random.Generator, count: int) -> torch.Tensor:
    corner = rng.uniform(-10, 200, (count, 2))
    size = np.exp(rng.uniform(0, 5, (count, 2)))
    return torch.from_numpy(np.concatenate([corner, corner + size], 1)).float()


def truth_of(boxes: torch.Tensor, valid: torch.Tensor) -> GroundTruth:
    """Objects of one class."""
    return GroundTruth(boxes, torch.zeros(boxes.shape[:2], dtype=torch.long), valid)


def candidates(boxes: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """The object of each prior, (B, P)."""
    image, prior, taken = find_candidates(PRIORS, truth_of(boxes, valid))
    found = torch.full((len(boxes), GRID.count(PADDED)), BACKGROUND)
    found[image, prior] = taken
    return found


def mmdet_candidates(boxes: torch.Tensor) -> torch.Tensor:
    assigner = MaxIoUAssigner(pos_iou_thr=0.1, neg_iou_thr=0.1, min_pos_iou=0, ignore_iof_thr=-1)
    result = assigner.assign(
        InstanceData(priors=PRIORS.boxes),
        InstanceData(bboxes=boxes, labels=torch.zeros(len(boxes), dtype=torch.long)),
    )
    return result.gt_inds - 1


@pytest.mark.parametrize("count", [0, 1, 2, 7, 60])
@pytest.mark.parametrize("seed", range(5))
def test_candidates_equal_mmdet(count: int, seed: int) -> None:
    boxes = random_boxes(np.random.default_rng(seed), count)
    found = candidates(boxes[None], torch.ones(1, count, dtype=bool))
    assert torch.equal(found[0], mmdet_candidates(boxes))


@pytest.mark.parametrize(
    "boxes",
    [
        pytest.param([[10, 10, 60, 60]] * 3, id="the same box three times"),
        pytest.param([[5, 5, 6, 6], [5, 5, 7, 7]], id="tiny boxes want one prior"),
        pytest.param([[900, 900, 950, 950]], id="outside all priors"),
        pytest.param([[0, 0, 256, 192], [100, 80, 110, 90]], id="one inside another"),
        pytest.param([[8, 8, 8, 8]], id="no area"),
    ],
)
def test_candidates_equal_mmdet_in_odd_cases(boxes: list) -> None:
    boxes = torch.tensor(boxes, dtype=torch.float32)
    found = candidates(boxes[None], torch.ones(1, len(boxes), dtype=bool))
    assert torch.equal(found[0], mmdet_candidates(boxes))


def test_crowds_and_padding_get_no_candidates() -> None:
    boxes = random_boxes(np.random.default_rng(3), 6)
    valid = torch.tensor([[True, False, True, False, True, True]])
    found = candidates(boxes[None], valid)[0]
    kept = valid[0].nonzero()[:, 0]
    expected = mmdet_candidates(boxes[kept])
    expected = torch.where(expected >= 0, kept[expected], BACKGROUND)
    assert torch.equal(found, expected)


def test_an_image_does_not_depend_on_its_batch() -> None:
    rng = np.random.default_rng(4)
    boxes = torch.stack([random_boxes(rng, 9) for _ in range(4)])
    valid = torch.ones(4, 9, dtype=bool)
    valid[2, 5:] = False
    together = candidates(boxes, valid)
    for image in range(4):
        alone = candidates(boxes[image : image + 1], valid[image : image + 1])
        assert torch.equal(alone[0], together[image])


@pytest.mark.parametrize("seed", range(3))
def test_ious_equal_mmdet(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = torch.stack([random_boxes(rng, 6), random_boxes(rng, 6)])
    valid = torch.tensor([[True] * 6, [True, False, True, False, True, True]])
    predicted = torch.stack([random_boxes(rng, 50), random_boxes(rng, 50)])
    with_priors = prior_ious(truth_of(boxes, valid), PRIORS)
    best = max_iou(predicted, truth_of(boxes, valid))
    for image in range(2):
        kept = boxes[image][valid[image]]
        expected = bbox_overlaps(kept, PRIORS.boxes)
        assert torch.equal(with_priors[image][valid[image]], expected)
        assert not with_priors[image][~valid[image]].any()
        assert torch.equal(best[image], bbox_overlaps(kept, predicted[image]).amax(0))


def positives(costs: list[float], levels: list[int] | None = None, objects=None) -> list[int]:
    costs_ = torch.tensor(costs)
    result = select_positives(
        costs_,
        torch.tensor(objects or [0] * len(costs)),
        torch.tensor(levels or [0] * len(costs)),
        5,
    )
    return result.chosen.nonzero()[:, 0].tolist()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("groups", [1, 40, 70_000])
def test_sorting_is_by_group_cost_and_index(device: str, dtype: torch.dtype, groups: int) -> None:
    rng = np.random.default_rng(groups)
    # Few different costs, so that many are equal; negative ones and such that are not finite, too.
    costs = rng.choice([-2.5, -1e-7, 1e-38, 0.1, 0.3, 7.0, 1e9, math.inf, math.nan], 500)
    group = rng.integers(0, groups, 500)
    found = sort_by_group(
        torch.tensor(costs, dtype=dtype, device=device), torch.tensor(group, device=device)
    )
    finite = np.where(np.isfinite(costs), costs, math.inf)
    expected = sorted(range(500), key=lambda i: (group[i], finite[i], i))
    assert found.tolist() == expected


def test_places_in_groups_are_counted() -> None:
    found = place_in_group(torch.tensor([4, 4, 4, 5, 8, 8]))
    assert found.tolist() == [0, 1, 2, 0, 0, 1]


def test_low_costs_are_positive_and_high_ones_background() -> None:
    assert set(positives([0.1, 0.12, 0.11, 3.0, 3.1, 2.9])) <= {0, 1, 2}
    assert positives([0.1, 0.12, 0.11, 3.0, 3.1, 2.9])


def test_at_most_nine_candidates_of_a_level_are_pooled() -> None:
    assert set(positives([1.0 + i / 100 for i in range(20)])) <= set(range(9))


def test_an_object_with_one_candidate_gets_no_positive() -> None:
    assert positives([0.5]) == []


def test_no_candidates_at_all() -> None:
    none = torch.zeros(0)
    result = select_positives(none, none.long(), none.long(), 5)
    assert not len(result.chosen)
    assert not len(result.fallbacks)


def test_a_cost_that_is_not_finite_falls_back_and_is_counted() -> None:
    costs = torch.tensor([0.1, float("nan"), 0.2, 2.0, 0.1, 0.2, 2.0])
    objects = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    result = select_positives(costs, objects, torch.zeros(7, dtype=torch.long), 5)
    assert result.fallbacks.tolist() == [0]
    assert result.chosen[:4].tolist() == [True, False, True, True]
    alone = select_positives(costs[4:], objects[4:], torch.zeros(3, dtype=torch.long), 5)
    assert torch.equal(result.chosen[4:], alone.chosen)


def test_an_object_whose_costs_are_all_nan_does_not_stop_the_batch() -> None:
    result = select_positives(
        torch.full((3,), float("nan")), torch.zeros(3).long(), torch.zeros(3).long(), 5
    )
    assert not result.chosen.any()
    assert result.fallbacks.tolist() == [0]
