import json

import pytest
import torch
from click.testing import CliRunner
from mmengine.dataset import pseudo_collate

from pipeline.data.dataset import load_data_info
from pipeline.detector.build import build_detector, load_model_config
from pipeline.store.coding import Coding, SoftSettings
from pipeline.teacher_pass.labelling import load_teacher, view_dataset
from pipeline.views.plan import view_plan
from stages.cli import lad
from studies.coding_study import (
    decode_batch,
    encode_batches,
    mean_bytes,
    random_batches,
    relative_errors,
)
from studies.codings import box_trials, chunk, tailed, trials, unchunk
from studies.students import Course
from tests.conftest import Project

DEFAULT = Coding(0.012, 63, 1.5)


@pytest.fixture(scope="module")
def course(labelled: Project) -> Course:
    """A student of the shared project and its teacher."""
    params, paths = labelled.params, labelled.paths
    data = load_data_info(paths)
    teacher, _ = load_teacher(paths, data)
    return Course(
        load_model_config(params.students["paa"].config, num_classes=len(data.classes)),
        params.student_training("paa").model_copy(update={"epochs": 3}),
        view_dataset(data, view_plan(params.views)),
        teacher,
        SoftSettings(DEFAULT, 0.1),
    )


@pytest.fixture(scope="module")
def batches(course: Course):
    return [
        course.ask(pseudo_collate([course.dataset[view] for view in batch]))
        for batch in course.batches([0, 5, 22, 31])
    ]


def test_every_coding_is_named_once():
    names = [trial.name for trial in trials(DEFAULT)]
    assert len(set(names)) == len(names)
    assert (
        sum(trial.name == tailed(DEFAULT, "class and place").name for trial in trials(DEFAULT)) == 1
    )


def test_batches_have_one_padded_size(course: Course, batches):
    assert sum(len(batch.images) for batch in batches) == 4
    assert len({batch.padded for batch in batches}) == len(batches) > 1
    for batch in batches:
        assert batch.images.shape[-2:] == batch.padded
        assert len(batch.level) == batch.beliefs.probabilities.shape[1]


@pytest.mark.parametrize("trial", [*trials(DEFAULT), *box_trials()], ids=lambda trial: trial.name)
def test_chunks_decode_to_what_was_coded(batches, trial):
    batch = batches[0]
    ((first, *_), *_) = encode_batches(trial, batches)
    for array in first:
        assert torch.equal(unchunk(chunk(array), array), array)
    beliefs = decode_batch(trial, encode_batches(trial, [batch])[0], batch)
    for name in ("probabilities", "overlap", "boxes", "iou"):
        exact, found = getattr(batch.beliefs, name), getattr(beliefs, name)
        assert found.shape == exact.shape
        assert found.dtype == torch.float32
        assert float((found - exact).abs().max()) < 0.5
    assert mean_bytes(encode_batches(trial, batches)) > 0


def test_tails_keep_sums_of_their_groups(batches):
    batch = batches[0]
    exact = batch.beliefs.probabilities[0]
    in_tail = exact < 0.03
    for tail in ("view", "class", "level and class", "class and place"):
        trial = tailed(Coding(0.03, 63, 1.5), tail)
        found = trial.decode(trial.encode(exact, batch.level), batch.level)
        assert float((found * in_tail).sum()) == pytest.approx(
            float((exact * in_tail).sum()), rel=1e-3
        )
    nothing = tailed(Coding(0.03, 63, 1.5), "0")
    found = nothing.decode(nothing.encode(exact, batch.level), batch.level)
    assert not found[in_tail].any()


def test_errors(course: Course, batches):
    coding = Coding(0.03, 63, 1.5)
    float16, *_ = trials(DEFAULT)
    compared = {name: tailed(coding, name) for name in ("0", "class", "class and place")}
    fine = tailed(Coding(1e-4, 254, 2), "class")
    trial_of = {"float16": float16, "fine": fine} | compared
    trial_of |= {trial.name + " boxes": trial for trial in box_trials()}
    coded = {trial: encode_batches(trial, batches) for trial in trial_of.values()}
    student = build_detector(course.model)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    found = relative_errors(student, batches, course.teacher.grid, coded)
    error = {name: found[trial] for name, trial in trial_of.items()}
    assert error["float16"].gradient < 1e-3
    assert error["float16"].loss < 1e-4
    assert error["float16"].gradient <= error["fine"].gradient < error["class"].gradient
    assert error["class"].gradient < error["0"].gradient
    assert error["class and place"].gradient < error["0"].gradient
    assert error["float16 boxes"].gradient < 0.01
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_exact_scores_have_no_error(course: Course, batches):
    exact = trials(DEFAULT)[0]
    coded = {exact: encode_batches(exact, batches)}
    for batch, views in zip(batches, coded[exact], strict=True):
        # What float16 holds exactly.
        beliefs = decode_batch(exact, views, batch)
        batch.beliefs.probabilities.copy_(beliefs.probabilities)
    student = build_detector(course.model)
    error = relative_errors(student, batches, course.teacher.grid, coded)[exact]
    assert error.loss == 0
    assert error.gradient == 0


def test_stages(course: Course):
    states = {
        stage: [weight.detach().clone() for weight in student.parameters()]
        for stage, student in course.stages()
    }
    assert list(states) == ["paa 0", "paa 1", "paa 2", "paa 3", "soft 1", "soft 2", "soft 3"]
    for one, other in zip(list(states)[:-1], list(states)[1:], strict=True):
        assert not all(map(torch.equal, states[one], states[other])), (one, other)


def test_random_views_have_a_long_tail():
    batches = random_batches(0.1)
    below = torch.cat([batch.beliefs.probabilities.flatten() for batch in batches]) < 0.01
    assert float(below.float().mean()) == pytest.approx(0.998, abs=0.001)


def test_command(labelled: Project):
    project = labelled
    result = CliRunner().invoke(
        lad,
        [
            f"--params={project.folder / 'params.yaml'}",
            f"--out={project.folder / 'out'}",
            "study",
            "--views=2",
            "--epochs=1",
        ],
    )
    assert result.exit_code == 0, result.output
    assert "| float16 |" in result.output
    record = json.loads((project.folder / "out/study.json").read_text())
    assert list(record["classes"][0]["errors"]) == ["paa 0", "paa 1", "soft 1"]
    assert len(record["boxes"]) == len(box_trials())
