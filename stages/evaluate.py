"""The stage `evaluate`: measure one detector."""

from pathlib import Path

import click

from pipeline.evaluation.evaluate import evaluate
from pipeline.project.params_file import load_params
from pipeline.project.paths import Paths


@click.command("evaluate")
@click.argument("name")
@click.pass_obj
def command(obj: tuple[Path, Path], name: str) -> None:
    """Measure a model on the validation images.

    NAME is a student, `teacher`, or NAME.NETWORK for one of two networks that learnt together.
    """
    params_file, out = obj
    params = load_params(params_file)
    params.require_model(name)
    metrics = evaluate(name, params, Paths(out))
    click.echo("  ".join(f"{key} {metrics[key]:.3f}" for key in ("AP", "AP50", "AP75")))
