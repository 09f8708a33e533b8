"""Tables, numbers and notes as a user reads them."""

from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.project.text import duration, markdown_table, note, size


@pytest.mark.parametrize(
    ("columns", "rows", "expected"),
    [
        pytest.param(
            ["name", ">AP"],
            [["lad", "0.345"], ["paa", "0.239"]],
            ["| name | AP |", "|---|--:|", "| lad | 0.345 |", "| paa | 0.239 |"],
            id="numbers to the right",
        ),
        pytest.param([">n"], [], ["| n |", "|--:|"], id="no rows"),
        pytest.param(
            ["a", "b", ">c"],
            [(1, None, 2.5)],
            ["| a | b | c |", "|---|---|--:|", "| 1 | None | 2.5 |"],
            id="cells of any type",
        ),
        pytest.param(
            ["a > b"], [["x"]], ["| a > b |", "|---|", "| x |"], id="the sign inside a head"
        ),
    ],
)
def test_markdown_table(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], expected: list[str]
) -> None:
    assert markdown_table(columns, rows) == expected
    assert markdown_table(columns, iter(rows)) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0.0 s"),
        (0.04, "0.0 s"),
        (25.84, "25.8 s"),
        (59.94, "59.9 s"),
        (60, "1 min 00 s"),
        (61.6, "1 min 02 s"),
        (119.6, "2 min 00 s"),
        (185, "3 min 05 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (3600, "1 h 00 min"),
        (3 * 3600 + 7 * 60 + 59, "3 h 07 min"),
        (100 * 3600, "100 h 00 min"),
    ],
)
def test_duration(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, "0.0 kB"),
        (49, "0.0 kB"),
        (1000, "1.0 kB"),
        (1250.4, "1.3 kB"),
        (999_900, "999.9 kB"),
        (1_000_000, "1.0 MB"),
        (3_140_000, "3.1 MB"),
        (1_000_000_000, "1.0 GB"),
        (1_234_000_000_000, "1234.0 GB"),
    ],
)
def test_size(count: float, expected: str) -> None:
    assert size(count) == expected


def test_a_note_goes_to_the_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    note("a new store is begun")
    assert capsys.readouterr() == ("", "note: a new store is begun\n")
