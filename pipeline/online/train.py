"""Trains a student that has its teacher in memory."""

import copy
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict

from pipeline.data.dataset import load_split
from pipeline.detector.build import load_model_config, preprocessing, without_downloads
from pipeline.detector.checkpoint import weights_digest
from pipeline.detector.model_folder import CONFIG, WEIGHTS
from pipeline.heads.family import find_family
from pipeline.heads.lad import ObjectnessLADHead
from pipeline.heads.paa import PAA
from pipeline.online.settings import OnlineStudent
from pipeline.online.students import OnlineDetector
from pipeline.project.errors import UserError
from pipeline.project.paths import Paths
from pipeline.students.cached import family_of_config, require_priors, taught_settings
from pipeline.students.method import method_module, method_of
from pipeline.students.train import train_and_save
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
    teacher, teacher_model = load_teacher(paths, split)
    run = TrainingRun(
        name=name,
        model=online_model(model, student, paths.teacher),
        training=student.training.over(training),
        plan=view_plan(views),
        split=split,
        folder=paths.run(name),
        code=(__name__, method_module(student.method)),
        inputs=_check_teacher(name, model, teacher, teacher_model),
    )
    return train_and_save(run, student, model, teacher.family.rule, paths)


def online_model(model: ConfigDict, student: OnlineStudent, teacher: Path) -> ConfigDict:
    """The config of a detector turned into that of a student that asks its teacher in each step.

    Args:
        model: of the student.
        student: what it learns.
        teacher: the teacher's model folder.

    Raises:
        UserError: its head can't learn what the method wants of this teacher.
    """
    theirs = load_model_config(teacher / CONFIG)
    if student.assigner == "mmdet":
        return _mmdet_lad(copy.deepcopy(model), theirs, teacher / WEIGHTS)
    return ConfigDict(
        type=OnlineDetector.__name__,
        teacher=str(teacher),
        min_iou=method_of(student).min_iou,
        **taught_settings(model, theirs, student),
    )


def _mmdet_lad(student: ConfigDict, teacher: ConfigDict, weights: Path) -> ConfigDict:
    """Mmdet's own LAD detector."""
    heads = student.bbox_head, teacher.bbox_head
    if any(find_family(head.type) is not PAA for head in heads):
        raise UserError(
            "assigner: mmdet is mmdet's detector LAD, whose student and teacher are PAA, not "
            f"{heads[0].type} and {heads[1].type}; leave it out"
        )
    other = without_downloads(teacher)
    for head in (student.bbox_head, other.bbox_head):
        head.type = ObjectnessLADHead.__name__
    student.update(
        type="LAD",
        teacher_backbone=other.backbone,
        teacher_neck=other.neck,
        teacher_bbox_head=other.bbox_head,
        teacher_ckpt=str(weights),
    )
    return student


def _check_teacher(
    name: str, model: ConfigDict, teacher: Teacher, teacher_model: ConfigDict
) -> str:
    """Refuse a teacher of other inputs or priors than the student's; the digest of its weights."""
    require_priors(
        model,
        family_of_config(model).grid,
        teacher_model.bbox_head.type,
        f"the student {name}",
        teacher.grid.plain(),
    )
    theirs, own = preprocessing(teacher_model), preprocessing(model)
    if own != theirs:
        raise UserError(
            f"the student {name} shows its batches to its teacher, so their configs must have "
            f"an equal data_preprocessor: the teacher's is {theirs}, the student's {own}; "
            "make them equal, or have the student learn from the store (section `students`)"
        )
    return weights_digest(teacher.detector.state_dict())
