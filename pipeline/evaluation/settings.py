"""The section `evaluation`: how detectors are measured."""

from pydantic import Field

from pipeline.project.settings import WORKERS, PositiveInt, Section, Size, Workers


class Evaluation(Section):
    """How detectors are measured."""

    scale: Size = Field(
        description="mmdet's resize scale of the validation images", examples=[[1333, 800]]
    )
    batch_size: PositiveInt = 16
    workers: Workers = WORKERS
