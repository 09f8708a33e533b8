"""The section `data`: where the data set is."""

from typing import Literal

from pydantic import Field

from pipeline.project.settings import PositiveInt, Section, Seed, Size

BUILT_IN_DATA = "pipeline/ingest/digits.py"
"""The value of `data.source` that stands for the built-in data set."""


class SplitFiles(Section):
    """Where a split of a COCO-format data set lies, inside `data.source`."""

    annotations: str = Field(description="the annotation file")
    images: str = Field(description="the folder that the annotations' file names start from")


class Digits(Section):
    """The built-in data set: scenes of handwritten digits."""

    train_images: PositiveInt = 480
    val_images: PositiveInt = 120
    sizes: list[Size] = Field(
        [(256, 192)],
        min_length=1,
        description="(width, height) in pixels",
        examples=[[[256, 192], [192, 256]]],
    )
    seed: Seed = 0


class Data(Section):
    """The data set."""

    source: str = Field(description=f"{BUILT_IN_DATA}, or the folder of a COCO-format data set")
    train: SplitFiles = SplitFiles(annotations="train.json", images="images")
    val: SplitFiles = SplitFiles(annotations="val.json", images="images")
    problems: Literal["fail", "drop"] = Field(
        "fail", description="what a bad image or annotation does: fail the stage, or drop out"
    )
    digits: Digits = Digits()
