import json
import subprocess
import sys
from dataclasses import fields

import pytest
import torch
from mmengine.dataset import pseudo_collate

from pipeline.data.dataset import load_split
from pipeline.detector.build import build_detector, load_model_config
from pipeline.loading.dataset import view_dataset
from pipeline.loading.transforms import ALL_OBJECTS
from pipeline.online.settings import OnlineStudent
from pipeline.store.coding import Coding, SoftSettings
from pipeline.teacher_pass.label import load_teacher
from pipeline.teacher_pass.teacher import Least
from pipeline.views.plan import view_plan
from studies.coded import decode_batch, encode_batches, mean_bytes
from studies.coding_study import BCKD_CONFIG, EVERYWHERE, random_batches, relative_errors
from studies.codings import (
    box_codings,
    chunk,
    class_codings,
    store_codings,
    unchunk,
    with_tail,
)
from studies.students import StudentTrainer, predict
from tests.conftest import ROOT, Project

pytestmark = pytest.mark.slow

DEFAULT = Coding(cut=0.012, levels=63, power=1.5)
COARSE = Coding(cut=0.03, levels=63, power=1.5)
SETTINGS = SoftSettings(scores=DEFAULT, min_iou=0.1, min_score=0.05)
LEAST = Least(0.1, torch.inf)


def make_trainer(labelled: Project, config: str, method: str) -> StudentTrainer:
    """Of a student of the shared project and its teacher."""
    params, paths = labelled.params, labelled.paths
    split = load_split(paths, "train")
    return StudentTrainer(
        load_model_config(config, num_classes=len(split.classes)),
        OnlineStudent(config=config, method=method),
        params.training.model_copy(update={"epochs": 3}),
        view_dataset(split, view_plan(params.views), ALL_OBJECTS),
        paths.teacher,
    )


def make_batches(labelled: Project, trainer: StudentTrainer, least: Least):
    teacher, _ = load_teacher(labelled.paths, load_split(labelled.paths, "train"))
    return [
        predict(teacher, pseudo_collate([trainer.dataset[view] for view in batch]), least)
        for batch in trainer.batches([0, 5, 22, 31])
    ]


@pytest.fixture(scope="module")
def trainer(labelled: Project) -> StudentTrainer:
    return make_trainer(labelled, labelled.params.students["paa"].config, "soft")


@pytest.fixture(scope="module")
def batches(labelled: Project, trainer: StudentTrainer):
    return make_batches(labelled, trainer, LEAST)


def test_every_coding_is_named_once():
    names = [coding.name for coding in class_codings(DEFAULT)]
    assert len(set(names)) == len(names)
    assert names.count(with_tail(DEFAULT, "class and place").name) == 1


def test_batches_have_one_padded_size(batches):
    assert sum(len(batch.images) for batch in batches) == 4
    assert len({batch.grid.padded for batch in batches}) == len(batches) > 1
    for batch in batches:
        assert batch.images.shape[-2:] == batch.grid.padded
        assert len(batch.levels) == batch.predicted.probabilities.shape[1]


@pytest.mark.parametrize(
    "coding",
    [*class_codings(DEFAULT), *box_codings(), *store_codings(SETTINGS)],
    ids=lambda coding: coding.name,
)
def test_chunks_decode_to_what_was_coded(batches, coding):
    batch = batches[0]
    ((first, *_), *_) = encode_batches(coding, batches)
    for array in first:
        assert torch.equal(unchunk(chunk(array), array), array)
    decoded = decode_batch(coding, encode_batches(coding, [batch])[0], batch)
    for part in fields(decoded):
        exact, found = getattr(batch.predicted, part.name), getattr(decoded, part.name)
        assert found.shape == exact.shape
        assert found.dtype == exact.dtype
        if part.name != "kept":
            assert float((found - exact).abs().max()) < 0.5
    assert mean_bytes(encode_batches(coding, batches)) > 0


def test_tails_keep_sums_of_their_groups(batches):
    batch = batches[0]
    exact = batch.predicted.probabilities[0]
    in_tail = exact < 0.03
    for tail in ("view", "class", "level and class", "class and place"):
        coding = with_tail(COARSE, tail)
        found = coding.decode(coding.encode(exact, batch.levels), batch.levels)
        assert float((found * in_tail).sum()) == pytest.approx(
            float((exact * in_tail).sum()), rel=1e-3
        )
    nothing = with_tail(COARSE, "0")
    found = nothing.decode(nothing.encode(exact, batch.levels), batch.levels)
    assert not found[in_tail].any()


def test_errors(trainer: StudentTrainer, batches):
    float16, *_ = class_codings(DEFAULT)
    compared = {name: with_tail(COARSE, name) for name in ("0", "class", "class and place")}
    fine = with_tail(Coding(cut=1e-4, levels=254, power=2), "class")
    coding_of = {"float16": float16, "fine": fine} | compared
    coding_of |= {coding.name + " boxes": coding for coding in box_codings()}
    coded = {coding: encode_batches(coding, batches) for coding in coding_of.values()}
    student = build_detector(trainer.models["own"])
    before = {name: value.clone() for name, value in student.state_dict().items()}
    found = relative_errors(student, trainer.taught, batches, coded)
    error = {name: found[coding] for name, coding in coding_of.items()}
    assert error["float16"].gradient < 1e-3
    assert error["float16"].loss < 1e-4
    assert error["float16"].gradient <= error["fine"].gradient < error["class"].gradient
    assert error["class"].gradient < error["0"].gradient
    assert error["class and place"].gradient < error["0"].gradient
    assert error["float16 boxes"].gradient < 0.01
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_exact_scores_have_no_error(trainer: StudentTrainer, batches):
    exact = class_codings(DEFAULT)[0]
    coded = {exact: encode_batches(exact, batches)}
    for batch, views in zip(batches, coded[exact], strict=True):
        # What float16 holds exactly.
        batch.predicted.probabilities.copy_(decode_batch(exact, views, batch).probabilities)
    student = build_detector(trainer.models["own"])
    error = relative_errors(student, trainer.taught, batches, coded)[exact]
    assert error.loss == 0
    assert error.gradient == 0


def test_stages(trainer: StudentTrainer):
    states = {
        stage: [weight.detach().clone() for weight in student.parameters()]
        for stage, student in trainer.stages()
    }
    assert list(states) == ["own 0", "own 1", "own 2", "own 3", "soft 1", "soft 2", "soft 3"]
    for one, other in zip(list(states)[:-1], list(states)[1:], strict=True):
        assert not all(map(torch.equal, states[one], states[other])), (one, other)


def test_errors_of_bckd_fall_with_the_boxes_that_are_kept(labelled: Project):
    trainer = make_trainer(labelled, str(BCKD_CONFIG), "bckd")
    batches = make_batches(labelled, trainer, EVERYWHERE)
    codings = store_codings(SETTINGS)
    assert [coding.settings.min_score for coding in codings] == [0, 0.012, 0.03, 0.05, 0.1, 0.2]
    coded = {coding: encode_batches(coding, batches) for coding in codings}
    kept = [
        sum(
            int(decode_batch(coding, *pair).kept.sum()) for pair in zip(views, batches, strict=True)
        )
        for coding, views in coded.items()
    ]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == sum(batch.predicted.kept.numel() for batch in batches)
    student = build_detector(trainer.models["own"])
    error = relative_errors(student, trainer.taught, batches, coded)
    gradients = [error[coding].gradient for coding in codings]
    assert gradients[0] < gradients[-1]


def test_random_views_have_a_long_tail():
    batches = random_batches(LEAST)
    below = torch.cat([batch.predicted.probabilities.flatten() for batch in batches]) < 0.01
    assert float(below.float().mean()) == pytest.approx(0.998, abs=0.001)


def run_study(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, in a process of its own."""
    params, out = project.folder / "params.yaml", project.folder / "out"
    command = [sys.executable, "-m", "studies", f"--params={params}", f"--out={out}", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_command(labelled: Project):
    ended = run_study(labelled, "--views=2", "--epochs=1")
    assert ended.returncode == 0, ended.stderr
    assert "| float16 |" in ended.stdout
    record = json.loads((labelled.folder / "out/study.json").read_text())
    assert list(record["classes"][0]["errors"]) == ["own 0", "own 1", "soft 1"]
    assert len(record["boxes"]) == len(box_codings())
    assert list(record["stores"][0]["errors"]) == ["own 0", "own 1", "bckd 1"]
    assert "| all boxes |" in ended.stdout
    assert (labelled.folder / "out/study.png").is_file()


def test_a_mistake_ends_with_a_message(labelled: Project):
    ended = run_study(labelled, "--student=padd")
    assert ended.returncode == 1
    assert "Error: no 'padd' in the section students" in ended.stderr
    assert "Traceback" not in ended.stderr
