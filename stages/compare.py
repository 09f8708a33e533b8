"""The stage `compare`: all students in a table, with curves."""

from pathlib import Path

import click

from pipeline.comparison.report import write_comparison
from pipeline.project.params_file import load_params
from pipeline.project.paths import Paths


@click.command("compare")
@click.pass_obj
def command(obj: tuple[Path, Path]) -> None:
    """Put all students in a table, with curves."""
    params_file, out = obj
    click.echo(write_comparison(load_params(params_file), Paths(out)), nl=False)
