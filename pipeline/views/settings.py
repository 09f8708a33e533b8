"""The section `views`: which views exist of every image."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.project.settings import (
    Fraction,
    PositiveInt,
    Section,
    Size,
    require_exactly_one,
)


class ScaleRange(Section):
    """Scales with one bound of the long side and evenly spaced ones of the short side."""

    long: PositiveInt
    short: tuple[PositiveInt, PositiveInt] = Field(
        description="the first and the last", examples=[[640, 800]]
    )
    step: PositiveInt = 32

    @model_validator(mode="after")
    def _whole_steps(self) -> "ScaleRange":
        first, last = self.short
        if first > last or (last - first) % self.step:
            raise ValueError(f"short must lead from {first} to {last} in steps of {self.step}")
        return self

    def scales(self) -> list[Size]:
        """All of them, from small to large."""
        first, last = self.short
        return [(self.long, short) for short in range(first, last + 1, self.step)]


class Scales(Section):
    """Resize scales: a list, or a range."""

    scales: list[Size] | None = Field(
        None,
        min_length=1,
        description="mmdet's resize scale: bounds of the long and short side",
        examples=[[[1333, 800], [1333, 640]]],
    )
    range: ScaleRange | None = None

    @field_validator("scales", "flips", check_fields=False)
    @classmethod
    def _distinct(cls, values: list[Any]) -> list[Any]:
        if values and len(set(values)) < len(values):
            raise ValueError("an entry stands twice")
        return values

    def all_scales(self) -> list[Size]:
        """Those of the list or the range."""
        return self.range.scales() if self.range else self.scales or []


class Crop(Section):
    """A random window of the resized image."""

    size: Size | None = Field(
        None, description="(width, height) pixels, at most the image's", examples=[[640, 640]]
    )
    relative: tuple[Fraction, Fraction] | None = Field(
        None, description="least and greatest share of each side, drawn evenly", examples=[[0.5, 1]]
    )

    @model_validator(mode="after")
    def _one_kind(self) -> "Crop":
        require_exactly_one(self, "size", "relative")
        if self.relative and self.relative[0] > self.relative[1]:
            raise ValueError("relative must be the least and the greatest share, in this order")
        return self


class Sampled(Scales):
    """A view plan that draws views of its own for every image, once and for all."""

    count: PositiveInt = Field(le=2**15 - 1, description="views of an image")
    seed: int = 0
    flip: float = Field(0.5, ge=0, le=1, description="how probable a flip is")
    crop: Crop | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "Sampled":
        require_exactly_one(self, "scales", "range")
        return self


class Views(Scales):
    """The view plan: every scale with every flip, or sampled views."""

    flips: list[Literal["none", "horizontal"]] = Field(
        ["none", "horizontal"], min_length=1, examples=[["none", "horizontal"]]
    )
    sampled: Sampled | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "Views":
        require_exactly_one(self, "scales", "range", "sampled")
        if self.sampled and "flips" in self.model_fields_set:
            raise ValueError("flips go with scales or range; sampled views have sampled.flip")
        return self
