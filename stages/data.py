"""The stage `data`: a checked data set, from a COCO-format one or the built-in generator."""

from pathlib import Path
from typing import Any

import click

from pipeline.ingest.prepare import prepare_data
from pipeline.project.paths import Paths
from stages.params import load_params


@click.command("data")
@click.pass_obj
def command(obj: tuple[Path, Path]) -> None:
    """Check the data set, or make the built-in one."""
    params_file, out = obj
    paths = Paths(out)
    params = load_params(params_file)
    found = prepare_data(params.data, paths)
    for name, split in found.items():
        click.echo(_report(name, split))
    classes = found["train"]["classes"]
    click.echo(f"{len(classes)} classes: {', '.join(classes)}")
    click.echo(f"wrote {' and '.join(str(paths.split(name)) for name in found)}")


def _report(split: str, counts: dict[str, Any]) -> str:
    lines = [
        f"{split}: {counts['images']} images ({counts['empty']} without objects), "
        f"{counts['objects']} objects ({counts['crowd']} crowds)"
    ]
    if counts["reach_outside"]:
        lines.append(f"  {counts['reach_outside']} boxes reach outside their image")
    lines += [f"  left out: {count} x {kind}" for kind, count in counts["dropped"].items()]
    lines += [f"  note: {line}" for line in counts["notes"]]
    return "\n".join(lines)
