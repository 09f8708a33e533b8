"""The section `students`: networks that learn from the store, or on their own."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.project.settings import Section
from pipeline.training.settings import OWN_TRAINING, Training

METHODS = Path(__file__).parents[1] / "methods"
"""A file here is a method; what it is called is the value of the setting `method`."""
ALONE = "own"
"""The method that learns no teacher's labels."""


def _known_method(name: str) -> str:
    known = sorted(file.stem for file in METHODS.glob("[!_]*.py"))
    if name not in known:
        raise ValueError(f"there is no such method; there are: {', '.join(known)}")
    return name


Method = Annotated[str, AfterValidator(_known_method)]


class Student(Section):
    """A network that is trained from the store, or on its own (`own`)."""

    config: str = Field(description="an mmdet config, with a head of docs/heads.md")
    method: Method = Field(description="a file in pipeline/methods")
    assignment: Literal["own", "teacher"] | None = Field(
        None,
        description="bckd: whose assignment it learns; null is the method's own, the student's",
    )
    assigner: Literal["batched", "mmdet"] = Field(
        "batched", description="of a PAA's rule in the step: ours, or mmdet's, object by object"
    )
    min_iou: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="soft, solad: the teacher's boxes count where they overlap an object by more; "
        "null is the method's own, 0.1 and 0.5",
    )
    training: Training = OWN_TRAINING

    @property
    def labels_from(self) -> str:
        """Where its labels come from: `cached` is the store, `own` its own rule."""
        return "own" if self.method == ALONE else "cached"

    @model_validator(mode="after")
    def _is_possible(self) -> "Student":
        if self.assignment and self.method != "bckd":
            raise ValueError("assignment is for the method bckd; leave it out")
        self.check()
        return self

    def check(self) -> None:
        """Refuse settings that do not go together.

        Raises:
            ValueError: they do not.
        """
        if self.assigner == "mmdet" and self.method != ALONE:
            raise ValueError(
                f"assigner: mmdet is for the method {ALONE}, and for lad among `online` students; "
                "leave it out"
            )
