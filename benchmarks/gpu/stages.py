"""The commands of a project on digits, from data to metrics, with the time of each."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from benchmarks.measure import Figures

ROOT = Path(__file__).parents[2]
COMMANDS = (
    *("data", "teacher", "labels", "verify"),
    *("student lad_quarter", "evaluate teacher", "evaluate lad_quarter"),
)
QUICK: dict[str, Any] = {
    "data": {"digits": {"train_images": 16, "val_images": 4, "sizes": [[128, 96]]}},
    "views": {"scales": [[128, 96]]},
    "teacher": {"config": "configs/paa_r18_quarter.py", "training": {"epochs": 1}},
    "training": {"epochs": 1},
    "evaluation": {"scale": [128, 96]},
}
"""What the project's settings are changed to where only whether it runs is asked."""


def measure(quick: bool) -> Iterator[Figures]:
    """Run them one after the other with the demo's settings, until one fails."""
    settings = yaml.safe_load((ROOT / "params.yaml").read_text())
    if quick:
        settings = _merge(settings, QUICK)
    seconds: dict[str, float] = {}
    failure = ""
    with tempfile.TemporaryDirectory() as folder:
        params, out = Path(folder) / "params.yaml", Path(folder) / "out"
        params.write_text(yaml.safe_dump(settings))
        lad = [sys.executable, "-m", "stages.cli", f"--params={params}", f"--out={out}"]
        for command in COMMANDS:
            started = time.perf_counter()
            done = subprocess.run([*lad, *command.split()], cwd=ROOT)
            seconds[command] = round(time.perf_counter() - started, 1)
            if done.returncode:
                failure = f"lad {command} ended with exit status {done.returncode}"
                break
        records = {
            name: json.loads((out / name).read_text())
            for name in ("labels.json", "metrics/teacher.json", "metrics/lad_quarter.json")
            if (out / name).is_file()
        }
    lines = [f"- `lad {command}`: {spent} s" for command, spent in seconds.items()]
    lines += [
        f"- {name}: {found.get('AP', found.get('views_per_second')):.3f} "
        + ("AP" if "AP" in found else "views/s")
        for name, found in records.items()
    ]
    details = {"seconds": seconds, "records": records}
    yield Figures([], "each with its start\n\n" + "\n".join(lines), details, failure)


def _merge(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Settings with some of them changed, at any depth."""
    return settings | {
        name: _merge(settings[name], value)
        if isinstance(value, dict) and isinstance(settings.get(name), dict)
        else value
        for name, value in changes.items()
    }
