"""Values of annotation files, which tools write as numbers, floats or text."""

import math
import re
from collections import Counter
from typing import Any

from pipeline.data.coco import Record

MOST_EXACT = 2**53
"""From here on, a float may stand for several whole numbers."""

_LARGE = 1e9
"""More than any side of an image."""
_FLAGS = {"0": 0, "1": 1, "false": 0, "true": 1}


class Values:
    """Reads numbers and flags that mean one thing, and counts those of another type.

    Attributes:
        converted: by (key, type) how many values were read that a number should have been.
    """

    def __init__(self) -> None:
        self.converted: Counter[tuple[str, str]] = Counter()

    def whole(self, record: Record, key: str) -> int | None:
        """A whole number of 64 bits, which the label store can hold; None where it is none.

        `7`, `7.0`, `"7"` and `"7.0"` are one; `True`, `7.5`, `"seven"` and `1e300` are not.
        """
        value = record.get(key)
        if type(value) is int:
            return value if -(2**63) <= value < 2**63 else None
        if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,19}\s*", value):
            number = int(value)
            if not -(2**63) <= number < 2**63:
                return None
        else:
            read = _finite(value)
            if read is None or not read.is_integer() or abs(read) >= MOST_EXACT:
                return None
            number = int(read)
        self._count(key, value)
        return number

    def box(self, record: Record) -> list[float] | None:
        """The four finite numbers of `bbox`; None where it is not that."""
        box = record.get("bbox")
        if not isinstance(box, list) or len(box) != 4:
            return None
        if all(type(side) in (int, float) and -_LARGE < side < _LARGE for side in box):
            return box
        read = [number for side in box if (number := _finite(side)) is not None]
        if len(read) < 4:
            return None
        if texts := [side for side in box if isinstance(side, str)]:
            self._count("bbox", texts[0])
            return read
        return box

    def flag(self, record: Record, key: str) -> int | None:
        """0 or 1, where nothing means 0; None where it is something else."""
        value = record.get(key)
        if value is None or type(value) is bool or (type(value) is int and value in (0, 1)):
            return int(value or 0)
        text = "" if value in ([], {}) else str(value).strip().lower()
        flag = _FLAGS.get(text.removesuffix(".0"))
        if flag is not None:
            self._count(key, value)
        return flag

    def notes(self) -> list[str]:
        """A line for each kind of value that was read as a number."""
        return [
            f"{count} x {key} was given as {kind} and read as a number"
            for (key, kind), count in self.converted.items()
        ]

    def _count(self, key: str, value: Any) -> None:
        self.converted[key, {"str": "text"}.get(type(value).__name__, type(value).__name__)] += 1


def shown(value: Any) -> str:
    """A value with its type, for a message, not too long."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def positive(value: Any) -> float | None:
    """A finite number above 0; None where it is none."""
    number = value if type(value) in (int, float) else None
    return number if number is not None and _finite(number) and number > 0 else None


def _finite(value: Any) -> float | None:
    """A finite number, also from text; None where it is none."""
    if type(value) not in (int, float, str) or (isinstance(value, str) and "_" in value):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
