"""Every student learns of every teacher with its priors, by every method; others are refused."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate

from pipeline.data.dataset import load_split
from pipeline.loading.dataset import view_dataset
from pipeline.loading.transforms import NO_LABELS, LabelTransforms
from pipeline.online.settings import OnlineStudent
from pipeline.online.train import online_model
from pipeline.project.errors import UserError
from pipeline.store.reader import LabelStore
from pipeline.students.cached import cached_model, student_labels
from pipeline.students.settings import Student
from pipeline.views.plan import view_plan
from tests.conftest import Project
from tests.heads.zoo import FILES, GRIDS, TEACHERS, past_the_first_epochs, write_teacher, zoo_model

METHODS = {
    "lad": {"method": "lad"},
    "soft": {"method": "soft"},
    "solad": {"method": "solad"},
    "bckd": {"method": "bckd"},
    "bckd teacher": {"method": "bckd", "assignment": "teacher"},
}
QUALITY = {"PAA": "iou", "DDOD": "iou", "ATSS": "centerness"}


@pytest.fixture(scope="module", params=TEACHERS)
def teacher(request: pytest.FixtureRequest, checked: Project, tmp_path_factory) -> tuple:
    project = checked.copy(tmp_path_factory.mktemp(request.param))
    project.change(
        views={"scales": [[128, 96]], "flips": ["none", "horizontal"]},
        labels={"min_score": 1e-6},  # boxes everywhere, as a teacher in memory has them
    )
    write_teacher(project, request.param)
    return request.param, project, Batches(project)


def config_file(family: str, folder: Path) -> str:
    file = folder / f"{family}.py"
    Config(dict(model=zoo_model(family))).dump(file)
    return str(file)


class Batches:
    """The batches of a project's views with a method's labels, made once for all students."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.store = LabelStore(project.paths.labels)
        bucket = self.store.layout.table["bucket"]
        self.views = {
            "of one size": np.flatnonzero(bucket == bucket[0])[:3].tolist(),
            "of all sizes": np.unique(bucket, return_index=True)[1].tolist(),
        }
        self.made: dict[tuple[str, str], Any] = {}

    def get(self, method: str, labels: LabelTransforms, which: str) -> Any:
        if (method, which) not in self.made:
            split = load_split(self.project.paths, "train")
            dataset = view_dataset(split, view_plan(self.project.params.views), labels)
            items = [dataset[view] for view in self.views[which]]
            self.made[method, which] = pseudo_collate(items)
        return copy.deepcopy(self.made[method, which])


def step(student: Any, batch: Any) -> dict[str, float]:
    """What a training step says, after it has found gradients everywhere."""
    student.zero_grad()
    ready = student.data_preprocessor(batch, training=True)
    found = {
        name: torch.stack(list(value) if isinstance(value, (list, tuple)) else [value]).sum()
        for name, value in student.loss(ready["inputs"], ready["data_samples"]).items()
    }
    sum(value for name, value in found.items() if "loss" in name).backward()
    grads = [p.grad for p in student.detector.parameters() if p.grad is not None]
    assert all(grad.isfinite().all() for grad in grads)
    assert any(grad.any() for grad in grads)
    return {name: float(value) for name, value in found.items()}


def built(network: ConfigDict) -> Any:
    torch.manual_seed(0)
    return MODELS.build(network).train()


@pytest.mark.parametrize("name", FILES)
def test_a_pair_with_the_same_priors_trains_a_step_by_every_method(
    teacher: tuple[str, Project, Batches], name: str, tmp_path: Path
) -> None:
    """With the labels of a store, and with the teacher in memory: the same losses, or nearly."""
    past_the_first_epochs()
    teacher_name, project, batches = teacher
    if not any({teacher_name, name} <= set(grid) for grid in GRIDS):
        pytest.skip("other priors: see the test of what is refused")
    model, file = zoo_model(name), config_file(name, tmp_path)
    for method, settings in METHODS.items():
        student = Student(config=file, **settings)
        online = OnlineStudent(config=file, **settings)
        quality = QUALITY.get(name)
        if method == "soft" and quality and quality != QUALITY.get(teacher_name):
            for refused in (
                lambda s=student: cached_model(model, s, batches.store),
                lambda s=online: online_model(model, s, project.paths.teacher),
            ):
                with pytest.raises(UserError, match="take the method solad, bckd or lad") as error:
                    refused()
                assert "\n" not in str(error.value)
            continue
        learner = built(cached_model(model, student, batches.store))
        labels = student_labels(student, batches.store)
        cached = step(learner, batches.get(method, labels, "of one size"))
        step(learner, batches.get(method, labels, "of all sizes"))
        asking = built(online_model(model, online, project.paths.teacher))
        live = step(asking, batches.get("online", NO_LABELS, "of one size"))
        assert live.keys() - cached.keys() <= {"fallbacks"}
        for loss, value in cached.items():
            coded = "soft" in loss or "kd" in loss
            tolerance = dict(rel=0.05, abs=0.02) if coded else dict(rel=1e-4, abs=1e-5)
            assert value == pytest.approx(live[loss], **tolerance), (method, loss)


def test_other_priors_are_refused_with_one_line(
    teacher: tuple[str, Project, Batches], tmp_path: Path
) -> None:
    teacher_name, project, _ = teacher
    for name in ("GFL", "RTMDet", "RetinaNet"):
        if any({teacher_name, name} <= set(grid) for grid in GRIDS):
            continue
        settings = {"config": config_file(name, tmp_path), "method": "lad"}
        project = project.replace(students={"it": settings}, online={"other": settings})
        for student in ("it", "other"):
            with pytest.raises(UserError, match="take a head or a config with the") as error:
                project.train(student)
            assert "\n" not in str(error.value)
            assert "strides" in str(error.value)
