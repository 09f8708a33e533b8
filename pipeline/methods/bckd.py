"""BCKD (Yang et al., ICCV 2023, arXiv 2308.14286): the teacher's classes and boxes, too.

With the student's setting `assignment: teacher`, the labels are the teacher's, too.
"""

import pipeline.students.distillation
import pipeline.students.losses  # noqa: F401  both register what the settings name
from pipeline.students.method import Method

METHOD = Method(
    assignment="own",
    distillation=dict(
        type="BCKD",
        kd_cls=dict(type="BinaryDistillationLoss", loss_weight=1.0),
        kd_bbox=dict(type="GIoULoss", loss_weight=4.0),
    ),
)
