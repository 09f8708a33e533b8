"""The stage `labels`: the teacher pass."""

from pathlib import Path

import click

from pipeline.project.paths import Paths
from pipeline.store.positives import doubt
from pipeline.teacher_pass.run import fill_store
from stages.params import load_params


@click.command("labels")
@click.option(
    "--replace",
    is_flag=True,
    help="Make a new store where the one there was made from something else, and swap at the end.",
)
@click.option(
    "--spare",
    is_flag=True,
    help="Leave hard links to the finished store beside it, until `lad verify`: DVC, killed before "
    "it has cached a store, removes it.",
)
@click.pass_obj
def command(obj: tuple[Path, Path], replace: bool, spare: bool) -> None:
    """Run the teacher over every view and write the label store; continues what is unfinished."""
    params_file, out = obj
    params, paths = load_params(params_file), Paths(out)
    report = fill_store(params.labels, params.teacher_pass, params.views, paths, replace, spare)
    if report["views_per_second"] is not None:
        click.echo(
            f"{report['views']} views in {report['seconds']:.0f} s, "
            f"{report['views_per_second']:.1f} views/s"
        )
    click.echo(
        f"{report['bytes_per_view']:.0f} bytes a view, "
        f"{report['positives_per_object']:.1f} positives an object"
    )
    if said := doubt(report["objects_with_positives"], report.get("objects") or 0):
        click.echo(f"note: {said}", err=True)
    click.echo(f"wrote {paths.labels}")
