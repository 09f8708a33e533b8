"""`lad estimate`: what a teacher pass will write and cost, before it."""

from pathlib import Path

import click

from pipeline.inspection.estimate import describe, estimate
from pipeline.project.params_file import load_params
from pipeline.project.paths import Paths


@click.command("estimate")
@click.option(
    "--config",
    help="Take this config with random weights in place of the teacher: tells times only.",
)
@click.option("--views", default=256, show_default=True, help="Views to probe, about.")
@click.option("--seconds", default=60.0, show_default=True, help="When the probe ends.")
@click.pass_obj
def command(obj: tuple[Path, Path], config: str | None, views: int, seconds: float) -> None:
    """Count views, probe the teacher, and print what the store and the pass will take."""
    params_file, out = obj
    params, paths = load_params(params_file), Paths(out)
    click.echo(describe(estimate(params, paths, config, views, seconds)), nl=False)
