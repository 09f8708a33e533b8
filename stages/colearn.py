"""The stage `colearn`: train two networks together."""

from pathlib import Path

import click

from pipeline.colearning.train import train_colearn
from pipeline.project.paths import Paths
from pipeline.training.run import describe_cost
from stages.params import entry, load_params


@click.command("colearn")
@click.argument("name")
@click.pass_obj
def command(obj: tuple[Path, Path], name: str) -> None:
    """Train the two networks of the co-learning NAME of params.yaml."""
    params_file, out = obj
    params, paths = load_params(params_file), Paths(out)
    settings = entry("colearn", params.colearn, name)
    record = train_colearn(name, settings, params.training, params.views, paths)
    wrote = [f"wrote {paths.model(f'{name}.{one.name}')}" for one in settings.networks]
    click.echo("\n".join([*describe_cost(record), *wrote]))
