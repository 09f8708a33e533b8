"""The stage `evaluate`: measure one detector."""

from pathlib import Path

import click

from pipeline.evaluation.evaluate import evaluate
from pipeline.project.paths import Paths
from stages.params import load_params


@click.command("evaluate")
@click.argument("name")
@click.pass_obj
def command(obj: tuple[Path, Path], name: str) -> None:
    """Measure a model on the validation images.

    NAME is a student, `teacher`, or NAME.NETWORK for one of two networks that learnt together.
    """
    params_file, out = obj
    params = load_params(params_file)
    metrics = evaluate(name, params.evaluation, Paths(out))
    click.echo("  ".join(f"{key} {metrics[key]:.3f}" for key in ("AP", "AP50", "AP75")))
