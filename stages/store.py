"""`lad store`: what a label store holds."""

from pathlib import Path

import click

from pipeline.inspection.store_info import describe, summarise
from pipeline.project.paths import Paths
from pipeline.store.schema import unfinished


@click.group("store")
def command() -> None:
    """Look into a label store."""


@command.command("info")
@click.argument("path", required=False)
@click.pass_obj
def info(obj: tuple[Path, Path], path: str | None) -> None:
    """Print what the store at PATH holds, a folder or a URL.

    Without PATH it is out/labels.zarr, or what is filled to become that.
    """
    _, out = obj
    whole = Paths(out).labels
    begun = unfinished(whole)
    ours = begun if begun.exists() and not whole.exists() else whole
    click.echo(describe(summarise(path or ours)), nl=False)
