"""The soft-label baseline of LAD (WACV 2022, section 4): students learn soft scores."""

import pipeline.students.distillation
import pipeline.students.losses  # noqa: F401  both register what the settings name
from pipeline.students.method import Method

METHOD = Method(
    distillation=dict(
        type="SoftLabelDistillation",
        soft_cls=dict(type="SoftLabelLoss", loss_weight=10.0),
        soft_quality=dict(type="SoftLabelLoss", loss_weight=10.0),
        soft_bbox=dict(type="GIoULoss", loss_weight=1.3),
    ),
    min_iou=0.1,
)
