"""Trains a student, from the label store or on its own."""

import pipeline.mmcv_ops  # noqa: F401

import shutil
from typing import Any

from pipeline.checkpoint import save_model
from pipeline.dataset import load_data_info
from pipeline.detector import (
    build_detector,
    load_model_config,
    preprocessing,
    prior_grid,
    without_downloads,
)
from pipeline.methods import student_labels, student_model
from pipeline.params import Params
from pipeline.paths import Paths
from pipeline.store.fingerprint import digest, label_parts
from pipeline.store.reader import LabelStore
from pipeline.training import train
from pipeline.views import view_plan


def train_student(name: str, params: Params, paths: Paths) -> dict[str, Any]:
    """Train the student `name` and write its model folder.

    Returns:
        What the training cost.

    Raises:
        UserError: there is no such student, data or labels are missing, or the labels were made
            for other data, views or priors.
    """
    student = params.student(name)
    data = load_data_info(paths)
    plan = view_plan(params.views)
    model = load_model_config(student.config, num_classes=len(data.classes))
    labels: dict[str, Any] = {}
    store = None
    if student.method != "paa":
        grid = prior_grid(build_detector(without_downloads(model)).bbox_head)
        store = LabelStore(paths.labels)
        divisor = preprocessing(model)["pad_size_divisor"]
        store.require(label_parts(data, plan, grid, divisor), f"the student {name}")
        store.require_complete()
        labels = {
            "labels": student_labels(student, store, grid),
            "inputs_digest": digest(store.fingerprint),
        }
    state, cost = train(
        name=name,
        model=student_model(model, student.method, store),
        training=params.student_training(name),
        plan=plan,
        data=data,
        run_folder=paths.run(name),
        **labels,
    )
    record = {"name": name, "method": student.method, "config": student.config} | cost
    save_model(paths.model(name), model, state, record)
    shutil.rmtree(paths.run(name))
    return record
