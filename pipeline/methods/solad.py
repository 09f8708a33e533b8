"""SoLAD (WACV 2022, section 4): LAD's losses and the soft-label losses, the classes' at a fifth."""

import pipeline.students.losses
import pipeline.students.soft_scores  # noqa: F401  registers what the head's settings name
from pipeline.students.method import Method

METHOD = Method(
    assignment=True,
    soft_head=dict(
        type="SoftLADHead",
        soft_cls=dict(type="SoftLabelLoss", loss_weight=2.0),
        soft_iou=dict(type="SoftLabelLoss", loss_weight=10.0),
        soft_bbox=dict(type="GIoULoss", loss_weight=1.3),
    ),
    min_iou=0.5,
)
