"""Soft labels and SoLAD from the store, against a direct float64 computation."""

import json

import numpy as np
import pytest
import torch
from mmdet.models.utils import levels_to_images
from mmengine.dataset import pseudo_collate

from pipeline.data.dataset import load_split
from pipeline.detector.build import build_detector, load_model_config, without_downloads
from pipeline.evaluation.evaluate import evaluate
from pipeline.loading.dataset import view_dataset
from pipeline.project.digests import differences
from pipeline.project.errors import UserError
from pipeline.store.coding import TAIL
from pipeline.store.reader import LabelStore
from pipeline.students.cached import cached_model, student_labels
from pipeline.students.method import method_of
from pipeline.students.settings import Student
from pipeline.teacher_pass.label import load_teacher
from pipeline.views.plan import view_plan


def batch_of(labelled, method: str, views: list[int]):
    """A student with random weights, its batch, and the batch's samples."""
    train = load_split(labelled.paths, "train")
    torch.manual_seed(0)
    student = Student(config=labelled.params.students["lad"].config, method=method)
    store = LabelStore(labelled.paths.labels)
    model = load_model_config(student.config, len(train.classes))
    network = build_detector(cached_model(without_downloads(model), student, store)).train()
    network.init_weights()
    labels = student_labels(student, store)
    dataset = view_dataset(train, view_plan(labelled.params.views), labels)
    ready = network.data_preprocessor(pseudo_collate([dataset[view] for view in views]))
    return network, ready["inputs"], ready["data_samples"], method_of(student).min_iou


def divergence(t: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Bernoulli KL(t || p) x ((t - p)^2 + 1e-6)^(1/4), the formula as it is written."""
    p = 1 / (1 + np.exp(-z))
    with np.errstate(divide="ignore", invalid="ignore"):
        kl = np.where(t > 0, t * np.log(t / p), 0) + np.where(
            t < 1, (1 - t) * np.log((1 - t) / (1 - p)), 0
        )
    return kl * ((t - p) ** 2 + 1e-6) ** 0.25


def giou_loss(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    def area(box):
        return np.prod(np.clip(box[:, 2:] - box[:, :2], 0, None), axis=1)

    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
    shared = area(np.concatenate([low, high], 1))
    union = area(a) + area(b) - shared
    hull = np.concatenate([np.minimum(a[:, :2], b[:, :2]), np.maximum(a[:, 2:], b[:, 2:])], 1)
    return 1 - shared / union + (area(hull) - union) / area(hull)


def reference(labelled, network, features, samples, views, m, class_weight) -> dict[str, float]:
    """The three losses in float64, from each view's own rows of the store."""
    store = LabelStore(labelled.paths.labels)
    head = network.detector.bbox_head
    outputs = head(features)
    scores, deltas, iou = (torch.stack(levels_to_images(levels)) for levels in outputs)
    anchors, valid = head.get_anchors(
        [level.shape[-2:] for level in features], [s.metainfo for s in samples], device="cpu"
    )
    total = cls = box = centre = 0.0
    for image, view in enumerate(views):
        soft = store.soft(view)
        inside = torch.cat(valid[image]).bool().numpy()
        prior = torch.cat(anchors[image])[inside].double()
        t = probabilities(store, view)
        z = scores[image].detach().double().numpy()[inside]
        cls += divergence(t.double().numpy(), z).sum()
        max_iou = soft.max_iou / 255
        kept = max_iou > m
        weight = max_iou[kept]
        total += weight.sum()
        own = iou[image, :, 0].detach().double().numpy()[inside][kept]
        centre += divergence(soft.quality[kept] / 255, own).sum()
        middle = ((prior[:, :2] + prior[:, 2:]) / 2).numpy()[kept]
        stride = ((prior[:, 2] - prior[:, 0]) / 8).numpy()[kept, None]
        sides = 2 * np.sinh(soft.distances[kept] / 127 * np.arcsinh(64)) * stride
        teacher = np.concatenate([middle - sides[:, :2], middle + sides[:, 2:]], 1)
        student = head.bbox_coder.decode(
            prior[kept].float(), deltas[image].detach()[inside][kept]
        ).double().numpy()  # fmt: skip
        box += (giou_loss(student, teacher) * weight).sum()
    return {
        "loss_soft_cls": class_weight * cls / total,
        "loss_soft_iou": 10 * centre / total,
        "loss_soft_bbox": 1.3 * box / total,
    }


def probabilities(store: LabelStore, view: int) -> torch.Tensor:
    """The stored class probabilities of a view, (P, C)."""
    soft = store.soft(view)
    parts = (torch.from_numpy(p.copy()) for p in (soft.codes, soft.tail_mean, soft.tail_scale))
    return store.coding.decode(*parts)


@pytest.mark.parametrize("mixed", [False, True], ids=["one size", "mixed sizes"])
@pytest.mark.parametrize(("method", "class_weight"), [("soft", 10.0), ("solad", 2.0)])
def test_losses_equal_the_formula(labelled, method: str, class_weight: float, mixed: bool) -> None:
    table = LabelStore(labelled.paths.labels).layout.table
    if mixed:
        views = [int(np.flatnonzero(table["bucket"] == bucket)[3]) for bucket in range(4)]
        views += np.flatnonzero(table["image_id"] == 5)[:1].tolist()  # without objects
    else:
        views = np.flatnonzero(table["bucket"] == 1)[:4].tolist()
    network, inputs, samples, m = batch_of(labelled, method, views)
    losses = network.loss(inputs, samples)
    features = network.detector.extract_feat(inputs)
    expected = reference(labelled, network, features, samples, views, m, class_weight)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=2e-5), name
    lad = {"loss_cls", "loss_bbox", "loss_iou"}
    assert losses.keys() - expected.keys() == (lad if method == "solad" else set())
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


def test_stored_scores_are_the_teachers_within_the_coding(labelled) -> None:
    store = LabelStore(labelled.paths.labels)
    teacher, _ = load_teacher(labelled.paths, load_split(labelled.paths, "train"))
    views = np.flatnonzero(store.layout.table["bucket"] == 1)[:8].tolist()
    _, inputs, _, _ = batch_of(labelled, "soft", views)
    live = torch.stack(levels_to_images(list(teacher.forward(inputs)[0]))).sigmoid()
    for place, view in enumerate(views):
        decoded = probabilities(store, view)
        above = live[place] >= store.coding.cut + 1e-5
        assert ((decoded - live[place]).abs()[above] <= store.coding.max_error() + 1e-5).all()
        below = torch.from_numpy(store.soft(view).codes.copy()).mT == TAIL
        sums = (decoded * below).sum(0), (live[place] * below).sum(0)
        assert torch.allclose(*sums, rtol=2e-3)


@pytest.mark.parametrize("method", ["soft", "solad"])
def test_a_student_trains_and_is_an_ordinary_paa(labelled, tmp_path, method: str) -> None:
    project = labelled.copy(tmp_path)
    config = project.params.students["lad"].config
    project.change(students={method: {"config": config, "method": method}})
    record = project.train(method)
    assert record["curves"]["loss"][-1] < record["curves"]["loss"][0]
    evaluate(method, project.params.evaluation, project.paths)
    assert json.loads(project.paths.metrics(method).read_text())["AP"] >= 0


def test_a_lower_overlap_than_the_stores_is_refused(labelled) -> None:
    student = Student(config="x", method="soft", min_iou=0.05)
    store = LabelStore(labelled.paths.labels)
    with pytest.raises(UserError, match=r"expected >= 0.1, got 0.05; .*labels.min_iou"):
        student_labels(student, store)


def test_a_store_without_soft_scores_is_refused(labelled, tmp_path) -> None:
    project = labelled.copy(tmp_path).change(labels={"soft": False})
    project.fill_store(replace=True)
    store = LabelStore(project.paths.labels)
    with pytest.raises(UserError, match=r"has none; set labels.soft: true"):
        student_labels(Student(config="x", method="solad"), store)
    with pytest.raises(UserError, match="holds no soft scores"):
        store.soft(0)


def test_another_threshold_of_soft_labels_starts_anew(labelled, tmp_path, monkeypatch) -> None:
    """A half-finished training does not go on with another threshold."""
    records = []

    def begin(run):
        records.append(run.decides_result(1))
        raise KeyError

    monkeypatch.setattr("pipeline.students.train.train", begin)
    project = labelled.copy(tmp_path)
    student = {"config": project.params.students["lad"].config, "method": "soft"}
    for min_iou in (0.1, 0.5):
        project.change(students={"it": student | {"min_iou": min_iou}})
        with pytest.raises(KeyError):
            project.train("it")
    first, second = (json.loads(json.dumps(one, default=str)) for one in records)
    (line,) = differences(second, first)
    assert line.endswith("expected 0.5, found 0.1")
