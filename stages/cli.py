"""The command `lad`: a command per stage, each imported only when it is called."""

import ctypes
import importlib
import io
import os
import signal
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from pipeline.project.errors import UserError
from pipeline.project.memory import keep_freed_memory

_PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal that this process gets when its parent ends."""

COMMANDS = {
    "data": "Check the data set, or make the built-in one.",
    "teacher": "Train the teacher, or take a checkpoint that you have.",
    "estimate": "Print what the teacher pass will write and cost, before it.",
    "labels": "Run the teacher over every view and write the label store.",
    "verify": "Check the label store, and some of its views with the teacher.",
    "store": "Print what a label store holds (`lad store info`).",
    "student": "Train one student from the store, or on its own.",
    "online": "Train one student with its teacher in memory.",
    "colearn": "Train two networks together.",
    "evaluate": "Measure one detector on the validation images.",
    "compare": "Put all students in a table, with curves.",
}


MANY_PROCESSES = ("teacher", "student", "online", "colearn")
"""The commands that `torchrun` may start several processes of."""


class LazyGroup(click.Group):
    """Lists all commands, and imports the one that is called (mmdet alone takes seconds)."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in the order of the pipeline."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command `cmd_name` of the file `stages/<cmd_name>.py`."""
        if cmd_name not in COMMANDS:
            return None
        # mmdet prints what it has no use for.
        with redirect_stdout(io.StringIO()):
            command: click.Command = importlib.import_module(f"stages.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Call the command; Ctrl-C ends it with one line."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            _stop(signal.SIGINT)

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
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _under_torchrun(ctx.invoked_subcommand)


def _under_torchrun(command: str | None) -> None:
    """One process of several: the first one prints.

    Raises:
        UserError: the command is no training.
    """
    if command not in MANY_PROCESSES:
        raise UserError(
            f"torchrun is for `lad {'`, `lad '.join(MANY_PROCESSES)}`; run `lad {command}` without"
        )
    if os.environ["RANK"] != "0":
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115


def main() -> None:
    """Run `lad`; a user's mistake ends with its message and exit status 1.

    Ctrl-C and SIGTERM end it with the status that shells give, 128 + signal.
    """
    _die_with_dvc()
    keep_freed_memory()
    signal.signal(signal.SIGTERM, _stop)
    # mmdet warns of its own deprecated code and of optional packages.
    warnings.filterwarnings("ignore", module=r"mmdet\.")
    try:
        lad()
    except UserError as error:
        _end_progress_bars()
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


def _end_progress_bars() -> None:
    """Leave progress bars as they are, so that what follows begins on a line of its own."""
    from tqdm import tqdm

    for bar in list(getattr(tqdm, "_instances", ())):
        bar.close()


def _stop(number: int, frame: FrameType | None = None) -> NoReturn:
    _end_progress_bars()
    click.echo(f"\nStopped by {signal.Signals(number).name}; run it again to go on.", err=True)
    sys.exit(128 + number)


def _die_with_dvc() -> None:
    """Have this process end with the `dvc` that started it, on Linux.

    After a kill, the next `dvc repro` would start the stage a second time beside the first.
    """
    if "DVC_STAGE" not in os.environ or sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        sys.exit(1)


if __name__ == "__main__":
    main()
