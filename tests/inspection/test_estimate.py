"""`lad estimate`: its figures against what a teacher pass then writes, and what it does without."""

import json
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipeline.comparison.compare import break_even
from pipeline.comparison.records import Model, Run, TeacherPass
from pipeline.inspection.estimate import PassSettings, describe, estimate
from pipeline.inspection.store_info import summarise
from pipeline.project.errors import UserError
from pipeline.store.reader import LabelStore
from pipeline.teacher_pass.teacher import Teacher


def written(path: Path) -> dict[str, int]:
    """Bytes of a store: assignments, soft scores, all."""
    found = summarise(path)
    assignments = found.sizes["assigned_gt"].stored
    soft = sum(size.stored for size in found.sizes.values()) - assignments
    assert found.total is not None
    return {"assignments": assignments, "soft": soft, "total": found.total}


def ask(project, config=None, views=48, seconds=600.0):
    params = project.params
    settings = PassSettings(
        params.data,
        params.views,
        params.teacher,
        params.labels,
        params.teacher_pass,
        params.training,
        params.students,
    )
    return estimate(settings, project.paths, config, views, seconds)


@pytest.fixture
def project(labelled, tmp_path):
    """The project before anything was computed."""
    project = labelled.copy(tmp_path)
    shutil.rmtree(project.folder / "out")
    return project.change(data={"source": str(project.folder / "source")})


def test_sizes_are_within_20_percent_of_what_is_written(labelled) -> None:
    found = ask(labelled)
    expected = written(labelled.paths.labels)
    assert sum(one.sampled for one in found.buckets) == 48
    assert found.assignment_bytes == pytest.approx(expected["assignments"], rel=0.2)
    assert found.soft_bytes == pytest.approx(expected["soft"], rel=0.2)
    assert found.total_bytes == pytest.approx(expected["total"], rel=0.2)
    assert found.seconds > 0
    assert not found.missing


def test_views_and_buckets_are_those_of_the_store(labelled) -> None:
    found = ask(labelled, views=4)
    assert [one.bucket for one in found.buckets] == list(
        LabelStore(labelled.paths.labels).layout.buckets
    )
    assert (found.images, found.views, len(found.plan)) == (24, 96, 4)


def test_a_bucket_with_a_batch_size_of_its_own(labelled, tmp_path, monkeypatch) -> None:
    small, large = (bucket.name for bucket in LabelStore(labelled.paths.labels).layout.buckets[:2])
    sizes = {"batch_size": 4, "bucket_batch_sizes": {small: 3, large: 5}}
    project = labelled.copy(tmp_path).change(teacher_pass=sizes)
    seen = defaultdict(set)
    forward = Teacher.forward

    def watch(teacher, images):
        seen["x".join(map(str, images.shape[2:]))].add(len(images))
        return forward(teacher, images)

    monkeypatch.setattr(Teacher, "forward", watch)
    found = ask(project, views=96)
    assert sum(one.sampled for one in found.buckets) == 96
    assert {name: max(found) for name, found in seen.items()} == {
        one.bucket.name: sizes["bucket_batch_sizes"].get(one.bucket.name, 4)
        for one in found.buckets
    }


def test_before_anything_was_computed(project, labelled) -> None:
    found = ask(project)
    assert [one.bucket for one in found.buckets] == list(
        LabelStore(labelled.paths.labels).layout.buckets
    )
    # Random weights know overlaps with objects alone.
    expected = written(labelled.paths.labels)["assignments"]
    assert found.assignment_bytes == pytest.approx(expected, rel=0.3)
    assert found.soft_bytes is None
    assert found.seconds > 0
    assert "not known: size of soft scores: only a trained teacher can tell" in describe(found)
    assert not (project.folder / "out").exists()


def test_the_checkpoint_of_the_settings_is_asked(project, labelled) -> None:
    project.change(teacher={"checkpoint": str(labelled.paths.teacher / "weights.pth")})
    found = ask(project)
    assert found.soft_bytes == pytest.approx(written(labelled.paths.labels)["soft"], rel=0.2)
    assert "with the checkpoint " in describe(found)


def test_a_checkpoint_that_is_not_there_yet(project) -> None:
    project.change(teacher={"checkpoint": "later.pth"})
    assert "(later.pth is missing)" in describe(ask(project, views=4))


def test_a_config_in_place_of_the_teacher(labelled) -> None:
    found = ask(labelled, config=labelled.params.teacher.config, views=4)
    assert found.teacher.startswith("random weights of ")
    assert found.soft_bytes is None


def test_without_images(project) -> None:
    shutil.rmtree(project.folder / "source/images")
    found = ask(project)
    assert found.views == 96
    assert found.assignment_bytes is None
    assert found.seconds is None
    text = describe(found)
    assert "not known: times and sizes: there is no image " in text
    assert "the pass is paid back after " in text


def test_an_image_that_is_missing_later(project) -> None:
    content = json.loads((project.folder / "source/train.json").read_text())
    for image in content["images"][1:]:
        (project.folder / "source/images" / image["file_name"]).unlink()
    with pytest.raises(UserError, match=r"the image .*\.jpg is gone; .* run `lad data`"):
        ask(project)


def test_the_built_in_data_set(project) -> None:
    project.change(
        data={"source": "pipeline/ingest/digits.py", "digits": {"train_images": 6, "val_images": 1}}
    )
    assert ask(project).images == 6


def test_the_time_is_limited(labelled) -> None:
    found = ask(labelled, seconds=0.0)
    assert sum(one.sampled for one in found.buckets) <= 4  # a batch
    assert found.total_bytes > 0


def test_without_soft_scores(labelled, tmp_path) -> None:
    project = labelled.copy(tmp_path).change(labels={"soft": False})
    found = ask(project, views=8)
    assert found.soft_bytes is None
    assert not found.missing


def test_when_it_pays_is_the_rule_of_the_comparison(labelled) -> None:
    found = ask(labelled, views=8)
    params = labelled.params
    training = params.students["lad"].training.over(params.training)
    run = Run(0, training.epochs, 24, 8, 0.0, 0.0)
    rule = break_even(
        [Model("lad", "lad", "cached", "batched", "", {}, run)],
        TeacherPass(96, found.seconds, 96 / found.seconds, 0, 0.0),
    )
    assert found.pays == rule


def test_without_cached_students(labelled, tmp_path) -> None:
    project = labelled.copy(tmp_path)
    file = project.folder / "params.yaml"
    file.write_text(file.read_text().replace("method: lad", "method: own"))
    assert "no student of the settings learns from a store" in describe(ask(project, views=4))


def test_an_annotation_file_that_is_not_complete(project) -> None:
    file = project.folder / "source/train.json"
    content = json.loads(file.read_text())
    del content["annotations"][0]["iscrowd"]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="got KeyError\\('iscrowd'\\); run `lad data`"):
        ask(project)


def test_no_annotation_file(project) -> None:
    shutil.rmtree(project.folder / "source")
    with pytest.raises(UserError, match="can't read the annotation file"):
        ask(project)


def test_the_command(labelled) -> None:
    from stages.estimate import command

    obj = (labelled.folder / "params.yaml", labelled.folder / "out")
    result = CliRunner().invoke(command, ["--views", "8"], obj=obj, catch_exceptions=False)
    assert "24 images with " in result.output
    assert "the store: " in result.output
    assert "the pass is paid back after 2.00 students" in result.output
