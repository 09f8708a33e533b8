"""`lad bench`: what everything costs, against the alternatives."""

import json
from pathlib import Path
from typing import Any

import click

from benchmarks.measure import table
from benchmarks.suite import PARTS, QUICK, Bench, Effort, run_parts
from pipeline.project.machine import machine
from pipeline.project.params_file import load_params
from pipeline.project.paths import Paths


@click.command("bench")
@click.option("--only", multiple=True, type=click.Choice(list(PARTS)), help="A part; repeatable.")
@click.option("--student", help="A student with cached labels.  [the first one]")
@click.option("--large", is_flag=True, help="Large networks with random weights, too.")
@click.option("--quick", is_flag=True, help="Only whether it runs; the figures mean nothing.")
@click.pass_obj
def command(
    obj: tuple[Path, Path], only: tuple[str, ...], student: str | None, large: bool, quick: bool
) -> None:
    """Measure what each part costs, as ratios to the alternatives, and check them against bars.

    Parts that need the project's teacher or labels are skipped where there are none.
    """
    params_file, out = obj
    bench = Bench(
        params=load_params(params_file) if params_file.is_file() else None,
        paths=Paths(out),
        effort=QUICK if quick else Effort(),
        student=student,
        large=large,
    )
    about = machine()
    record: dict[str, Any] = {"machine": about, "quick": quick, "parts": []}
    text = ", ".join(f"{name} {value}" for name, value in about.items()) + "\n"
    click.echo(text)
    out.mkdir(parents=True, exist_ok=True)
    for part, figures in run_parts(bench, only):
        rows = [row.plain() for row in figures.rows]
        record["parts"].append(
            {"part": part, "note": figures.note, "rows": rows, "details": figures.details}
        )
        section = f"\n## {part}\n\n{figures.note}\n"
        if figures.rows:
            section += f"\n{table(figures.rows)}"
        click.echo(section)
        text += section
        # After each part: an interrupted run keeps what it has found.
        (out / "bench.json").write_text(json.dumps(record, indent=1))
        (out / "bench.md").write_text(text)
    click.echo(f"wrote {out / 'bench.json'} and {out / 'bench.md'}")
