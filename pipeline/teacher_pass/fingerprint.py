"""What the labels of a teacher pass depend on, and what made them."""

from dataclasses import asdict, fields
from importlib.metadata import version
from typing import Any

import torch
from mmdet.datasets.transforms import Resize
from mmengine.config import ConfigDict

from pipeline.data.dataset import CheckedSplit
from pipeline.detector.build import preprocessing
from pipeline.detector.checkpoint import weights_digest
from pipeline.project.code import code_digest
from pipeline.store.coding import SoftSettings
from pipeline.store.fingerprint import Fingerprint, label_parts
from pipeline.teacher_pass.teacher import Numerics, Teacher
from pipeline.views.plan import ViewPlan
from pipeline.views.priors import PaddedViews

VERSIONS = (
    "torch",
    "torchvision",
    "onedl-mmengine",
    "onedl-mmdetection",
    "onedl-mmcv",
    "opencv-python-headless",
    "numpy",
)
"""The libraries whose rounding a label can depend on."""


def labels_fingerprint(
    train: CheckedSplit,
    teacher: Teacher,
    model: ConfigDict,
    plan: ViewPlan,
    soft: SoftSettings | None,
) -> Fingerprint:
    """Everything that the labels depend on.

    Of the teacher's config nothing counts on where its weights come from (they are part of it
    themselves) or how boxes are selected afterwards.

    Args:
        train: the training split.
        teacher: that labels it.
        model: the teacher's mmdet config.
        plan: the view plan.
        soft: how soft scores are stored, if at all.
    """
    resize = Resize(scale=(1, 1), keep_ratio=True)
    given = preprocessing(model)
    numerics: dict[str, Any] = {"device": teacher.device.type} | asdict(teacher.numerics)
    if teacher.device.type == "cuda":
        numerics["tf32"] = [
            torch.backends.cuda.matmul.allow_tf32,
            torch.backends.cudnn.allow_tf32,
        ]
    views = PaddedViews(plan, teacher.grid, given["pad_size_divisor"])
    return label_parts(train, views) | {
        "teacher": {
            "weights": weights_digest(teacher.detector.state_dict()),
            "model": {
                part: _what_decides(model[part].to_dict())
                for part in ("backbone", "neck", "bbox_head")
            },
        },
        "preprocessing": model.data_preprocessor.to_dict()
        | given
        | {"resize": {"backend": resize.backend, "interpolation": resize.interpolation}},
        "coding": soft.model_dump() if soft else None,
        "assignment": model.train_cfg.to_dict(),
        "numerics": numerics,
    }


def _what_decides(config: Any) -> Any:
    if isinstance(config, dict):
        others = {"init_cfg", "test_cfg", "train_cfg"}
        return {k: _what_decides(v) for k, v in config.items() if k not in others}
    return config


def code_and_versions() -> dict[str, Any]:
    """What a store is made with: an unfinished one is continued with the same alone."""
    return {
        "code": code_digest("pipeline.teacher_pass.run"),
        "versions": {name: version(name) for name in VERSIONS},
    }


def numerics_of(fingerprint: Fingerprint) -> Numerics:
    """How the network computed that made the labels with this fingerprint."""
    return Numerics(*(fingerprint["numerics"][field.name] for field in fields(Numerics)))
