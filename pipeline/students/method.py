"""What a method is: a file in `pipeline/methods`, which says what its students learn of a teacher.

A file there holds one `METHOD`. It may register a distillation of its own and name it.
"""

import importlib
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipeline.students.settings import METHODS, Student

Decider = Literal["own", "teacher"]


@dataclass(frozen=True)
class Method:
    """What a student of the method learns.

    Attributes:
        assignment: who decides which prior learns which object by the head's own losses; None
            where the student has none of these losses.
        distillation: settings of what learns the teacher's soft scores (its type and losses, see
            `pipeline.students.distillation`); None where the method does not learn them.
        min_iou: m, the teacher's boxes count where they overlap an object by more than this; None
            where all count that there are.
    """

    assignment: Decider | None = None
    distillation: dict[str, Any] | None = None
    min_iou: float | None = None

    @property
    def has_teacher(self) -> bool:
        """Whether it learns of a teacher at all."""
        return self.assignment == "teacher" or self.distillation is not None


def load_method(name: str) -> Method:
    """The method of the file `pipeline/methods/NAME.py`."""
    method: Method = importlib.import_module(method_module(name)).METHOD
    return method


def method_of(student: Student) -> Method:
    """The student's method, with what its own settings change."""
    method = load_method(student.method)
    changes: dict[str, Any] = {}
    if student.assignment is not None:
        changes["assignment"] = student.assignment
    if student.min_iou is not None and method.min_iou is not None:
        changes["min_iou"] = student.min_iou
    return replace(method, **changes)


def method_module(name: str) -> str:
    """The full name of a method's module."""
    return f"pipeline.{METHODS.name}.{name}"
