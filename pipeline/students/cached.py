"""What turns a PAA into a student that learns from a store."""

import copy
from typing import Any

from mmengine.config import ConfigDict

from pipeline.loading.transforms import LabelTransforms
from pipeline.project.errors import UserError
from pipeline.store.reader import LabelStore
from pipeline.students.assignment import (
    ASSIGNED,
    AttachAssignment,
    CachedLAD,
    CachedLADHead,
    CheckObjects,
)
from pipeline.students.method import load_method
from pipeline.students.settings import Student
from pipeline.students.soft_scores import AttachSoftScores, SoftLAD


def cached_model(model: ConfigDict, method_name: str, store: LabelStore) -> ConfigDict:
    """The config of a PAA turned into that of a student that learns from a store.

    Args:
        model: of type PAA.
        method_name: one that learns of a teacher.
        store: what it learns from.

    Raises:
        UserError: it would learn IoU predictions from a teacher that makes none.
    """
    method = load_method(method_name)
    model = copy.deepcopy(model)
    model.bbox_head.type = CachedLADHead.__name__
    model.type = CachedLAD.__name__
    if method.soft_head:
        require_iou(model, store.fingerprint["teacher"]["model"]["bbox_head"], method_name)
        model.type = SoftLAD.__name__
        model.bbox_head.update(
            method.soft_head, with_assignment=method.assignment, coding=store.coding
        )
    return model


def student_labels(student: Student, store: LabelStore) -> LabelTransforms:
    """What attaches the labels that a cached student learns.

    Raises:
        UserError: the store holds no soft scores, or none for so low an IoU.
    """
    method = load_method(student.method)
    check = dict(type=CheckObjects.__name__, store=store.path)
    transforms, meta_keys, after_packing = [check], [], []
    if method.assignment:
        transforms.append(dict(type=AttachAssignment.__name__, store=store.path))
        meta_keys.append(ASSIGNED)
    if method.soft_head:
        min_iou = min_iou_of(student)
        _require_soft_scores(student.method, min_iou, store)
        after_packing.append(
            dict(type=AttachSoftScores.__name__, store=store.path, min_iou=min_iou)
        )
    return LabelTransforms(transforms, meta_keys, after_packing)


def min_iou_of(student: Student) -> float:
    """The student's m: its own, or that of its method."""
    return load_method(student.method).min_iou if student.min_iou is None else student.min_iou


def _require_soft_scores(method: str, min_iou: float, store: LabelStore) -> None:
    settings = store.soft_settings()
    if settings is None:
        raise UserError(
            f"the method {method} needs soft scores, and the store {store.path} has none; "
            "set labels.soft: true and run `lad labels --replace`"
        )
    if min_iou < settings.min_iou:
        raise UserError(
            f"the student's min_iou must be at least the store's: expected >= {settings.min_iou}, "
            f"got {min_iou}; raise it, or lower labels.min_iou and run `lad labels --replace`"
        )


def require_iou(model: ConfigDict, teacher_head: dict[str, Any], method: str) -> None:
    """Refuse to learn IoU predictions from a teacher that makes none.

    Args:
        model: of the student.
        teacher_head: config of the teacher's head.
        method: of the student, for the error.

    Raises:
        UserError: the student has an IoU branch and the teacher has none.
    """
    if model.bbox_head.get("iou_branch", True) and not teacher_head.get("iou_branch", True):
        raise UserError(
            f"the method {method} learns the teacher's IoU predictions, and this teacher makes "
            "none (iou_branch=False in its config); use the method lad, or a student without "
            "IoU branch"
        )
