"""What the commands outside `lad` have in common with it."""

import io
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import click

from pipeline.project.errors import UserError, did_you_mean
from pipeline.project.memory import keep_freed_memory


def project_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `lad` that name a project: `--params` and `--out`."""
    path = click.Path(path_type=Path)
    out = click.option("--out", type=path, default="out", help="The folder of all results.  [out]")
    params = click.option(
        "--params",
        "params_file",
        type=path,
        default="params.yaml",
        help="The file of settings.  [params.yaml]",
    )
    return params(out(function))


def require_parts(asked: Iterable[str], known: Collection[str]) -> None:
    """Refuse a part of a benchmark that there is none of.

    Raises:
        UserError: it is not known.
    """
    for part in asked:
        if part not in known:
            raise UserError(
                f"no part {part!r}{did_you_mean(part, known)}; there are: {', '.join(known)}"
            )


@contextmanager
def importing_mmdet() -> Iterator[None]:
    """Hides what mmdet prints when it is imported, and what it warns of from then on."""
    # Its own deprecated code, and optional packages.
    warnings.filterwarnings("ignore", module=r"mmdet\.")
    with redirect_stdout(io.StringIO()):
        yield


def run(command: click.Command, package: str) -> None:
    """Run a command; a user's mistake ends with its message and exit status 1.

    Args:
        command: the one.
        package: whose `__main__` it is.
    """
    keep_freed_memory()
    try:
        command(prog_name=f"python -m {package}")
    except UserError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)
