"""The parts of `make gpu`, each with its limit; and, as `__main__`, one of them."""

import importlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click

from benchmarks.command_line import importing_mmdet, run
from benchmarks.measure import Figures, figures_section

PARTS = {
    "tests": 75,
    "stages": 120,
    "labels": 45,
    "passes": 105,
    "steps": 85,
    "assignment": 50,
}
"""Seconds that each may take: 8 minutes in all. `benchmarks/gpu/NAME.py` has its `measure`."""


@dataclass
class PartRecord:
    """What a part has found.

    Attributes:
        part: its name.
        text: Markdown.
        figures: plain values.
        failure: why it did not come to its end, or which check failed; nothing else.
    """

    part: str
    text: str = ""
    figures: list[dict[str, Any]] = field(default_factory=list)
    failure: str = ""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {name: value for name, value in asdict(self).items() if name != "text"}

    def add(self, figures: Figures) -> str:
        """Take in some figures; returns their text."""
        section = figures_section(self.part, figures)
        self.text += section
        self.figures.append(figures.plain())
        if figures.failure:
            self.failure = figures.failure
        return section


def read_record(part: str, file: Path, failure: str) -> PartRecord:
    """What a part's process has left.

    Args:
        part: its name.
        file: that it writes after each of its figures.
        failure: of the process, if it had one.
    """
    record = PartRecord(**json.loads(file.read_text())) if file.is_file() else PartRecord(part)
    if failure:
        record.failure = "; ".join(filter(None, [record.failure, failure]))
    if record.failure:
        record.text += f"\n## {part}\n\n**{record.failure}**\n"
        click.echo(f"**{part}: {record.failure}**")
    return record


@click.command()
@click.argument("part")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True)
def command(part: str, file: Path, quick: bool) -> None:
    """Run a part, and write after each of its figures what it has found so far."""
    with importing_mmdet():
        measure = importlib.import_module(f"benchmarks.gpu.{part}").measure
    found: Iterator[Figures] = measure(quick)
    record = PartRecord(part)
    for figures in found:
        click.echo(record.add(figures))
        file.write_text(json.dumps(asdict(record)))


if __name__ == "__main__":
    run(command, "benchmarks.gpu.parts")
