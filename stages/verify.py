"""The stage `verify`: is the label store whole, and what the teacher says?"""

import click

from pipeline.project.paths import Paths
from pipeline.verification.verify import checked_with, verify_labels

SHOWN = 20


class Sample(click.ParamType):
    """A number of views, or `all`."""

    name = "N|all"

    def convert(
        self, value: str | int | None, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        """None for `all`."""
        if value == "all":
            return None
        if isinstance(value, str) and not value.isdecimal():
            self.fail(f"{value!r} is no number of views, nor 'all'", param, ctx)
        return int(value or 0)


@click.command("verify")
@click.option(
    "--sample",
    type=Sample(),
    default=200,
    show_default=True,
    help="Views that the teacher looks at again.",
)
@click.option("--teacher/--no-teacher", default=True, help="Whether it does.  [it does]")
@click.pass_context
def command(ctx: click.Context, sample: int | None, teacher: bool) -> None:
    """Check the label store: all of it for damage, and some views with the teacher."""
    _, out = ctx.obj
    paths = Paths(out)
    found = verify_labels(paths, sample, teacher)
    here = checked_with()
    click.echo(f"checked with {_versions(here)}")
    if found.made_with and found.made_with != here:
        click.echo(f"made with {_versions(found.made_with)}")
    if found.structure:
        counts = found.structure
        click.echo(
            f"read {counts['rows']} rows of {counts['views']} views in {counts['shards']} shards "
            f"and {counts['buckets']} buckets"
        )
    if found.comparisons:
        click.echo(f"recomputed {found.recomputed_views} views with the teacher:")
    for name, one in found.comparisons.items():
        click.echo(
            f"  {name}: {one.differ} of {one.entries} entries differ, "
            f"largest distance {one.largest:.2g}"
        )
    for notice in found.notices:
        click.echo(f"note: {notice}")
    click.echo(f"wrote {paths.verification}")
    if found.problems:
        for problem in found.problems[:SHOWN]:
            click.echo(f"problem: {problem}", err=True)
        if len(found.problems) > SHOWN:
            click.echo(f"... and {len(found.problems) - SHOWN} more", err=True)
        click.echo(
            f"{found.store} has {len(found.problems)} problems. `lad labels` makes again what is "
            "damaged or unfinished; for the rest remove the store first.",
            err=True,
        )
        ctx.exit(1)
    click.echo(f"{found.store} is as it should be")


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
