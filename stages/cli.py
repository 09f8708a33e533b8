"""The command `lad`: a command per stage, each imported only when it is called."""

import importlib
import sys
import warnings
from pathlib import Path

import click

from pipeline.errors import UserError

COMMANDS = {
    "data": "Check the data set, or make the built-in one.",
    "teacher": "Train the teacher, or take a checkpoint that you have.",
    "labels": "Run the teacher over every view and write the label store.",
    "student": "Train one student.",
    "evaluate": "Measure one detector on the validation images.",
    "compare": "Put all students in a table, with curves.",
    "bench": "Time a student's step with cached, online and constant labels.",
}


class LazyGroup(click.Group):
    """Lists all commands, and imports the one that is called (mmdet alone takes seconds)."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in the order of the pipeline."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command `cmd_name` of the file `stages/<cmd_name>.py`."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"stages.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=LazyGroup)
@click.option(
    "--params",
    "params_file",
    type=click.Path(path_type=Path),
    default=Path("params.yaml"),
    help="The file of settings.  [params.yaml]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("out"),
    help="The folder of all results.  [out]",
)
@click.pass_context
def lad(ctx: click.Context, params_file: Path, out: Path) -> None:
    """One teacher, many students: Label Assignment Distillation from a label store."""
    ctx.obj = (params_file, out)


def main() -> None:
    """Run `lad`; a user's mistake ends with its message and exit status 1."""
    # mmdet warns of its own deprecated code and of optional packages.
    warnings.filterwarnings("ignore", module=r"mmdet\.")
    try:
        lad()
    except UserError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
