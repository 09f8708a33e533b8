"""The stage `student`: train one student."""

from pathlib import Path

import click

from pipeline.project.params_file import load_params
from pipeline.project.paths import Paths
from pipeline.students.train import train_student


@click.command("student")
@click.argument("name")
@click.pass_obj
def command(obj: tuple[Path, Path], name: str) -> None:
    """Train the student NAME of params.yaml."""
    params_file, out = obj
    paths = Paths(out)
    record = train_student(name, load_params(params_file), paths)
    click.echo(
        f"trained {record['steps']} steps, {record['seconds_per_step']:.3f} s a step, "
        f"{record['total_seconds']:.0f} s in all"
    )
    if record["fallbacks"]:
        click.echo(f"{record['fallbacks']} times an object's costs allowed no mixture")
    click.echo(f"wrote {paths.model(name)}")
