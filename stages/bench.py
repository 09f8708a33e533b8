"""`lad bench`: what a student's step costs with cached, online and constant labels."""

import json
from pathlib import Path

import click

from pipeline.benchmark import machine, time_steps
from pipeline.errors import UserError
from pipeline.params import Params, load_params
from pipeline.paths import Paths


@click.command("bench")
@click.option("--student", help="A student with cached labels.  [the first one]")
@click.option("--repeats", default=30, show_default=True, help="Steps per way.")
@click.pass_obj
def command(obj: tuple[Path, Path], student: str | None, repeats: int) -> None:
    """Time a student's step with cached, online and constant labels, alternating in one run."""
    params_file, out = obj
    params, paths = load_params(params_file), Paths(out)
    name = student or _first_cached(params)
    times = time_steps(name, params, paths, repeats)
    cached = times.median("cached lad")
    click.echo(f"\n{machine()}\nstudent {name}, medians of {repeats} steps\n")
    click.echo("| labels | s/step | cached lad is |\n|---|---|---|")
    for way in times.seconds:
        median = times.median(way)
        click.echo(f"| {way} | {median:.4f} | {cached / median:.3f} of it |")
    click.echo(
        f"\nloading a view {times.load_seconds * 1e3:.2f} ms, "
        f"its labels {times.attach_seconds * 1e3:.2f} ms more"
    )
    file = out / "bench.json"
    file.write_text(json.dumps({"machine": machine(), "seconds": times.seconds}, indent=1))
    click.echo(f"wrote {file}")


def _first_cached(params: Params) -> str:
    names = [name for name, student in params.students.items() if student.method != "paa"]
    if not names:
        raise UserError("no student in params.yaml learns from the store; add one with method lad")
    return names[0]
