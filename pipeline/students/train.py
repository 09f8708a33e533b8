"""Trains a student: from the label store, with the teacher in memory, or on its own."""

import shutil
from typing import Any

from mmengine.config import ConfigDict

from pipeline.data.dataset import load_data_info
from pipeline.detector.build import (
    build_detector,
    load_model_config,
    preprocessing,
    prior_grid,
    without_downloads,
)
from pipeline.detector.model_folder import save_model, weights_digest
from pipeline.project.errors import UserError
from pipeline.project.params import Params
from pipeline.project.paths import Paths
from pipeline.store.fingerprint import digest, label_parts
from pipeline.store.reader import LabelStore
from pipeline.students.methods import cached_model, online_model, student_labels
from pipeline.teacher_pass.labelling import load_teacher
from pipeline.teacher_pass.teacher import Teacher
from pipeline.training.distributed import is_first
from pipeline.training.run import train
from pipeline.views.plan import view_plan
from pipeline.views.priors import PriorGrid


def train_student(name: str, params: Params, paths: Paths) -> dict[str, Any]:
    """Train the student `name` and write its model folder.

    Returns:
        What the training cost.

    Raises:
        UserError: there is no such student, data, labels or teacher are missing, the labels were
            made for other data, views or priors, or the teacher is for other inputs or priors.
    """
    student = params.student(name)
    data = load_data_info(paths)
    plan = view_plan(params.views)
    model = load_model_config(student.config, num_classes=len(data.classes))
    labels: dict[str, Any] = {}
    if student.labels_from == "cached":
        store = LabelStore(paths.labels)
        grid = _priors(model)
        divisor = preprocessing(model)["pad_size_divisor"]
        store.require(label_parts(data, plan, grid, divisor), f"the student {name}")
        store.require_complete()
        network = cached_model(model, student.method, store)
        labels = {
            "labels": student_labels(student, store, grid),
            "inputs_digest": digest(store.fingerprint),
        }
    else:
        if student.labels_from == "online":
            labels["inputs_digest"] = _check_teacher(name, model, *load_teacher(paths, data))
        network = online_model(model, student, paths.teacher)
    state, cost = train(
        name=name,
        model=network,
        training=params.student_training(name),
        plan=plan,
        data=data,
        run_folder=paths.run(name),
        **labels,
    )
    record = {
        "name": name,
        "method": student.method,
        "labels": student.labels_from,
        "assigner": student.assigner,
        "config": student.config,
    } | cost
    if is_first():
        save_model(paths.model(name), model, state, record)
        shutil.rmtree(paths.run(name))
    return record


def _priors(model: ConfigDict) -> PriorGrid:
    return prior_grid(build_detector(without_downloads(model)).bbox_head)


def _check_teacher(
    name: str, model: ConfigDict, teacher: Teacher, teacher_model: ConfigDict
) -> str:
    """Refuse a teacher of other inputs or priors than the student's; the digest of its weights."""
    theirs = {"priors": teacher.grid, "data_preprocessor": preprocessing(teacher_model)}
    own = {"priors": _priors(model), "data_preprocessor": preprocessing(model)}
    if own != theirs:
        raise UserError(
            f"the student {name} shows its batches to the teacher (labels: online), so their "
            f"configs must have equal priors and data_preprocessor: the teacher's are {theirs}, "
            f"the student's {own}; make them equal, or use labels: cached"
        )
    return weights_digest(teacher.detector.state_dict())
