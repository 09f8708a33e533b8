"""The stage `colearn`: train two networks together."""

from pathlib import Path

import click

from pipeline.colearning.train import train_colearn
from pipeline.project.params_file import load_params
from pipeline.project.paths import Paths


@click.command("colearn")
@click.argument("name")
@click.pass_obj
def command(obj: tuple[Path, Path], name: str) -> None:
    """Train the two networks of the co-learning NAME of params.yaml."""
    params_file, out = obj
    params, paths = load_params(params_file), Paths(out)
    record = train_colearn(name, params, paths)
    click.echo(
        f"trained {record['steps']} steps, {record['seconds_per_step']:.3f} s a step, "
        f"{record['total_seconds']:.0f} s in all"
    )
    if record["fallbacks"]:
        click.echo(f"{record['fallbacks']} times an object's costs allowed no mixture")
    for network in params.colearning(name).networks:
        click.echo(f"wrote {paths.model(f'{name}.{network.name}')}")
