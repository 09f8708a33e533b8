"""The section `evaluation`: how detectors are measured."""

from pydantic import Field

from pipeline.project.settings import PositiveInt, Section, Size


class Evaluation(Section):
    """How detectors are measured."""

    scale: Size = Field(description="mmdet's resize scale of the validation images")
    batch_size: PositiveInt = 16
    workers: int = Field(2, ge=0)
