"""Trains a student: from the label store, or on its own."""

import copy
from typing import Any

from mmengine.config import ConfigDict

from pipeline.data.dataset import load_split
from pipeline.detector.build import load_model_config, preprocessing
from pipeline.detector.model_folder import save_model
from pipeline.heads.registry import family_of_model
from pipeline.loading.transforms import NO_LABELS
from pipeline.project.paths import Paths
from pipeline.store.fingerprint import label_parts
from pipeline.store.reader import LabelStore
from pipeline.students.cached import (
    cached_model,
    family_of_config,
    require_priors,
    student_labels,
)
from pipeline.students.method import method_module, method_of
from pipeline.students.settings import Student
from pipeline.students.taught import detector_state
from pipeline.training.distributed import is_first
from pipeline.training.run import TrainingRun, train
from pipeline.training.run_folder import discard_run
from pipeline.training.settings import Training
from pipeline.views.plan import view_plan
from pipeline.views.priors import PaddedViews
from pipeline.views.settings import Views


def train_student(
    name: str, student: Student, training: Training, views: Views, paths: Paths
) -> dict[str, Any]:
    """Train a student and write its model folder.

    Args:
        name: of the student.
        student: what it is and learns.
        training: how students are trained, where it has no settings of its own.
        views: which views there are.
        paths: where data and store are, and where the model goes.

    Returns:
        What the training cost, with the settings of the student.

    Raises:
        UserError: data or labels are missing, or the labels were made for other data, views or
            priors.
    """
    train_split = load_split(paths, "train")
    plan = view_plan(views)
    model = load_model_config(student.config, num_classes=len(train_split.classes))
    labels, inputs = NO_LABELS, None
    if student.labels_from == "cached":
        store = LabelStore(paths.labels)
        divisor = preprocessing(model)["pad_size_divisor"]
        grid = family_of_config(model).grid
        shown = PaddedViews(plan, grid, divisor)
        who = f"the student {name}"
        found = store.fingerprint
        head = found["teacher"]["model"]["bbox_head"]["type"]
        require_priors(model, grid, head, who, found["priors"])
        store.require(label_parts(train_split, shown), who)
        store.require_complete()
        network = cached_model(model, student, store)
        labels = student_labels(student, store)
        inputs = {"store": store.fingerprint, "min_iou": method_of(student).min_iou}
    else:
        network = model
        if student.assigner == "batched":
            network = family_of_model(model, student.config).own(copy.deepcopy(model))
    run = TrainingRun(
        name=name,
        model=network,
        training=student.training.over(training),
        plan=plan,
        split=train_split,
        folder=paths.run(name),
        code=(__name__, method_module(student.method)),
        labels=labels,
        inputs=inputs,
    )
    rule = family_of_model(model, student.config).rule
    return train_and_save(run, student, model, rule, paths)


def train_and_save(
    run: TrainingRun, student: Student, model: ConfigDict, rule: str, paths: Paths
) -> dict[str, Any]:
    """Train a student's network, and write the model folder with the record of both.

    Args:
        run: with the config of the network as it is trained.
        student: what it is and learns.
        model: the config that is saved: a plain detector of mmdet.
        rule: whose code assigns where labels are not cached; see `HeadFamily.rule`.
        paths: where the model folder goes.

    Returns:
        The record.
    """
    state, cost = train(run)
    state = detector_state(state)
    rule = "mmdet" if student.assigner == "mmdet" else rule
    record = student_record(run.name, student, run.training) | {"assigner": rule} | cost
    if is_first():
        save_model(paths.model(run.name), model, state, record)
        discard_run(run.folder)
    return record


def student_record(name: str, student: Student, training: Training) -> dict[str, Any]:
    """What the comparison wants to know of a student beside its costs, for JSON."""
    return {
        "name": name,
        "method": student.method,
        "labels": student.labels_from,
        "config": student.config,
        "settings": student.model_dump(mode="json", exclude={"training"})
        | {"training": training.model_dump(mode="json")},
    }
