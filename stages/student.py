"""The stage `student`: train one student, from the store or on its own."""

from pathlib import Path

import click

from pipeline.project.paths import Paths
from pipeline.students.train import train_student
from pipeline.training.run import describe_cost
from stages.params import entry, load_params


@click.command("student")
@click.argument("name")
@click.pass_obj
def command(obj: tuple[Path, Path], name: str) -> None:
    """Train the student NAME of the section `students`."""
    params_file, out = obj
    params, paths = load_params(params_file), Paths(out)
    student = entry("students", params.students, name)
    record = train_student(name, student, params.training, params.views, paths)
    click.echo("\n".join([*describe_cost(record), f"wrote {paths.model(name)}"]))
