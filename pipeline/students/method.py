"""What a method is: a file in `pipeline/methods`, which says what its students learn of a teacher.

A file there holds one `METHOD`. It may register a head of its own and name it in `soft_head`.
"""

import importlib
from dataclasses import dataclass
from typing import Any

from pipeline.students.settings import METHODS


@dataclass(frozen=True)
class Method:
    """What a student of the method learns of a teacher.

    Attributes:
        assignment: whether it learns the teacher's assignment, by LAD's losses.
        soft_head: settings of the head that learns the teacher's soft scores (its type and its
            losses, as `pipeline.students.soft_scores.SoftLADHead` takes them); None where the
            method does not learn them.
        min_iou: m, the teacher's boxes count where they overlap an object by more than this.
    """

    assignment: bool = False
    soft_head: dict[str, Any] | None = None
    min_iou: float = 0.0


def load_method(name: str) -> Method:
    """The method of the file `pipeline/methods/NAME.py`."""
    method: Method = importlib.import_module(method_module(name)).METHOD
    return method


def method_module(name: str) -> str:
    """The full name of a method's module."""
    return f"pipeline.{METHODS.name}.{name}"
