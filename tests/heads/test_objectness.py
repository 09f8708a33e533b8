"""Objectness heads: their probability against the formula, and as teacher and student."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.models.utils import levels_to_images
from mmengine.dataset import pseudo_collate
from torch import Tensor
from torch.nn.functional import logsigmoid

from pipeline.data.dataset import load_split
from pipeline.detector.build import build_detector, load_model_config
from pipeline.detector.model_folder import load_model
from pipeline.evaluation.evaluate import evaluate
from pipeline.heads.lad import ObjectnessLADHead
from pipeline.heads.objectness import LIMIT, weighted_logits
from pipeline.loading.dataset import view_dataset
from pipeline.project.digests import flatten
from pipeline.project.errors import UserError
from pipeline.store.reader import LabelStore
from pipeline.teacher_pass.label import load_teacher
from pipeline.views.plan import view_plan
from tests.conftest import ROOT
from tests.teacher_pass.test_fingerprint import restamp

HEADS: dict[str, dict[str, Any]] = {
    "iop": {"objectness": "implicit"},
    "cop": {"objectness": "conditional"},
    "iop only": {"objectness": "implicit", "iou_branch": False},
    "cop only": {"objectness": "conditional", "iou_branch": False},
}


def write_config(folder: Path, **head: Any) -> str:
    """A quarter-width R-18 with another head."""
    base = ROOT / "configs/paa_r18_quarter.py"
    file = folder / "head.py"
    head = {"type": "ObjectnessPAAHead", **head}
    file.write_text(f"_base_ = {str(base)!r}\nmodel = dict(bbox_head={head!r})\n")
    return str(file)


def neighbours(rows: int, columns: int, size: int):
    """Each cell with its neighbours inside the map: (row, column), [(place, row, column)]."""
    for row, column in np.ndindex(rows, columns):
        inside = []
        for place in range(size * size):
            y, x = row + place // size - size // 2, column + place % size - size // 2
            if 0 <= y < rows and 0 <= x < columns:
                inside.append((place, y, x))
        yield (row, column), inside


def probability(scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The formula as it is written."""

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    result = np.empty_like(scores)
    rows, columns = scores.shape[2:]
    for (row, column), inside in neighbours(rows, columns, int(weights.shape[1] ** 0.5)):
        terms = [
            sigmoid(scores[:, :, y, x]) * sigmoid(weights[:, place, row, column])[:, None]
            for place, y, x in inside
        ]
        result[:, :, row, column] = np.mean(terms, 0)
    return result


def log_formula(scores: Tensor, weights: Tensor) -> Tensor:
    """The logit of the formula, by way of the logarithms of all terms of p and of 1 - p."""
    cells = []
    rows, columns = scores.shape[2:]
    for (row, column), inside in neighbours(rows, columns, int(weights.shape[1] ** 0.5)):
        hits, misses = [], []
        for place, y, x in inside:
            score, weight = scores[:, :, y, x], weights[:, place, row, column, None]
            hits.append(logsigmoid(score) + logsigmoid(weight))
            misses += [logsigmoid(-score), logsigmoid(score) + logsigmoid(-weight)]
        cells.append(torch.stack(hits).logsumexp(0) - torch.stack(misses).logsumexp(0))
    return torch.stack(cells, -1).view_as(scores)


def logits(size: int, spread: float, shape: tuple[int, int] = (4, 5)) -> tuple[Tensor, Tensor]:
    """Scores of 3 classes and weights of 3 images in float64; some of them are +-spread."""
    random = np.random.default_rng(size)
    scores, weights = (
        random.uniform(-spread, spread, (3, channels, *shape)) for channels in (3, size * size)
    )
    for image, end in enumerate((-spread, spread)):
        scores[image, 0] = weights[image] = end
    return torch.from_numpy(scores), torch.from_numpy(weights)


@pytest.mark.parametrize("shape", [(4, 5), (1, 1), (1, 6), (2, 1)])
@pytest.mark.parametrize("size", [1, 3])
def test_the_probability_is_that_of_the_formula(size: int, shape: tuple[int, int]) -> None:
    scores, weights = logits(size, 8, shape)
    expected = probability(scores.numpy(), weights.numpy())
    found = weighted_logits(scores, weights)
    np.testing.assert_allclose(found.sigmoid().numpy(), expected, rtol=1e-10)
    assert torch.autograd.gradcheck(
        weighted_logits, (scores.requires_grad_(), weights.requires_grad_())
    )


@pytest.mark.parametrize("size", [1, 3])
def test_far_logits_stay_exact(size: int) -> None:
    scores, weights = logits(size, 50)
    exact = [x.clone().requires_grad_() for x in (scores, weights)]
    expected = log_formula(*exact)
    direction = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).view_as(expected)
    gradients = torch.autograd.grad(expected, exact, direction)
    assert expected.min() < -90
    assert expected.max() > 45
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-5)):
        inputs = [x.to(dtype).requires_grad_() for x in (scores, weights)]
        found = weighted_logits(*inputs)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
        for ours, theirs in zip(
            torch.autograd.grad(found, inputs, direction.to(dtype)), gradients, strict=True
        ):
            torch.testing.assert_close(ours.double(), theirs, rtol=tolerance, atol=tolerance)


def test_any_logit_gives_finite_values_and_gradients() -> None:
    for score in (-1e4, -LIMIT, 0.0, LIMIT, 1e4):
        for weight in (-1e4, 0.0, 1e4):
            inputs = [
                torch.full((1, channels, 3, 3), value, dtype=torch.float16, requires_grad=True)
                for channels, value in ((2, score), (9, weight))
            ]
            found = weighted_logits(*inputs)
            assert found.dtype == torch.float32
            found.sum().backward()
            assert all(x.isfinite().all() for x in (found, *(x.grad for x in inputs)))


@pytest.fixture
def batch(labelled):
    """Four training images as a detector takes them, at their stored size."""
    split = load_split(labelled.paths, "train")
    dataset = view_dataset(split, view_plan(labelled.params.views))
    table = LabelStore(labelled.paths.labels).layout.table
    views = np.flatnonzero(table["bucket"] == 1)[:4]
    return pseudo_collate([dataset[int(view)] for view in views])


@pytest.mark.parametrize("head", HEADS)
def test_a_paa_learns_from_the_usual_start(tmp_path, batch, head: str) -> None:
    torch.manual_seed(0)
    detector = build_detector(load_model_config(write_config(tmp_path, **HEADS[head]), 10)).train()
    detector.init_weights()
    optimizer = torch.optim.AdamW(detector.parameters(), 2e-3)
    ready = detector.data_preprocessor(batch, training=True)
    curve = []
    for step in range(12):
        losses = detector.loss(ready["inputs"], ready["data_samples"])
        if step == 0:
            outputs = detector.bbox_head(detector.extract_feat(ready["inputs"]))
            start = torch.cat(levels_to_images(outputs[0])).sigmoid()
            assert start.mean().item() == pytest.approx(0.01, rel=0.2)
        assert ("loss_iou" in losses) == HEADS[head].get("iou_branch", True)
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
        optimizer.step()
        curve.append(loss.item())
    assert curve[-1] < 0.8 * curve[0], curve


@pytest.mark.parametrize("head", ["cop", "cop only"])
def test_the_score_of_a_detection(tmp_path, batch, head: str) -> None:
    torch.manual_seed(1)
    detector = build_detector(load_model_config(write_config(tmp_path, **HEADS[head]), 10)).eval()
    detector.init_weights()
    torch.nn.init.normal_(detector.bbox_head.atss_cls.bias, -2, 0.5)
    ready = detector.data_preprocessor(batch)
    with torch.no_grad():
        outputs = detector.bbox_head(detector.extract_feat(ready["inputs"]))
        found = detector.predict(ready["inputs"], ready["data_samples"])
    scores, _, iou = (torch.stack(levels_to_images(levels)).sigmoid() for levels in outputs)
    expected = scores if head == "cop only" else (scores * iou).sqrt()
    for image, sample in enumerate(found):
        best = sample.pred_instances.scores.max()
        torch.testing.assert_close(best, expected[image].max())
        distances = (sample.pred_instances.scores[:, None] - expected[image].flatten()).abs()
        assert (distances.amin(1) < 1e-6).all()


@pytest.mark.parametrize(
    ("head", "method"),
    [("iop", "lad"), ("cop", "solad"), ("iop only", "solad"), ("cop only", "lad")],
)
def test_as_teacher_and_as_student(labelled, tmp_path, head: str, method: str) -> None:
    project = labelled.copy(tmp_path)
    config = write_config(tmp_path, **HEADS[head])
    short = project.params.teacher.training.model_dump() | {"epochs": 2}
    project.change(
        views={"scales": [[200, 150]], "flips": ["none"]},
        teacher={"config": config, "training": short},
        students={"student": {"config": config, "method": method}},
        training={"epochs": 1},
    )
    project.make_teacher()
    project.fill_store(replace=True)
    store = LabelStore(project.paths.labels)
    objectness = HEADS[head]["objectness"]
    fields = dict(flatten(store.fingerprint))
    assert fields["teacher.model.bbox_head.objectness"] == objectness
    assert_assignments_are_mmdets(project, store)

    record = project.train("student")
    expected = {"loss_cls", "loss_bbox", "loss_iou"}
    if method == "solad":
        expected |= {"loss_soft_cls", "loss_soft_bbox", "loss_soft_iou"}
    if not HEADS[head].get("iou_branch", True):
        expected -= {"loss_iou", "loss_soft_iou"}
    assert record["curves"].keys() - {"step", "loss"} == expected
    detector, _ = load_model(project.paths.model("student"), "")
    assert type(detector.bbox_head).__name__ == "ObjectnessPAAHead"
    assert detector.bbox_head.objectness == objectness
    assert evaluate("student", project.params.evaluation, project.paths)["AP"] >= 0


def assert_assignments_are_mmdets(project, store: LabelStore) -> None:
    """mmdet's own assignment from the teacher's outputs chooses the same positives."""
    split = load_split(project.paths, "train")
    teacher, model = load_teacher(project.paths, split)
    model.bbox_head.type = ObjectnessLADHead.__name__  # with mmdet's get_label_assignment
    head = build_detector(model).bbox_head
    dataset = view_dataset(split, view_plan(project.params.views))
    positives = 0
    for view in range(0, len(dataset), 4):
        ready = teacher.detector.data_preprocessor(pseudo_collate([dataset[view]]))
        sample = ready["data_samples"][0]
        with torch.no_grad():
            outputs = teacher.head(teacher.detector.extract_feat(ready["inputs"]))
            labels, *_ = head.get_label_assignment(
                *outputs, [sample.gt_instances], [sample.metainfo], [sample.ignored_instances]
            )
        assigned = store.assigned(view)
        expected = (labels < len(split.classes)).numpy()
        # mmdet fits in float32, where a tie of densities can go the other way.
        assert (expected != (assigned >= 0)).sum() <= 1
        positives += expected.sum()
    assert positives > 20


@pytest.mark.parametrize("method", ["soft", "solad"])
def test_iou_predictions_that_the_teacher_lacks_are_not_learnt(
    labelled, tmp_path, method: str
) -> None:
    """Where nothing else teaches the student's IoU branch, it is refused."""
    project = labelled.copy(tmp_path).change(training={"epochs": 1})
    restamp(project.paths.labels, "teacher.model.bbox_head.iou_branch", False)
    soft = {"loss_soft_cls", "loss_soft_bbox"}
    plain = project.params.students["lad"].config
    project.change(students={"student": {"config": plain, "method": method}})
    if method == "soft":
        with pytest.raises(
            UserError,
            match=r"predicts the IoU, of which the teacher's PAAHead says nothing; take the method",
        ):
            project.train("student")
    else:
        own = {"loss_cls", "loss_bbox", "loss_iou"}
        assert project.train("student")["curves"].keys() - {"step", "loss"} == own | soft
    config = write_config(tmp_path, **HEADS["cop only"])
    project.change(students={"student": {"config": config, "method": method}})
    own = {"loss_cls", "loss_bbox"} if method == "solad" else set()
    assert project.train("student")["curves"].keys() - {"step", "loss"} == own | soft


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"objectness": "other"}, "objectness must be one of .*, got 'other'"),
        ({"iou_branch": False}, "a head without IoU branch needs an objectness"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, head: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_detector(load_model_config(write_config(tmp_path, **head), 10))
