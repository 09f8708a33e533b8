"""The methods of students: what each turns a PAA into, and where its labels come from."""

import copy
from pathlib import Path
from typing import Any

from mmengine.config import ConfigDict

from pipeline.detector.build import load_model_config, without_downloads
from pipeline.detector.model_folder import CONFIG, WEIGHTS
from pipeline.heads.lad import ObjectnessLADHead
from pipeline.loading.replay import Attachments
from pipeline.online.students import OnlineLAD, OnlineSoftLAD
from pipeline.project.errors import UserError
from pipeline.project.params import Student
from pipeline.store.reader import LabelStore
from pipeline.students.assignment import (
    ASSIGNED,
    AttachAssignment,
    CachedLAD,
    CachedLADHead,
    CheckObjects,
)
from pipeline.students.losses import SoftLabelLoss
from pipeline.students.soft_scores import AttachSoftScores, SoftLAD, SoftLADHead
from pipeline.training.batched_paa import batched_paa
from pipeline.views.priors import PriorGrid

CLASS_WEIGHT = {"soft": 10.0, "solad": 2.0}
MIN_IOU = {"soft": 0.1, "solad": 0.5}
"""Settings of LAD (WACV 2022, section 4) for its soft-label baseline and for SoLAD."""


def student_labels(student: Student, store: LabelStore, grid: PriorGrid) -> Attachments:
    """What attaches the labels that a cached student learns.

    Raises:
        UserError: the store holds no soft scores, or none for so low an overlap.
    """
    check = dict(type=CheckObjects.__name__, store=store.path)
    assignment = dict(type=AttachAssignment.__name__, store=store.path, grid=grid)
    if student.method == "lad":
        return Attachments([check, assignment], [ASSIGNED])
    settings = store.soft_settings()
    if settings is None:
        raise UserError(
            f"the method {student.method} needs soft scores, and the store {store.path} has none; "
            "set labels.soft: true and run `lad labels --replace`"
        )
    min_iou = overlap_threshold(student)
    if min_iou < settings.min_iou:
        raise UserError(
            f"the student's min_iou must be at least the store's: expected >= {settings.min_iou}, "
            f"got {min_iou}; raise it, or lower labels.min_iou and run `lad labels --replace`"
        )
    soft = dict(type=AttachSoftScores.__name__, store=store.path, grid=grid, min_iou=min_iou)
    if student.method == "soft":
        return Attachments([check], after_packing=[soft])
    return Attachments([check, assignment], [ASSIGNED], [soft])


def overlap_threshold(student: Student) -> float:
    """The student's m: its own, or that of its method."""
    return MIN_IOU[student.method] if student.min_iou is None else student.min_iou


def cached_model(model: ConfigDict, method: str, store: LabelStore | None = None) -> ConfigDict:
    """The config of a PAA turned into that of a student that learns from a store.

    Args:
        model: of type PAA.
        method: `lad`, `soft` or `solad`.
        store: what it learns from; `soft` and `solad` need its coding.

    Raises:
        UserError: it would learn IoU predictions from a teacher that makes none.
    """
    model = copy.deepcopy(model)
    model.bbox_head.type = CachedLADHead.__name__
    model.type = CachedLAD.__name__
    if method != "lad":
        assert store is not None
        _require_iou(model, store.fingerprint["teacher"]["model"]["bbox_head"], method)
        model.type = SoftLAD.__name__
        model.bbox_head.update(_soft_head(method), coding=store.coding)
    return model


def online_model(model: ConfigDict, student: Student, teacher: Path) -> ConfigDict:
    """The config of a PAA turned into that of a student that makes its labels in each step.

    Args:
        model: of type PAA.
        student: as in params.yaml, with the method `paa` or with labels `online`.
        teacher: the teacher's model folder; `paa` needs none.

    Raises:
        UserError: it would learn IoU predictions from a teacher that makes none.
    """
    model = copy.deepcopy(model)
    if student.method == "paa":
        return batched_paa(model) if student.assigner == "batched" else model
    model.bbox_head.type = ObjectnessLADHead.__name__
    if student.assigner == "mmdet":
        return _mmdet_lad(model, teacher)
    model.update(type=OnlineLAD.__name__, teacher=str(teacher))
    if student.method != "lad":
        _require_iou(model, load_model_config(teacher / CONFIG).bbox_head, student.method)
        model.update(type=OnlineSoftLAD.__name__, min_iou=overlap_threshold(student))
        model.bbox_head.update(_soft_head(student.method))
    return model


def _soft_head(method: str) -> dict[str, Any]:
    return dict(
        type=SoftLADHead.__name__,
        soft_cls=dict(type=SoftLabelLoss.__name__, loss_weight=CLASS_WEIGHT[method]),
        soft_iou=dict(type=SoftLabelLoss.__name__, loss_weight=10.0),
        soft_bbox=dict(type="GIoULoss", loss_weight=1.3),
        with_assignment=method == "solad",
    )


def _require_iou(model: ConfigDict, teacher_head: dict[str, Any], method: str) -> None:
    """Refuse to learn IoU predictions from a teacher that makes none."""
    if model.bbox_head.get("iou_branch", True) and not teacher_head.get("iou_branch", True):
        raise UserError(
            f"the method {method} learns the teacher's IoU predictions, and this teacher makes "
            "none (iou_branch=False in its config); use the method lad, or a student without "
            "IoU branch"
        )


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
