"""Notes, numbers and tables as text for people."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from tqdm import tqdm


def note(text: str) -> None:
    """Tell the user something on the standard error, without breaking a progress bar."""
    tqdm.write(f"note: {text}", file=sys.stderr)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """The lines of a Markdown table.

    Args:
        columns: their heads; one that begins with `>` is aligned right, as numbers are.
        rows: cells in the order of the columns.
    """
    heads = [column.removeprefix(">") for column in columns]
    rules = ["--:" if column.startswith(">") else "---" for column in columns]
    return [_line(heads), f"|{'|'.join(rules)}|", *map(_line, rows)]


def _line(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as `3 min 05 s`."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def size(count: float) -> str:
    """Bytes, as `3.1 MB`."""
    for unit in ("kB", "MB"):
        count /= 1000
        if round(count, 1) < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} GB"
