"""`lad bench`: what reads of a store and steps of a student cost."""

import json
from pathlib import Path
from typing import Any

import click

from pipeline.benchmark import StepTimes, machine, time_steps
from pipeline.errors import UserError
from pipeline.params import Labels, Params
from pipeline.params_file import load_params
from pipeline.paths import Paths
from pipeline.store_benchmark import describe, measure_store


@click.command("bench")
@click.option("--student", help="A student with cached labels.  [the first one]")
@click.option("--repeats", default=30, show_default=True, help="Steps per way.")
@click.option("--views", default=128, show_default=True, help="Views of the random store.")
@click.option("--reads", default=300, show_default=True, help="Reads per way, three times.")
@click.pass_obj
def command(
    obj: tuple[Path, Path], student: str | None, repeats: int, views: int, reads: int
) -> None:
    """Time reads of a store like COCO's; and where labels are, steps of a student.

    Reads go through LabelStore and zarr-python. Steps have cached, online and constant labels,
    alternating in one run.
    """
    params_file, out = obj
    params = load_params(params_file) if params_file.is_file() else None
    figures = measure_store(params.labels if params else Labels(), views, reads)
    click.echo(f"\n{machine()}\n{describe(figures)}")
    record: dict[str, Any] = {"machine": machine(), "store": figures.plain()}
    if params and (student or Paths(out).labels.exists()):
        name = student or _first_cached(params)
        times = time_steps(name, params, Paths(out), repeats)
        _print_steps(name, times, repeats)
        record["seconds"] = times.seconds
    else:
        click.echo(f"no steps of a student: there is no label store {Paths(out).labels} yet")
    out.mkdir(parents=True, exist_ok=True)
    file = out / "bench.json"
    file.write_text(json.dumps(record, indent=1))
    click.echo(f"wrote {file}")


def _print_steps(name: str, times: StepTimes, repeats: int) -> None:
    cached = times.median("cached lad")
    click.echo(f"student {name}, medians of {repeats} steps\n")
    click.echo("| labels | s/step | cached lad is |\n|---|---|---|")
    for way in times.seconds:
        median = times.median(way)
        click.echo(f"| {way} | {median:.4f} | {cached / median:.3f} of it |")
    if "cached solad" in times.seconds:
        ratio = times.median("cached solad") / times.median("constant solad")
        click.echo(f"\ncached solad is {ratio:.3f} of constant solad")
    click.echo(
        f"\nloading a view {times.load_seconds * 1e3:.2f} ms, "
        f"its labels {times.attach_seconds * 1e3:.2f} ms more"
    )


def _first_cached(params: Params) -> str:
    names = [name for name, student in params.students.items() if student.method == "lad"]
    if not names:
        raise UserError("no student in params.yaml has the method lad; add one")
    return names[0]
