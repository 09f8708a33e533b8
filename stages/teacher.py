"""The stage `teacher`: train the teacher, or take a checkpoint."""

from pathlib import Path

import click

from pipeline.project.params_file import load_params
from pipeline.project.paths import Paths
from pipeline.teacher.make import make_teacher


@click.command("teacher")
@click.pass_obj
def command(obj: tuple[Path, Path]) -> None:
    """Train the teacher, or take a checkpoint that you have."""
    params_file, out = obj
    paths = Paths(out)
    record = make_teacher(load_params(params_file), paths)
    if "checkpoint" in record:
        click.echo(f"took {record['checkpoint']}")
    else:
        click.echo(
            f"trained {record['steps']} steps, {record['seconds_per_step']:.2f} s a step, "
            f"{record['total_seconds']:.0f} s in all"
        )
    click.echo(f"wrote {paths.teacher}")
