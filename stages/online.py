"""The stage `online`: train one student that has its teacher in memory."""

from pathlib import Path

import click

from pipeline.online.train import train_online_student
from pipeline.project.paths import Paths
from pipeline.training.run import describe_cost
from stages.params import entry, load_params


@click.command("online")
@click.argument("name")
@click.pass_obj
def command(obj: tuple[Path, Path], name: str) -> None:
    """Train the student NAME of the section `online`, whose teacher labels each batch."""
    params_file, out = obj
    params, paths = load_params(params_file), Paths(out)
    student = entry("online", params.online, name)
    record = train_online_student(name, student, params.training, params.views, paths)
    click.echo("\n".join([*describe_cost(record), f"wrote {paths.model(name)}"]))
