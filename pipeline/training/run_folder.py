"""The folder of a training that runs, from which it goes on where it was interrupted.

It holds mmengine's checkpoints, and a record of all that decides the result. A training with
another record begins anew; the old run then stays beside it until the new one has a checkpoint, so
that a change that was a mistake can be undone.
"""

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

from pipeline.project.digests import differences
from pipeline.project.errors import UserError
from pipeline.project.files import remove_folder, write_whole
from pipeline.project.text import note
from pipeline.training.distributed import is_first

RECORD = "run.json"
LAST = "last_checkpoint"
"""Where mmengine keeps the name of the last checkpoint."""
SHOWN = 3
"""Differences in the line that says why a training begins anew, at most."""


def start_or_continue(folder: Path, decides_result: dict[str, Any]) -> None:
    """Leave a folder that holds a run with this record, or is empty but for the record.

    Args:
        folder: of the run.
        decides_result: plain values; others count by their text.
    """
    record = json.loads(json.dumps(decides_result, default=str))
    found = _read_record(folder)
    if found == record:
        return
    old = _old(folder)
    if _read_record(old) == record:
        remove_folder(folder)
        old.rename(folder)
        note(f"the training in {folder} goes on where it was before the last change")
        return
    if has_checkpoint(folder):
        remove_folder(old)
        folder.rename(old)
        lines = differences(record, found)
        more = f"; and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        note(
            f"the training in {folder} begins anew, as it was begun with others of these: "
            f"{'; '.join(lines[:SHOWN])}{more}; the old run stays in {old} until the new one has "
            "a checkpoint"
        )
    remove_folder(folder)
    write_whole(folder / RECORD, json.dumps(record, indent=1))


def has_checkpoint(folder: Path) -> bool:
    """Whether the run can go on from a checkpoint."""
    return (folder / LAST).is_file()


def newest_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint of a run that is whole, in its own folder; None where there is none yet.

    mmengine's record of the last one has its full path, which leads to another project where this
    one is a copy.

    Raises:
        UserError: all that the run had are damaged or gone.
    """
    if not has_checkpoint(folder):
        return None
    saved = sorted(folder.glob("epoch_*.pth"), key=_epoch, reverse=True)
    last = Path((folder / LAST).read_text().strip()).name
    whole = next((file for file in saved if _is_whole(file)), None)
    if whole is None:
        raise UserError(
            f"no checkpoint of the training in {folder} is whole (the last was {last}); remove "
            f"{folder} to train from the beginning"
        )
    if _epoch(whole) < _epoch(Path(last)) and is_first():
        note(f"{folder / last} is damaged or gone: the training goes on from {whole.name}")
    return whole


def _epoch(file: Path) -> int:
    number = file.stem.removeprefix("epoch_")
    return int(number) if number.isdecimal() else -1


def _is_whole(file: Path) -> bool:
    """Whether it is what was written: torch's files have checksums."""
    try:
        with zipfile.ZipFile(file) as parts:
            return parts.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError):
        return False


def discard_run(folder: Path) -> None:
    """Remove a run whose result is saved, and the one that it replaced."""
    remove_folder(folder)
    discard_old_run(folder)


def discard_old_run(folder: Path) -> None:
    """Remove the run that this one has replaced."""
    remove_folder(_old(folder))


def _old(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.old")


def _read_record(folder: Path) -> Any:
    """The record of a run; nothing where there is none, or what is there is broken."""
    try:
        return json.loads((folder / RECORD).read_text())
    except (OSError, ValueError):
        return {}
