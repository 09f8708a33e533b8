"""`lad estimate`: what a teacher pass will write and cost, before it."""

from pathlib import Path

import click

from pipeline.inspection.estimate import PassSettings, describe, estimate
from pipeline.project.paths import Paths
from stages.params import load_params


@click.command("estimate")
@click.option(
    "--config",
    help="Take this config with random weights in place of the teacher: tells times only.",
)
@click.option("--views", default=256, show_default=True, help="Views of the sample, about.")
@click.option("--seconds", default=60.0, show_default=True, help="When the sample ends.")
@click.pass_obj
def command(obj: tuple[Path, Path], config: str | None, views: int, seconds: float) -> None:
    """Count views, label a sample of them, and print what the store and the pass will take."""
    params_file, out = obj
    params = load_params(params_file)
    settings = PassSettings(
        params.data,
        params.views,
        params.teacher,
        params.labels,
        params.teacher_pass,
        params.training,
        params.students,
    )
    click.echo(describe(estimate(settings, Paths(out), config, views, seconds)), nl=False)
