"""What turns a detector into a student that learns from a store, and what can't be."""

import copy
from typing import Any

from mmengine.config import ConfigDict

from pipeline.detector.build import build_detector, without_downloads
from pipeline.heads.family import HeadFamily, find_family
from pipeline.heads.registry import family_of, family_of_model
from pipeline.loading.transforms import LabelTransforms
from pipeline.project.errors import UserError
from pipeline.store.coding import SoftSettings
from pipeline.store.reader import LabelStore
from pipeline.students.assignment import ASSIGNED, AttachAssignment, CheckObjects
from pipeline.students.method import Method, method_of
from pipeline.students.settings import Student
from pipeline.students.soft_scores import AttachSoftScores
from pipeline.students.taught import CachedDetector
from pipeline.views.priors import PriorGrid


def cached_model(model: ConfigDict, student: Student, store: LabelStore) -> ConfigDict:
    """The config of a detector turned into that of a student that learns from a store.

    Args:
        model: of the student.
        student: what it learns, of a teacher.
        store: what it learns from.

    Raises:
        UserError: its head can't learn what the method wants of this teacher.
    """
    method = method_of(student)
    teacher = ConfigDict(store.fingerprint["teacher"]["model"])
    taught = taught_settings(model, teacher, student)
    coding = store.coding if method.distillation else None
    return ConfigDict(type=CachedDetector.__name__, coding=coding, **taught)


def taught_settings(model: ConfigDict, teacher: ConfigDict, student: Student) -> dict[str, Any]:
    """The settings of a `TaughtDetector` but for where its labels come from.

    Args:
        model: of the student.
        teacher: of the teacher, at least its `bbox_head`.
        student: what it learns.

    Raises:
        UserError: its head can't learn what the method wants of this teacher.
    """
    method = method_of(student)
    if (model.get("data_preprocessor") or {}).get("batch_augments"):
        raise UserError(
            f"{student.config} changes images when their labels are already there: remove "
            "data_preprocessor.batch_augments from its model"
        )
    family = family_of_model(model, student.config)
    detector = copy.deepcopy(model)
    if method.assignment == "teacher":
        detector = family.replaying(detector)
    elif method.assignment == "own":
        detector = family.recording(detector)
    return dict(
        detector=detector,
        assignment=method.assignment,
        distillation=_distillation(method, model, teacher, student),
    )


def _distillation(
    method: Method, model: ConfigDict, teacher: ConfigDict, student: Student
) -> dict[str, Any] | None:
    """The settings of the distillation, without what these two heads don't have in common."""
    if not method.distillation:
        return None
    settings = dict(method.distillation)
    if "soft_quality" not in settings:
        return settings
    own, theirs = _quality_of(model), _quality_of(teacher)
    if own == theirs and own is not None:
        return settings
    if own and method.assignment is None:
        raise UserError(
            f"a student of the method {student.method} learns all of the teacher, and its "
            f"{model.bbox_head.type} predicts {_QUALITY[own]}, of which the teacher's "
            f"{teacher.bbox_head.type} says nothing; take the method solad, bckd or lad, or a "
            "head that predicts classes and boxes alone, as GFL"
        )
    return settings | {"soft_quality": None}


_QUALITY = {"iou": "the IoU", "centerness": "a centerness"}


def _quality_of(model: ConfigDict) -> str | None:
    """What the head of a model config predicts beside classes and boxes."""
    family = find_family(model.bbox_head.type)
    assert family, model.bbox_head.type
    return family.quality_of(model.bbox_head)


def student_labels(student: Student, store: LabelStore) -> LabelTransforms:
    """What attaches the labels that a cached student learns.

    Raises:
        UserError: the store holds no soft scores, or none for so low an IoU.
    """
    method = method_of(student)
    transforms: list[dict[str, Any]] = [dict(type=CheckObjects.__name__, store=store.path)]
    meta_keys, after_packing = [], []
    if method.assignment == "teacher":
        transforms.append(dict(type=AttachAssignment.__name__, store=store.path))
        meta_keys.append(ASSIGNED)
    if method.distillation:
        _require_soft_scores(student.method, method.min_iou, store)
        after_packing.append(
            dict(type=AttachSoftScores.__name__, store=store.path, min_iou=method.min_iou)
        )
    return LabelTransforms(transforms, meta_keys, after_packing)


def _require_soft_scores(method: str, min_iou: float | None, store: LabelStore) -> None:
    settings: SoftSettings | None = store.soft_settings()
    if settings is None:
        raise UserError(
            f"the method {method} needs soft scores, and the store {store.path} has none; "
            "set labels.soft: true and run `lad labels --replace`"
        )
    if min_iou is not None and min_iou < settings.min_iou:
        raise UserError(
            f"the student's min_iou must be at least the store's: expected >= {settings.min_iou}, "
            f"got {min_iou}; raise it, or lower labels.min_iou and run `lad labels --replace`"
        )


def family_of_config(model: ConfigDict) -> HeadFamily:
    """The family of a model config's head, asked about a head of it."""
    return family_of(build_detector(without_downloads(model)).bbox_head)


def require_priors(
    model: ConfigDict, grid: PriorGrid, teacher_head: str, who: str, found: dict[str, Any]
) -> None:
    """Refuse a student with other priors than its teacher's.

    Args:
        model: of the student.
        grid: of its head.
        teacher_head: type of the teacher's head.
        who: the student, for the error.
        found: the teacher's priors, as `PriorGrid.plain` gives them.

    Raises:
        UserError: they differ.
    """
    expected = grid.plain()
    if expected != found:
        raise UserError(
            f"{who} can't learn of this teacher: its {model.bbox_head.type} has the priors "
            f"{expected}, the teacher's {teacher_head} {found}; take a head or a config with the "
            "teacher's priors, or make a teacher with the student's"
        )
