"""The stage `compare`: all students in a table, with curves."""

from pathlib import Path

import click

from pipeline.comparison.report import write_comparison
from pipeline.project.paths import Paths
from stages.params import load_params


@click.command("compare")
@click.pass_obj
def command(obj: tuple[Path, Path]) -> None:
    """Put all students in a table, with curves."""
    params_file, out = obj
    params = load_params(params_file)
    networks = [f"{name}.{one.name}" for name, c in params.colearn.items() for one in c.networks]
    names = [*params.students, *params.online, *networks]
    click.echo(write_comparison(names, Paths(out)), nl=False)
