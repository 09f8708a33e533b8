"""Students: what they learn from, what they refuse, and that they continue where they stopped."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook
from PIL import Image

from pipeline.data.dataset import load_split
from pipeline.detector.checkpoint import read_weights
from pipeline.detector.model_folder import load_model
from pipeline.evaluation.evaluate import evaluate
from pipeline.loading.dataset import view_dataset
from pipeline.loading.sampler import ViewSampler
from pipeline.project.errors import UserError
from pipeline.views.plan import view_plan
from tests.conftest import with_hook


def weights(project, name: str) -> dict[str, torch.Tensor]:
    return read_weights(project.paths.model(name) / "weights.pth")


def assert_equal_weights(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.fixture
def project(labelled, tmp_path):
    return labelled.copy(tmp_path)


def test_a_student_does_not_depend_on_its_workers(project) -> None:
    found = []
    for workers in (0, 2):
        project.change(training={"workers": workers, "epochs": 1})
        project.train("lad")
        found.append(weights(project, "lad"))
    assert_equal_weights(*found)


@pytest.mark.parametrize("name", ["paa", "lad"])
def test_an_interrupted_training_continues_to_the_same_weights(
    project, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.train(name)
    uninterrupted = weights(project, name)
    steps = json.loads((project.paths.model(name) / "training.json").read_text())["steps"]
    assert not project.paths.run(name).exists()

    class Interrupt(Hook):
        def after_train_iter(self, runner, *_, **__) -> None:
            if runner.iter == steps // 2 + 1:
                raise KeyboardInterrupt

    with_hook(monkeypatch, Interrupt)
    with pytest.raises(KeyboardInterrupt):
        project.train(name)
    monkeypatch.undo()
    project.train(name)
    assert_equal_weights(weights(project, name), uninterrupted)
    record = json.loads((project.paths.model(name) / "training.json").read_text())
    assert record["steps"] == steps == len(record["curves"]["loss"])


@pytest.mark.parametrize(
    ("settings", "channels_last"),
    [({}, not torch.cuda.is_available()), ({"channels_last": False}, False)],
)
def test_the_memory_format_of_a_training(
    project, monkeypatch: pytest.MonkeyPatch, settings: dict, channels_last: bool
) -> None:
    project.change(training={"epochs": 1} | settings)
    formats = set()

    class Watch(Hook):
        def after_train_iter(self, runner, *_, **__) -> None:
            weight = runner.model.detector.backbone.layer2[0].conv1.weight
            state = runner.optim_wrapper.optimizer.state[weight]
            formats.update(
                one.is_contiguous(memory_format=torch.channels_last)
                for one in (weight, state["exp_avg"], state["exp_avg_sq"])
            )

    with_hook(monkeypatch, Watch)
    project.train("lad")
    assert formats == {channels_last}
    assert all(one.is_contiguous() for one in weights(project, "lad").values())


def test_a_seed_gives_the_same_first_weights_in_each_memory_format(project) -> None:
    first = []
    for channels_last in (True, False):
        project.change(training={"epochs": 1, "channels_last": channels_last})
        first.append(project.train("lad")["curves"]["loss"][0])
    assert first[0] == pytest.approx(first[1], rel=1e-4)


def test_other_settings_start_anew(project) -> None:
    project.train("lad")
    first = weights(project, "lad")
    project.change(training={"seed": 1})
    project.train("lad")
    second = weights(project, "lad")
    assert not all(torch.equal(first[key], second[key]) for key in first)


def test_trainings_that_begin_in_the_same_second_have_their_own_records(
    project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.strftime", lambda *_: "20260101_000000")
    first = project.train("lad")
    second = project.train("lad")
    assert second["steps"] == first["steps"] == len(second["curves"]["loss"])


def test_a_student_is_an_ordinary_paa_checkpoint(project) -> None:
    project.train("lad")
    detector, model = load_model(project.paths.model("lad"), "")
    assert model.type == "PAA"
    assert type(detector).__name__ == "PAA"
    metrics = evaluate("lad", project.params.evaluation, project.paths)
    assert {"AP", "AP50", "AP75"} <= metrics.keys() <= {"AP", "AP50", "AP75", "APs", "APm", "APl"}
    assert 0 <= metrics["AP"] <= metrics["AP50"] <= 1
    assert json.loads(project.paths.metrics("lad").read_text()) == metrics


def test_no_teacher_is_needed(project) -> None:
    shutil.rmtree(project.paths.teacher)
    project.train("lad")
    assert (project.paths.model("lad") / "weights.pth").is_file()


def test_every_image_shows_once_an_epoch_in_views_that_change(labelled) -> None:
    dataset = view_dataset(load_split(labelled.paths, "train"), view_plan(labelled.params.views))
    sampler = ViewSampler(dataset, seed=0)
    epochs = []
    for epoch in range(6):
        sampler.set_epoch(epoch)
        chosen = list(sampler)
        assert sorted(view // 4 for view in chosen) == list(range(24))
        epochs.append({view // 4: view % 4 for view in chosen})
    sampler.set_epoch(0)
    assert {view // 4: view % 4 for view in sampler} == epochs[0]
    assert len({tuple(sorted(epoch.items())) for epoch in epochs}) == 6


REFUSALS = [
    pytest.param({"views": {"flips": ["none"]}}, r"views: expected .*, found", id="other views"),
    pytest.param(
        {"views": {"scales": [[256, 192], [180, 150]]}}, "views: expected", id="other scales"
    ),
]


@pytest.mark.parametrize(("change", "message"), REFUSALS)
def test_a_store_of_other_views_is_refused(project, change: dict, message: str) -> None:
    project.change(**change)
    with pytest.raises(UserError, match=message) as error:
        project.train("lad")
    assert "lad labels --replace" in str(error.value)
    project.change(training={"epochs": 1}).train("paa")


def test_a_store_of_other_annotations_is_refused(project) -> None:
    file = project.paths.split("train") / "split.json"
    content = json.loads(file.read_text())
    content["annotations_digest"] = "other"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"data.annotations: expected other, found [0-9a-f]{64}"):
        project.train("lad")


def test_objects_that_moved_are_noticed(project) -> None:
    # The digests in split.json stay: the check is that of each view's own objects.
    file = load_split(project.paths, "train").annotations
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        annotation["bbox"][0] += 1
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="the objects of image .* are not those"):
        project.train("lad")


def with_anchors(project, folder, settings: str) -> None:
    """The project with other anchors of its student."""
    config = folder / "other.py"
    base = project.params.students["lad"].config
    config.write_text(
        f"_base_ = {base!r}\nmodel = dict(bbox_head=dict(anchor_generator=dict({settings})))\n"
    )
    project.change(students={"lad": {"config": str(config), "method": "lad"}})


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ("strides=[8, 16, 32, 64, 96]", "'strides': [8, 16, 32, 64, 96], 'centre': [0.0, 0.0]"),
        ("center_offset=0.5", "'strides': [8, 16, 32, 64, 128], 'centre': [0.5, 0.5]"),
    ],
    ids=["strides", "centre"],
)
def test_other_priors_are_refused(project, tmp_path, settings: str, found: str) -> None:
    with_anchors(project, tmp_path, settings)
    with pytest.raises(UserError) as error:
        project.train("lad")
    assert str(error.value).startswith(
        f"the student lad can't learn of this teacher: its PAAHead has the priors {{{found}}}, the "
        "teacher's PAAHead {'strides': [8, 16, 32, 64, 128], 'centre': [0.0, 0.0]}; take "
    )


def test_anchors_of_another_size_are_the_same_priors(project, tmp_path) -> None:
    """Where a cell has one, a label says of a place what is learnt there."""
    with_anchors(project, tmp_path, "octave_base_scale=4")
    assert project.change(training={"epochs": 1}).train("lad")["steps"] > 0


def test_no_store(project) -> None:
    shutil.rmtree(project.paths.labels)
    with pytest.raises(UserError, match="there is no label store at .*; run `lad labels`"):
        project.train("lad")


def test_mixed_precision_needs_a_gpu(project) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(UserError, match="mixed precision needs a GPU"):
        project.change(training={"amp": True}).train("lad")


def test_an_error_in_a_loader_process_is_one_message(project) -> None:
    for file in project.paths.labels.glob("buckets/*/assigned_gt/c/0/0"):
        file.write_bytes(b"")
    with pytest.raises(UserError) as error:
        project.change(training={"workers": 2}).train("lad")
    assert str(error.value).startswith("the store ")
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("name", ["paa", "lad"])
def test_a_training_that_diverges_stops_and_keeps_its_checkpoints(project, name: str) -> None:
    """With such a learning rate, the weights are as good as infinite after an epoch."""
    project.change(training={"epochs": 4, "lr": 1e-3})
    steps = []

    class Explode(Hook):
        def before_train_iter(self, runner, *_, **__) -> None:
            steps.append(runner.iter)
            if runner.iter == 4:
                for weight in runner.model.parameters():
                    weight.data *= 1e30

    with pytest.MonkeyPatch.context() as patch:
        with_hook(patch, Explode)
        with pytest.raises(UserError) as error:
            project.train(name)
    message = str(error.value)
    assert re.match(
        rf"the training of {name} has diverged: in step 5 \(epoch 2\) its loss is (nan|inf) "
        r"\(loss_cls .*\); lower training.lr, raise training.warmup_steps, or set",
        message,
    )
    assert steps == [0, 1, 2, 3, 4]
    assert (project.paths.run(name) / "epoch_1.pth").is_file()
    assert not project.paths.model(name).exists()
    # With other settings it begins anew, with the same ones where it was.
    project.train(name)


def test_a_teacher_may_begin_with_weights_of_other_classes(project, capsys) -> None:
    zoo = project.folder / "zoo.pth"
    state = read_weights(project.paths.teacher / "weights.pth")
    for kind in ("weight", "bias"):
        state[f"bbox_head.atss_cls.{kind}"] = torch.cat([state[f"bbox_head.atss_cls.{kind}"]] * 2)
    torch.save({"state_dict": state}, zoo)
    project.change(teacher={"checkpoint": str(zoo)})
    with pytest.raises(UserError, match="load_from"):
        project.make_teacher()
    project.change(teacher={"checkpoint": None, "load_from": str(zoo)})
    first = {}

    class Watch(Hook):
        def before_train_iter(self, runner, *_, **__) -> None:
            if runner.iter == 0:
                first.update({k: v.clone() for k, v in runner.model.state_dict().items()})

    with pytest.MonkeyPatch.context() as patch:
        with_hook(patch, Watch)
        record = project.make_teacher()
    assert record["load_from"] == str(zoo)
    assert "2 weights are new: bbox_head.atss_cls.weight, bbox_head.atss_cls.bias" in (
        capsys.readouterr().err
    )
    same = [name for name in first if torch.equal(first[name], state[name])]
    assert first.keys() - set(same) == {"bbox_head.atss_cls.weight", "bbox_head.atss_cls.bias"}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("gone", r"the image .*000001\.jpg is gone; bring it back"),
        ("broken", r"000001\.jpg can't be decoded; bring it back"),
        (
            "resized",
            r"000001\.jpg has another size .*: expected 256 x 192 pixels, found 128 x 96; bring",
        ),
        ("moved", r"the folder .*images/train of the images is gone; .*set `data\.source`"),
    ],
)
@pytest.mark.parametrize("stage", ["teacher", "labels", "student", "evaluate"])
def test_images_that_change_after_lad_data(
    project, tmp_path: Path, what: str, message: str, stage: str
) -> None:
    split = "val" if stage == "evaluate" else "train"
    source = tmp_path / "moving"
    shutil.copytree(load_split(project.paths, split).images_folder, source)
    for name in ("train", "val"):
        file = project.paths.split(name) / "about.json"
        content = json.loads(file.read_text())
        file.write_text(json.dumps(content | {"images_folder": str(source)}))
    image = source / split / "000001.jpg"
    if what == "gone":
        image.unlink()
    elif what == "broken":
        image.write_bytes(image.read_bytes()[:500])
    elif what == "resized":
        Image.open(image).resize((128, 96)).save(image)
    else:
        source.rename(tmp_path / "moved")
    if what == "moved":
        message = message.replace("images/train", f"moving/{split}")
    if stage == "labels":
        shutil.rmtree(project.paths.labels)
    project.change(teacher={"training": {"epochs": 1, "workers": 2}})
    run: dict[str, Callable[[], object]] = {
        "teacher": project.make_teacher,
        "labels": project.fill_store,
        "student": lambda: project.train("paa"),
        "evaluate": lambda: evaluate("teacher", project.params.evaluation, project.paths),
    }
    with pytest.raises(UserError, match=message):
        run[stage]()


@pytest.mark.parametrize("workers", [0, 2])
def test_views_that_are_too_small_for_the_network(project, workers: int) -> None:
    config = project.folder / "norm.py"
    base = project.params.students["paa"].config
    config.write_text(f"_base_ = {base!r}\nmodel = dict(neck=dict(norm_cfg=dict(type='BN')))\n")
    project.change(
        views={"scales": [[100, 75]]},
        students={"paa": {"config": str(config), "method": "own"}},
        training={"batch_size": 1, "workers": workers},
    )
    with pytest.raises(UserError, match=r"expected views with a side over 128 pixels .*batch_size"):
        project.train("paa")


def test_views_that_would_have_no_pixels(project) -> None:
    file = load_split(project.paths, "train").annotations
    content = json.loads(file.read_text())
    content["images"][0] |= {"width": 2000, "height": 1}
    file.write_text(json.dumps(content))
    message = (
        r"the image train/000001\.jpg: resized to fit 256 x 192 pixels, 2000 x 1 pixels would "
        "become 256 x 0: leave"
    )
    with pytest.raises(UserError, match=message):
        project.fill_store()
