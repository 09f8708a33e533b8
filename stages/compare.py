"""The stage `compare`: all students in a table, with curves."""

from pathlib import Path

import click

from pipeline.params_file import load_params
from pipeline.paths import Paths
from pipeline.report import write_comparison


@click.command("compare")
@click.pass_obj
def command(obj: tuple[Path, Path]) -> None:
    """Put all students in a table, with curves."""
    params_file, out = obj
    click.echo(write_comparison(load_params(params_file), Paths(out)), nl=False)
