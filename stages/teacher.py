"""The stage `teacher`: train the teacher, or take a checkpoint."""

from pathlib import Path

import click

from pipeline.project.paths import Paths
from pipeline.teacher.make import make_teacher
from pipeline.training.run import describe_cost
from stages.params import load_params


@click.command("teacher")
@click.pass_obj
def command(obj: tuple[Path, Path]) -> None:
    """Train the teacher, or take a checkpoint that you have."""
    params_file, out = obj
    params, paths = load_params(params_file), Paths(out)
    record = make_teacher(params.teacher, params.views, paths)
    taken = record.get("checkpoint")
    lines = [f"took {taken}"] if taken else describe_cost(record)
    click.echo("\n".join([*lines, f"wrote {paths.teacher}"]))
