"""`python -m benchmarks.gpu`: runs each part in a process of its own, and writes what they find."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import click

from benchmarks.command_line import importing_mmdet, require_parts, run
from benchmarks.gpu.parts import PARTS, PartRecord, read_record
from pipeline.project.errors import UserError


@click.command()
@click.option("--only", multiple=True, metavar="PART", help="A part; repeatable.  [all parts]")
@click.option("--quick", is_flag=True, help="Only whether it runs; always so without a GPU.")
@click.option(
    "--out", type=click.Path(path_type=Path), default="out", help="The folder of results.  [out]"
)
def command(only: tuple[str, ...], quick: bool, out: Path) -> None:
    """Check the project on this machine's GPU, and measure it; eight minutes at most.

    Results are in out/gpu.json and out/gpu.md, and there after each part. The exit status is 1
    where a part did not come to its end, or a check failed; a missed bar alone is no failure.
    """
    require_parts(only, PARTS)
    with importing_mmdet():
        import torch

        from pipeline.project.machine import machine

    quick = quick or not torch.cuda.is_available()
    about = machine() | {"commit": _commit()}
    text = ", ".join(f"{name} {value}" for name, value in about.items()) + "\n"
    if quick:
        text += "\nQuick: whether it runs; the figures mean nothing.\n"
    click.echo(text)
    out.mkdir(parents=True, exist_ok=True)
    records: list[PartRecord] = []
    for part in only or PARTS:
        started = time.perf_counter()
        record = _run_part(part, quick)
        click.echo(f"({part}: {time.perf_counter() - started:.0f} s)\n")
        records.append(record)
        text += record.text
        (out / "gpu.md").write_text(text)
        content = {"machine": about, "quick": quick, "parts": [one.plain() for one in records]}
        (out / "gpu.json").write_text(json.dumps(content, indent=1))
    click.echo(f"wrote {out / 'gpu.json'} and {out / 'gpu.md'}")
    failed = [one.part for one in records if one.failure]
    if failed:
        raise UserError(f"not all is well: {', '.join(failed)}")


def _run_part(part: str, quick: bool) -> PartRecord:
    """A part in a process of its own, whose output is shown as it comes.

    What a broken part leaves on a GPU, and in its memory, ends with its process.
    """
    limit = PARTS[part]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "record.json"
        call = [sys.executable, "-m", "benchmarks.gpu.parts", part, str(file)]
        failure = ""
        # A session of its own: what a part has started ends with it.
        process = subprocess.Popen([*call, *["--quick"] * quick], start_new_session=True)
        try:
            status = process.wait(None if quick else limit)
            failure = f"ended with exit status {status}" if status else ""
        except subprocess.TimeoutExpired:
            failure = f"stopped after its {limit} s"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return read_record(part, file, failure)


def _commit() -> str:
    """Of the working tree, if git knows it."""
    call = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(call, cwd=Path(__file__).parent, capture_output=True, text=True)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    run(command, "benchmarks.gpu")
