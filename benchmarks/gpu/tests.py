"""The tests marked `gpu`: all of them must pass."""

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.measure import Figures, Ratio

ROOT = Path(__file__).parents[2]
PROCESSES = 4


def measure(quick: bool) -> Iterator[Figures]:
    """Run them; without a GPU they are skipped."""
    # Only the files that have some: others may import what a cluster does not have, such as DVC.
    files = [
        str(file)
        for file in sorted((ROOT / "tests").rglob("test_*.py"))
        if any(word in file.read_text() for word in ("DEVICES", "mark.gpu"))
    ]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        call = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", f"--junitxml={report}"]
        call += ["-p", "no:cacheprovider", "--durations=0", "--durations-min=5", *files]
        if not quick and importlib.util.find_spec("xdist"):
            call += ["-n", str(PROCESSES), "--dist", "loadfile"]
        environment = os.environ | {"OMP_NUM_THREADS": str(PROCESSES)}
        status = subprocess.run(call, cwd=ROOT, env=environment).returncode
        suite = ElementTree.parse(report).getroot().find("testsuite")  # noqa: S314  pytest's own
    assert suite is not None
    found = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    passed = found["tests"] - found["failures"] - found["errors"] - found["skipped"]
    run = found["tests"] - found["skipped"]
    note = f"pytest -m gpu: {passed} passed, {run - passed} failed, {found['skipped']} skipped"
    ratios = [Ratio("gpu tests", passed, "all that ran", run, "tests", at_least=1)] if run else []
    yield Figures(ratios, note, found, "a test failed" if status else "")
