"""`lad store`: what a label store holds."""

from pathlib import Path

import click

from pipeline.inspection.store_info import describe, summarise
from pipeline.project.paths import Paths


@click.group("store")
def command() -> None:
    """Look into a label store."""


@command.command("info")
@click.argument("path", required=False)
@click.pass_obj
def info(obj: tuple[Path, Path], path: str | None) -> None:
    """Print what the store at PATH holds; a folder or a URL, or none for out/labels.zarr."""
    _, out = obj
    click.echo(describe(summarise(path or Paths(out).labels)), nl=False)
