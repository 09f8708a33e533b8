"""Trains a student that has its teacher in memory."""

import copy
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict

from pipeline.data.dataset import load_split
from pipeline.detector.build import load_model_config, preprocessing, without_downloads
from pipeline.detector.model_folder import CONFIG, WEIGHTS, weights_digest
from pipeline.heads.lad import ObjectnessLADHead
from pipeline.online.settings import OnlineStudent
from pipeline.online.students import OnlineLAD, OnlineSoftLAD
from pipeline.project.errors import UserError
from pipeline.project.paths import Paths
from pipeline.students.cached import min_iou_of, require_iou
from pipeline.students.method import load_method, method_module
from pipeline.students.train import model_grid, train_and_save
from pipeline.teacher_pass.label import load_teacher
from pipeline.teacher_pass.teacher import Teacher
from pipeline.training.run import TrainingRun
from pipeline.training.settings import Training
from pipeline.views.plan import view_plan
from pipeline.views.settings import Views


def train_online_student(
    name: str, student: OnlineStudent, training: Training, views: Views, paths: Paths
) -> dict[str, Any]:
    """Train a student beside its teacher, and write its model folder.

    Args:
        name: of the student.
        student: what it is and learns.
        training: how students are trained, where it has no settings of its own.
        views: which views there are.
        paths: where data and teacher are, and where the model goes.

    Returns:
        What the training cost, with the settings of the student.

    Raises:
        UserError: data or teacher are missing, or the teacher is for other inputs or priors.
    """
    split = load_split(paths, "train")
    model = load_model_config(student.config, num_classes=len(split.classes))
    run = TrainingRun(
        name=name,
        model=online_model(model, student, paths.teacher),
        training=student.training.over(training),
        plan=view_plan(views),
        split=split,
        folder=paths.run(name),
        code=(__name__, method_module(student.method)),
        inputs=_check_teacher(name, model, *load_teacher(paths, split)),
    )
    return train_and_save(run, student, model, paths)


def online_model(model: ConfigDict, student: OnlineStudent, teacher: Path) -> ConfigDict:
    """The config of a PAA turned into that of a student that asks its teacher in each step.

    Args:
        model: of type PAA.
        student: what it learns.
        teacher: the teacher's model folder.

    Raises:
        UserError: it would learn IoU predictions from a teacher that makes none.
    """
    method = load_method(student.method)
    model = copy.deepcopy(model)
    model.bbox_head.type = ObjectnessLADHead.__name__
    if student.assigner == "mmdet":
        return _mmdet_lad(model, teacher)
    model.update(type=OnlineLAD.__name__, teacher=str(teacher))
    if method.soft_head:
        require_iou(model, load_model_config(teacher / CONFIG).bbox_head, student.method)
        model.update(type=OnlineSoftLAD.__name__, min_iou=min_iou_of(student))
        model.bbox_head.update(method.soft_head, with_assignment=method.assignment)
    return model


def _mmdet_lad(student: ConfigDict, teacher: Path) -> ConfigDict:
    """Mmdet's own LAD detector."""
    other = without_downloads(load_model_config(teacher / CONFIG))
    other.bbox_head.type = ObjectnessLADHead.__name__
    student.update(
        type="LAD",
        teacher_backbone=other.backbone,
        teacher_neck=other.neck,
        teacher_bbox_head=other.bbox_head,
        teacher_ckpt=str(teacher / WEIGHTS),
    )
    return student


def _check_teacher(
    name: str, model: ConfigDict, teacher: Teacher, teacher_model: ConfigDict
) -> str:
    """Refuse a teacher of other inputs or priors than the student's; the digest of its weights."""
    theirs = {"priors": teacher.grid, "data_preprocessor": preprocessing(teacher_model)}
    own = {"priors": model_grid(model), "data_preprocessor": preprocessing(model)}
    if own != theirs:
        raise UserError(
            f"the student {name} shows its batches to its teacher, so their configs must have "
            f"equal priors and data_preprocessor: the teacher's are {theirs}, the student's {own}; "
            "make them equal, or have the student learn from the store (section `students`)"
        )
    return weights_digest(teacher.detector.state_dict())
