"""Co-learning: whose assignment the networks share, and the training of both."""

import copy
import json
import re
import shutil
import sys
from typing import Any

import pytest
import torch
from mmdet.models.dense_heads import LADHead, PAAHead
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.hooks import Hook

import stages.cli
from pipeline.colearning.network import CoLAD
from pipeline.data.dataset import load_split
from pipeline.detector.build import build_detector
from pipeline.detector.checkpoint import read_weights
from pipeline.detector.model_folder import load_model
from pipeline.heads.paa_costs import HeadOutputs
from pipeline.loading.dataset import view_dataset
from pipeline.project.errors import UserError
from pipeline.teacher_pass.teacher import Teacher
from pipeline.views.plan import view_plan
from tests.conftest import ROOT, with_hook

CRITERIA = ["std_mean", "fisher"]


@MODELS.register_module()
class RecordingPAAHead(PAAHead):
    """mmdet's head, which keeps the labels that it assigns.

    scikit-learn gets costs in float64: in float32 its rounding makes ties between thresholds.
    """

    def paa_reassign(self, pos_losses: torch.Tensor, *args: Any) -> tuple:
        result = super().paa_reassign(pos_losses.double(), *args)
        self.assigned.append(result[0])
        return result


@MODELS.register_module()
class Float64LADHead(LADHead):
    """mmdet's head, which hands its costs to scikit-learn in float64."""

    def paa_reassign(self, pos_losses: torch.Tensor, *args: Any) -> tuple:
        return super().paa_reassign(pos_losses.double(), *args)


MIXED = [0, 5, 10, 15, 16, 21, 30, 39]
"""Views of several sizes, with crowds and an image without objects (4 views an image)."""


def network(labelled, head: str = "ObjectnessLADHead") -> ConfigDict:
    """The config of the teacher's network with another head."""
    _, model = load_model(labelled.paths.teacher, "")
    model = copy.deepcopy(model)
    model.bbox_head.type = head
    return model


def colad(first: ConfigDict, second: ConfigDict, **settings: Any) -> CoLAD:
    given = {"criterion": "std_mean", "per_level": True} | settings
    return CoLAD(["one", "two"], [first, second], **given).train()


def trained(labelled, detector: torch.nn.Module) -> torch.nn.Module:
    """The detector with the weights of the teacher."""
    detector.load_state_dict(read_weights(labelled.paths.teacher / "weights.pth"))
    return detector


def batch_of(labelled, views: list[int], detector: CoLAD) -> tuple[torch.Tensor, list]:
    dataset = view_dataset(load_split(labelled.paths, "train"), view_plan(labelled.params.views))
    batch = detector.data_preprocessor(pseudo_collate([dataset[view] for view in views]))
    return batch["inputs"], batch["data_samples"]


def outputs_of(both: CoLAD, inputs: torch.Tensor) -> list[HeadOutputs]:
    return [HeadOutputs(*one.bbox_head(one.extract_feat(inputs))) for one in both.networks]


@pytest.mark.parametrize("per_level", [True, False], ids=["per level", "per object"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_identical_networks_assign_as_plain_paa(labelled, criterion: str, per_level: bool) -> None:
    model = network(labelled)
    both = colad(model, model, criterion=criterion, per_level=per_level)
    for one in both.networks:
        trained(labelled, one)
    inputs, samples = batch_of(labelled, MIXED, both)
    assert len({sample.metainfo["pad_shape"] for sample in samples}) >= 3
    assert any(len(sample.ignored_instances) for sample in samples)
    assert any(not len(sample.gt_instances) for sample in samples)

    plain = trained(labelled, build_detector(network(labelled, "RecordingPAAHead"))).train()
    plain.bbox_head.assigned = []
    features = both.networks[0].extract_feat(inputs)
    expected = plain.bbox_head.loss(features, samples)

    outputs = [HeadOutputs(*one.bbox_head(features)) for one in both.networks]
    shared = both.assign(outputs, samples)
    labels = torch.cat(plain.bbox_head.assigned)
    assert (labels < 10).sum() > 50
    assert torch.equal(shared.labels.labels, labels)
    assert shared.taught.tolist() == [1, 0]
    found = both.loss(inputs, samples)
    for name in ("one", "two"):  # PAA weighs its box loss by IoU; LAD does not
        for loss in ("loss_cls", "loss_iou"):
            torch.testing.assert_close(found[f"{name}.{loss}"], expected[loss])


@pytest.mark.parametrize("teacher", [0, 1])
@pytest.mark.parametrize("per_level", [True, False], ids=["per level", "per object"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_network_that_is_always_picked_teaches_as_in_lad(
    labelled, criterion: str, per_level: bool, teacher: int
) -> None:
    # The other says the same of every prior, and its costs count neither boxes nor differences
    # between classes: they have no spread, and are higher.
    student = network(labelled)
    student.bbox_head.loss_bbox.loss_weight = 0.0
    student.bbox_head.loss_cls.loss_weight = 100.0
    models = [student, student]
    models[teacher] = network(labelled)
    both = colad(*models, criterion=criterion, per_level=per_level)
    for one in both.networks:
        trained(labelled, one)
    for parameter in both.networks[1 - teacher].bbox_head.parameters():
        torch.nn.init.zeros_(parameter)
    inputs, samples = batch_of(labelled, MIXED, both)
    outputs = outputs_of(both, inputs)
    shared = both.assign(outputs, samples)
    assert shared.taught.tolist() == [1 - teacher, teacher]

    online = build_detector(network(labelled, "Float64LADHead")).bbox_head
    objects, crowds, metas = unpack_gt_instances(samples)
    expected = online.get_label_assignment(*outputs[teacher], objects, metas, crowds)
    positives, count = expected[4], expected[6]
    assert count > 50
    assert shared.labels.num_pos == count
    for part in (0, 1, 4, 5):  # labels, label weights, positives, their anchors
        assert torch.equal(shared.labels[part], expected[part])
    assert torch.equal(shared.labels.bboxes_target[positives], expected[2][positives])


def positives_by_object(assignment: tuple) -> dict[tuple, set[int]]:
    """The places of an object's positives in the batch, by its box and class."""
    found: dict[tuple, set[int]] = {}
    for place in assignment[4].tolist():
        key = (*assignment[2][place].tolist(), assignment[0][place].item())
        found.setdefault(key, set()).add(place)
    return found


def disagreeing(labelled, **settings: Any) -> CoLAD:
    """Two networks of which neither always teaches."""
    both = colad(network(labelled), network(labelled), **settings)
    torch.manual_seed(0)
    for one in both.networks:
        trained(labelled, one)
        for parameter in one.bbox_head.parameters():
            parameter.data += 0.2 * parameter.data.abs().mean() * torch.randn_like(parameter)
    return both


@pytest.mark.parametrize("criterion", CRITERIA)
def test_each_object_has_the_positives_of_its_teacher(labelled, criterion: str) -> None:
    both = disagreeing(labelled, criterion=criterion, per_level=False)
    inputs, samples = batch_of(labelled, MIXED, both)
    outputs = outputs_of(both, inputs)
    shared = both.assign(outputs, samples)
    assert 0.05 < shared.taught[0] < 0.95
    objects, crowds, metas = unpack_gt_instances(samples)
    online = build_detector(network(labelled, "Float64LADHead")).bbox_head
    first, second = (
        positives_by_object(online.get_label_assignment(*output, objects, metas, crowds))
        for output in outputs
    )
    ours = positives_by_object(shared.labels)
    of_first = of_second = 0
    for key in ours | first | second:
        mine, one, two = (each.get(key, set()) for each in (ours, first, second))
        assert mine in (one, two)
        of_first += mine == one != two
        of_second += mine == two != one
    assert of_first
    assert of_second


@pytest.mark.parametrize("criterion", CRITERIA)
def test_both_networks_learn_and_say_who_taught(labelled, criterion: str) -> None:
    both = disagreeing(labelled, criterion=criterion)
    inputs, samples = batch_of(labelled, MIXED, both)
    found = both.loss(inputs, samples)
    assert found["taught_by_one"] + found["taught_by_two"] == 1
    assert 0.05 < found["taught_by_one"] < 0.95
    losses = {name: value for name, value in found.items() if "loss" in name}
    assert len(losses) == 6
    sum(losses.values()).backward()
    for one in both.networks:
        assert one.bbox_head.atss_cls.weight.grad.norm() > 0
        assert one.bbox_head.atss_reg.weight.grad.norm() > 0


def one_object(sample: Any, box: list[float]) -> None:
    sample.gt_instances = sample.gt_instances[:1]
    sample.gt_instances.bboxes = torch.tensor([box])


@pytest.mark.parametrize(
    "box",
    [
        None,
        pytest.param([8.0, 8.0, 9.0, 9.0], id="one candidate"),
        pytest.param([100.0, 100.0, 100.0, 100.0], id="no area"),
        pytest.param([9000.0, 9000.0, 9001.0, 9001.0], id="outside of all priors"),
    ],
)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_batches_with_few_candidates_train(labelled, criterion: str, box: Any) -> None:
    both = colad(network(labelled), network(labelled), criterion=criterion)
    both.init_weights()
    if box is None:
        inputs, samples = batch_of(labelled, [16, 17, 18], both)
        assert not any(len(sample.gt_instances) for sample in samples)
    else:
        inputs, samples = batch_of(labelled, MIXED[:2], both)
        for sample in samples:
            one_object(sample, box)
    found = both.loss(inputs, samples)
    loss, logged = both.parse_losses(found)
    loss.backward()
    assert loss > 0
    assert all(value.isfinite() for value in logged.values())
    for parameter in both.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


def test_costs_that_are_not_finite_do_not_stop_a_step(labelled) -> None:
    both = colad(network(labelled), network(labelled), per_level=False)
    both.init_weights()
    torch.nn.init.constant_(both.networks[0].bbox_head.atss_cls.bias, float("nan"))
    inputs, samples = batch_of(labelled, MIXED, both)
    outputs = outputs_of(both, inputs)
    shared = both.assign(outputs, samples)
    assert shared.taught.tolist() == [0, 1]
    assert shared.labels.num_pos > 0


PAIR = {
    "networks": [
        {"name": "half", "config": str(ROOT / "configs/paa_r18_third.py")},
        {"name": "quarter", "config": str(ROOT / "configs/paa_r18_quarter.py")},
    ]
}


@pytest.fixture
def project(labelled, tmp_path):
    return labelled.copy(tmp_path).change(colearn={"pair": PAIR})


def changed(project, network: int = 0, **changes: Any) -> None:
    """The project with other settings of a network of its pair."""
    networks = [dict(one) for one in PAIR["networks"]]
    networks[network] |= changes
    project.change(colearn={"pair": PAIR | {"networks": networks}})


def weights(project, name: str) -> dict[str, torch.Tensor]:
    return read_weights(project.paths.model(name) / "weights.pth")


def lad(project, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.chdir(project.folder)
    monkeypatch.setattr(sys, "argv", ["lad", *arguments])
    stages.cli.main()


def test_both_networks_are_ordinary_models(
    project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit, match="0"):
        lad(project, monkeypatch, "colearn", "pair")
    assert not project.paths.run("colearn.pair").exists()
    assert "wrote out/students/pair.quarter" in capsys.readouterr().out
    for name, parameters in (("pair.half", 1_900_000), ("pair.quarter", 800_000)):
        detector, model = load_model(project.paths.model(name), "")
        assert type(detector).__name__ == model.type == "PAA"
        assert type(detector.bbox_head) is PAAHead
        Teacher(detector)  # it may teach others
        record = json.loads((project.paths.model(name) / "training.json").read_text())
        assert record["name"] == name
        assert record["method"] == "colearn"
        assert record["parameters"] == pytest.approx(parameters, rel=0.05)
        curves = record["curves"]
        assert record["steps"] == 6 == len(curves["taught"])
        assert {"step", "loss", "taught", "loss_cls", "loss_bbox", "loss_iou"} == set(curves)
        parts = [curves[key][0] for key in ("loss_cls", "loss_bbox", "loss_iou")]
        assert curves["loss"][0] == pytest.approx(sum(parts), abs=1e-4)
    with pytest.raises(SystemExit, match="0"):
        lad(project, monkeypatch, "evaluate", "pair.half")
    assert 0 <= json.loads(project.paths.metrics("pair.half").read_text())["AP"] <= 1


def test_a_network_gives_the_outputs_that_it_gave_in_training(
    project, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {}

    class KeepModel(Hook):
        def after_train(self, runner) -> None:
            kept["model"] = runner.model

    with_hook(monkeypatch, KeepModel)
    project.change(training={"epochs": 1}).train("pair")
    both = kept["model"].eval().to(memory_format=torch.contiguous_format)
    inputs, samples = batch_of(project, MIXED, both)
    for name, one in zip(("pair.half", "pair.quarter"), both.networks, strict=True):
        saved, _ = load_model(project.paths.model(name), "")
        with torch.no_grad():
            found = saved(inputs, samples, mode="tensor")
            expected = one(inputs, samples, mode="tensor")
        for ours, theirs in zip(found, expected, strict=True):
            assert all(torch.equal(*levels) for levels in zip(ours, theirs, strict=True))


def test_an_interrupted_training_continues_to_the_same_weights(
    project, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(project, 0, config=PAIR["networks"][1]["config"])
    project.train("pair")
    names = ("pair.half", "pair.quarter")
    uninterrupted = {name: weights(project, name) for name in names}
    record = json.loads((project.paths.model("pair.half") / "training.json").read_text())

    class InterruptPair(Hook):
        def after_train_iter(self, runner, *_, **__) -> None:
            if runner.iter == 4:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        with_hook(patch, InterruptPair)
        with pytest.raises(KeyboardInterrupt):
            project.train("pair")
    project.train("pair")
    for name, expected in uninterrupted.items():
        found = weights(project, name)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)
    again = json.loads((project.paths.model("pair.half") / "training.json").read_text())
    assert again["curves"] == record["curves"]


@pytest.mark.parametrize("as_folder", [True, False], ids=["model folder", "weights file"])
def test_a_network_starts_from_a_checkpoint(project, as_folder: bool) -> None:
    start = project.paths.teacher if as_folder else project.paths.teacher / "weights.pth"
    changed(project, 1, checkpoint=str(start))
    project.change(training={"epochs": 1, "lr": 1e-9, "weight_decay": 0.0})
    project.train("pair")
    given, found = weights(project, "../teacher"), weights(project, "pair.quarter")
    for key in given:
        if key.endswith(("weight", "bias")):
            torch.testing.assert_close(found[key], given[key], rtol=0, atol=1e-6)


def test_a_checkpoint_of_another_network_is_refused(project) -> None:
    changed(project, 0, checkpoint=str(project.paths.teacher))
    with pytest.raises(UserError, match="do not fit the model"):
        project.train("pair")
    changed(project, 0, checkpoint="gone.pth")
    with pytest.raises(UserError, match=r"gone\.pth does not exist"):
        project.train("pair")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            "bbox_head=dict(anchor_generator=dict(octave_base_scale=4))",
            r"the same priors, but half has .*\(-2.0, -2.0, 2.0, .* and quarter has .*\(-4.0, -4.0",
            id="priors",
        ),
        pytest.param(
            "data_preprocessor=dict(mean=[0.0, 0.0, 0.0])",
            r"the same data_preprocessor, but half has .*\[0.0, 0.0, 0.0\].* and quarter has",
            id="mean",
        ),
        pytest.param(
            "data_preprocessor=dict(pad_size_divisor=64)", "the same data_pre", id="padding"
        ),
        pytest.param("bbox_head=dict(topk=5)", "half's config must assign as PAA", id="rule"),
    ],
)
def test_networks_that_do_not_fit_are_refused(project, tmp_path, change: str, message: str) -> None:
    config = tmp_path / "other.py"
    config.write_text(f"_base_ = {PAIR['networks'][0]['config']!r}\nmodel = dict({change})\n")
    changed(project, config=str(config))
    with pytest.raises(UserError, match=message):
        project.train("pair")


def test_networks_of_another_family_are_refused(project) -> None:
    changed(project, config=str(ROOT / "configs/gfl_r18_quarter.py"))
    with pytest.raises(UserError, match="picks teachers by PAA's costs, and GFLHead has none"):
        project.train("pair")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"networks": PAIR["networks"][:1]}, "colearn.pair.networks"),
        ({"networks": PAIR["networks"][:1] * 2}, "must have different names"),
        ({"networks": PAIR["networks"] * 2}, "colearn.pair.networks: .* at most 2"),
        (PAIR | {"criterion": "fischer"}, "colearn.pair.criterion: .*'std_mean' or 'fisher'"),
        (PAIR | {"per": "image"}, "colearn.pair.per: .*'level' or 'object'"),
        (PAIR | {"criterium": "fisher"}, r"criterium: .*did you mean 'criterion'"),
        (
            {"networks": [PAIR["networks"][0] | {"confg": "x"}, PAIR["networks"][1]]},
            "colearn.pair.networks.0.confg: there is no such setting .*'config'",
        ),
        (
            {"networks": [PAIR["networks"][0] | {"name": "lossy"}, PAIR["networks"][1]]},
            "colearn.pair.networks.0.name: .*without 'loss', got 'lossy'",
        ),
    ],
)
def test_bad_settings_are_refused(project, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _ = project.change(colearn={"pair": settings}).params


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["colearn", "pear"], "no 'pear' in the section colearn .*did you mean 'pair'"),
        (["evaluate", "pair.half"], "no model 'pair.half'.*; `lad colearn pair` trains one"),
    ],
)
def test_a_mistake_is_one_message(
    project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, arguments, message
) -> None:
    with pytest.raises(SystemExit, match="1"):
        lad(project, monkeypatch, *arguments)
    assert re.search(message, capsys.readouterr().err)


def test_a_network_without_the_name_of_its_pair_is_one_message(
    project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name in ("pair.half", "pair.quarter"):
        shutil.copytree(project.paths.teacher, project.paths.model(name))
    with pytest.raises(SystemExit, match="1"):
        lad(project, monkeypatch, "evaluate", "pair")
    message = r"no model 'pair' .*'pair.half'.*; there are: teacher, pair.half, pair.quarter; "
    assert re.search(message, capsys.readouterr().err)


def test_no_store_and_no_teacher_are_needed(project) -> None:
    shutil.rmtree(project.paths.labels)
    shutil.rmtree(project.paths.teacher)
    project.change(training={"epochs": 1}).train("pair")
    assert (project.paths.model("pair.half") / "weights.pth").is_file()
