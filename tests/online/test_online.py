"""The batched PAA rule in the training step, against mmdet's own, object by object."""

import shutil

import numpy as np
import pytest
import torch
from mmdet.models.dense_heads import LADHead, PAAHead
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData

from pipeline.assignment.paa import Candidates
from pipeline.data.dataset import load_split
from pipeline.detector.build import build_detector, load_model_config, without_downloads
from pipeline.detector.model_folder import load_model
from pipeline.heads.batch_grid import BatchGrid
from pipeline.heads.batched_paa import assign_by_costs, batch_candidates
from pipeline.heads.paa_costs import HeadOutputs, LabelAssignment, candidate_costs
from pipeline.heads.registry import family_of, family_of_model
from pipeline.loading.dataset import view_dataset
from pipeline.online.settings import OnlineStudent
from pipeline.online.train import online_model
from pipeline.project.digests import differences
from pipeline.project.errors import UserError
from pipeline.store.coding import (
    decode_distances,
    decode_fraction,
    encode_distances,
    encode_fraction,
)
from pipeline.store.reader import LabelStore
from pipeline.students.cached import cached_model, student_labels
from pipeline.students.settings import Student
from pipeline.students.taught import detector_state
from pipeline.teacher_pass.teacher import SoftPredictions
from pipeline.views.plan import view_plan
from tests.conftest import ROOT

CONFIG = ROOT / "configs/paa_r18_quarter.py"
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


@MODELS.register_module()
class DoublePAAHead(PAAHead):
    """Likewise."""

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


def grid_of(head: LADHead, samples: list[DetDataSample]) -> BatchGrid:
    return BatchGrid.of(family_of(head).grid, samples, torch.device("cpu"))


def ours(head: LADHead, samples: list[DetDataSample], outputs) -> LabelAssignment:
    grid = grid_of(head, samples)
    candidates = batch_candidates(samples, grid)
    costs = candidate_costs(head, HeadOutputs(*outputs), candidates)
    return assign_by_costs(head.num_classes, costs, candidates, grid).labels


def assert_same_assignment(found: LabelAssignment, expected: tuple) -> None:
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


def candidates_of(samples: list[DetDataSample]) -> Candidates:
    return batch_candidates(samples, grid_of(lad_head(), samples))


def test_an_object_with_one_candidate_learns_nothing_as_in_mmdet() -> None:
    """A view of one cell a level, and an object that the smallest prior overlaps most, barely."""
    sizes = [(8, 8), (192, 256)]
    samples, outputs = random_batch(0, sizes, [0, 3])
    samples[0] = sample_of(sizes[0], sizes[1], [[0, 0, 4, 4]])
    candidates = candidates_of(samples)
    assert (candidates.image == 0).sum() == 1
    found = ours(lad_head(), samples, outputs)
    assert_same_assignment(found, mmdets(lad_head("DoubleLADHead"), samples, outputs))
    assert (found[0].view(2, -1) < CLASSES).any(1).tolist() == [False, True]


def test_crowds_change_nothing_as_in_mmdet() -> None:
    samples, outputs = random_batch(1, MIXED[:2], [3, 2])
    without, _ = random_batch(1, MIXED[:2], [3, 2])
    for sample in without:
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4))
    found = ours(lad_head(), samples, outputs)
    assert torch.equal(found[0], ours(lad_head(), without, outputs)[0])
    assert_same_assignment(found, mmdets(lad_head("DoubleLADHead"), samples, outputs))


def test_priors_outside_a_views_own_grid_are_no_candidates() -> None:
    """An object at the edge of its view: the nearest priors beyond belong to the padding."""
    size, batch = (96, 128), (192, 256)
    sample = sample_of(size, batch, [[100, 70, 128, 96]])
    _, outputs = random_batch(2, [batch], [0])
    found = candidates_of([sample])
    free = candidates_of([sample_of(batch, batch, [[100, 70, 128, 96]])])
    centres = (found.anchors[:, :2] + found.anchors[:, 2:]) / 2
    assert (centres < torch.tensor([128, 96])).all()
    assert len(found.prior) < len(free.prior)
    assert_same_assignment(
        ours(lad_head(), [sample], outputs), mmdets(lad_head("DoubleLADHead"), [sample], outputs)
    )


def test_costs_that_are_nan_stop_neither_the_step_nor_the_other_images() -> None:
    samples, outputs = random_batch(3, MIXED, [4] * 5)
    expected = ours(lad_head(), samples, outputs)
    for level in outputs[1]:
        level[2] = float("nan")
    labels, *_, count = ours(lad_head(), samples, outputs)
    same = (labels == expected[0]).view(5, -1).all(1)
    assert same.tolist() == [True, True, False, True, True]
    assert count > 0
    with pytest.raises(ValueError, match="NaN"):
        mmdets(lad_head(), samples, outputs)


# Training steps -------------------------------------------------------------------------------


def network(config, state=None):
    """What is trained, with mmdet's names of weights in `state`."""
    torch.manual_seed(0)
    taught = "detector" in config
    detector = build_detector(config if taught else without_downloads(config))
    detector.init_weights()
    if state:
        (detector.detector if taught else detector).load_state_dict(state)
    detector.train()
    return detector


def paa_of(labelled, batched: bool = True):
    """The config of a student that learns by its own rule."""
    return own(load_model_config(labelled.params.students["lad"].config, CLASSES), batched)


def own(model, batched: bool = True):
    """The config of the same network, with the rule for whole batches."""
    return family_of_model(model, "").own(model) if batched else model


def online_of(labelled, **settings: str):
    """The config of a student whose teacher makes its labels in each step."""
    config = labelled.params.students["lad"].config
    model = load_model_config(config, CLASSES)
    return online_model(model, OnlineStudent(config=config, **settings), labelled.paths.teacher)


def real_batch(labelled, images: tuple[int, ...]):
    """Views of images of all sizes; image 4 has a crowd, image 5 no objects."""
    train = load_split(labelled.paths, "train")
    dataset = view_dataset(train, view_plan(labelled.params.views))
    items = [dataset[4 * (image - 1) + image % 4] for image in images]
    preprocessor = build_detector(paa_of(labelled)).data_preprocessor
    return preprocessor(pseudo_collate(items))


def step(detector, batch) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    detector.zero_grad()
    losses = detector.loss(batch["inputs"], batch["data_samples"])
    assert losses.pop("fallbacks", 0) == 0
    sum(losses.values()).backward()
    gradients = {
        name.removeprefix("detector."): p.grad.clone()
        for name, p in detector.named_parameters()
        if p.grad is not None
    }
    return {name: value.item() for name, value in losses.items()}, gradients


def assert_same_step(found: tuple[dict, dict], expected: tuple[dict, dict]) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        error = (found[1][name] - gradient).norm() / gradient.norm().clamp(min=1e-12)
        assert error < 1e-5, name


BATCHES = [
    pytest.param((1, 2, 3, 4, 5, 6, 8), id="mixed sizes, crowds, no objects"),
    pytest.param((5, 5), id="no objects at all"),
]


@pytest.mark.parametrize("images", BATCHES)
def test_batched_paa_learns_as_mmdets_paa(labelled, images: tuple[int, ...]) -> None:
    batch = real_batch(labelled, images)
    double = paa_of(labelled, batched=False)
    assert (double.type, double.bbox_head.type) == ("PAA", "PAAHead")
    double.bbox_head.type = "DoublePAAHead"
    theirs = network(double)
    teacher_weights, _ = load_model(labelled.paths.teacher, "")
    theirs.load_state_dict(teacher_weights.state_dict())
    batched = network(paa_of(labelled), theirs.state_dict())
    assert_same_step(step(batched, batch), step(theirs, batch))


@pytest.mark.parametrize("images", BATCHES)
def test_online_lad_learns_as_mmdets_lad(labelled, images: tuple[int, ...]) -> None:
    batch = real_batch(labelled, images)
    double = online_of(labelled, method="lad", assigner="mmdet")
    assert (double.type, double.teacher_bbox_head.type) == ("LAD", "ObjectnessLADHead")
    double.teacher_bbox_head.type = "DoubleLADHead"
    theirs = network(double)
    batched = network(online_of(labelled, method="lad"), theirs.state_dict())
    found = step(batched, batch)
    assert_same_step(found, step(theirs, batch))
    assert bool(found[0]["loss_bbox"]) == (images != (5, 5))


@pytest.mark.parametrize("settings", ["lad", "soft", "solad"])
def test_the_teacher_is_no_part_of_the_student(labelled, settings: str) -> None:
    plain = network(paa_of(labelled))
    online = network(online_of(labelled, method=settings))
    state, teacher = detector_state(online.state_dict()), online.teacher.detector
    assert state.keys() == plain.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())
    assert len(list(online.parameters())) == len(list(plain.parameters()))
    assert not any(module.training for module in teacher.modules())
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    optimizer = torch.optim.SGD(online.parameters(), lr=0.1)
    losses, _ = step(online, real_batch(labelled, (1, 2, 3, 4)))
    optimizer.step()
    assert all(value > 0 for value in losses.values())
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("method", ["soft", "solad"])
def test_online_soft_labels_are_the_cached_ones_but_for_the_coding(
    labelled, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """With views of one size, the teacher sees online what it saw in the teacher pass."""
    store = LabelStore(labelled.paths.labels)

    def coded(predicted: SoftPredictions) -> SoftPredictions:
        return SoftPredictions(
            probabilities=store.coding.decode(*store.coding.encode(predicted.probabilities)),
            max_iou=decode_fraction(encode_fraction(predicted.max_iou)),
            kept=predicted.kept,
            distances=decode_distances(encode_distances(predicted.distances)),
            quality=decode_fraction(encode_fraction(predicted.quality)),
        )

    table = store.layout.table
    views = np.flatnonzero((table["bucket"] == 1) & (table["image_id"] != 5))[:6].tolist()
    student = Student(config=labelled.params.students["lad"].config, method=method)
    model = load_model_config(student.config, CLASSES)
    cached = network(cached_model(model, student, store))
    labels = student_labels(student, store)
    train = load_split(labelled.paths, "train")
    dataset = view_dataset(train, view_plan(labelled.params.views), labels)
    batch = cached.data_preprocessor(pseudo_collate([dataset[view] for view in views]))
    online = network(online_of(labelled, method=method), cached.detector.state_dict())
    predict_soft = online.teacher.predict_soft
    monkeypatch.setattr(online.teacher, "predict_soft", lambda *args: coded(predict_soft(*args)))
    expected, gradients = step(cached, batch)
    found, online_gradients = step(online, batch)
    assert found == pytest.approx(expected, rel=1e-4)
    ours, theirs = (
        torch.cat([each[name].flatten() for name in gradients])
        for each in (online_gradients, gradients)
    )
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()


@pytest.mark.parametrize(
    ("section", "method", "settings"),
    [
        ("online", "lad", {}),
        ("online", "lad", {"assigner": "mmdet"}),
        ("online", "solad", {}),
        ("students", "own", {}),
        ("students", "own", {"assigner": "mmdet"}),
    ],
)
def test_training_without_a_store(
    labelled, tmp_path, section: str, method: str, settings: dict
) -> None:
    project = labelled.copy(tmp_path)
    shutil.rmtree(project.paths.labels)
    config = project.params.students["lad"].config
    it = {"config": config, "method": method} | settings
    project.change(**{section: {"it": it}}, training={"epochs": 1})
    record = project.train("it")
    assert record["labels"] == ("own" if method == "own" else "online")
    assert record["fallbacks"] == 0
    assert record["assigner"] == settings.get("assigner", "batched")
    detector, model = load_model(project.paths.model("it"), "")
    assert model.type == type(detector).__name__ == "PAA"
    assert record["parameters"] == sum(p.numel() for p in detector.parameters())


def test_a_teacher_with_weights_that_are_nan_is_refused(labelled, tmp_path) -> None:
    project = labelled.copy(tmp_path)
    file = project.paths.teacher / "weights.pth"
    content = torch.load(file)
    content["state_dict"]["bbox_head.atss_reg.bias"][:] = float("nan")
    torch.save(content, file)
    config = project.params.students["lad"].config
    project.change(online={"it": {"config": config, "method": "lad"}}, training={"epochs": 1})
    with pytest.raises(UserError, match=r"weights.pth are not finite in 1 of .*atss_reg\.bias"):
        project.train("it")


def test_another_teacher_starts_anew(labelled, tmp_path, monkeypatch) -> None:
    records = []

    def begin(run):
        records.append(run.decides_result(1))
        raise KeyError

    monkeypatch.setattr("pipeline.students.train.train", begin)
    project = labelled.copy(tmp_path)
    config = project.params.students["lad"].config
    project.change(online={"it": {"config": config, "method": "lad"}})
    for _ in range(2):
        with pytest.raises(KeyError):
            project.train("it")
        file = project.paths.teacher / "weights.pth"
        content = torch.load(file)
        content["state_dict"]["bbox_head.atss_cls.bias"] += 1
        torch.save(content, file)
    (line,) = differences(records[1], records[0])
    assert line.startswith("inputs: expected ")


REFUSED = [
    pytest.param(
        "anchor_generator=dict(strides=[4, 8, 16, 32, 64])",
        "bbox_head",
        r"student it can't learn of this teacher: .*\[4, 8, 16, 32, 64\].*\[8, 16, 32, 64, 128\]",
        id="priors",
    ),
    pytest.param("mean=[1, 2, 3]", "data_preprocessor", "data_preprocessor.*123.675", id="inputs"),
]


@pytest.mark.parametrize(("text", "part", "message"), REFUSED)
def test_a_teacher_of_other_inputs_is_refused(
    labelled, tmp_path, text: str, part: str, message: str
) -> None:
    project = labelled.copy(tmp_path)
    base = project.params.students["lad"].config
    config = tmp_path / "other.py"
    config.write_text(f"_base_ = {base!r}\nmodel = dict({part}=dict({text}))\n")
    project.change(online={"it": {"config": str(config), "method": "lad"}})
    with pytest.raises(UserError, match=message):
        project.train("it")


@pytest.mark.parametrize("change", [{"assigner": {"pos_iou_thr": 0.2}}, {"allowed_border": 0}])
def test_another_rule_is_refused(change: dict) -> None:
    model = own(load_model_config(CONFIG, CLASSES))
    model.train_cfg.update(change)
    with pytest.raises(UserError, match="the network's config must assign as PAA does"):
        build_detector(model)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (OnlineStudent, {"method": "own"}, "learns from a teacher, and own from none"),
        (Student, {"method": "lad", "assigner": "mmdet"}, "assigner: mmdet is for the method own"),
        (OnlineStudent, {"method": "solad", "assigner": "mmdet"}, "assigner: mmdet is for"),
        (OnlineStudent, {"method": "soft", "assigner": "mmdet"}, "assigner: mmdet is for"),
        (OnlineStudent, {"method": "lad", "assignment": "own"}, "assignment is for the method"),
        (Student, {"method": "solad", "assignment": "own"}, "assignment is for the method"),
    ],
)
def test_settings_without_effect_are_refused(
    kind: type[Student], settings: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kind(config="x", **settings)
