"""`python -m benchmarks`: what everything costs, against the alternatives."""

import json
from pathlib import Path
from typing import Any

import click

from benchmarks.command_line import importing_mmdet, project_options, run
from pipeline.project.paths import Paths
from stages.params import load_params


@click.command()
@project_options
@click.option("--only", multiple=True, metavar="PART", help="A part; repeatable.  [all parts]")
@click.option("--student", help="A student of the method lad.  [the first one]")
@click.option("--large", is_flag=True, help="Large networks with random weights, too.")
@click.option("--quick", is_flag=True, help="Only whether it runs; the figures mean nothing.")
def command(
    params_file: Path,
    out: Path,
    only: tuple[str, ...],
    student: str | None,
    large: bool,
    quick: bool,
) -> None:
    """Measure what each part costs, as ratios to the alternatives, and check them against bars.

    Parts that need the project's teacher or labels are skipped where there are none.
    docs/benchmark.md lists all parts.
    """
    params = load_params(params_file) if params_file.is_file() else None
    # Here, not above: a process that `in_own_process` starts imports this file, whatever it then
    # measures.
    with importing_mmdet():
        from benchmarks.measure import figures_section
        from benchmarks.suite import QUICK, Bench, Effort, run_parts
        from pipeline.project.machine import machine

    bench = Bench(
        params=params,
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
        record["parts"].append({"part": part} | figures.plain())
        section = figures_section(part, figures)
        click.echo(section)
        text += section
        # After each part: an interrupted run keeps what it has found.
        (out / "bench.json").write_text(json.dumps(record, indent=1))
        (out / "bench.md").write_text(text)
    click.echo(f"wrote {out / 'bench.json'} and {out / 'bench.md'}")


if __name__ == "__main__":
    run(command, "benchmarks")
