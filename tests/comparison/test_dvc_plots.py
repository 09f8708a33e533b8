"""What `dvc plots` draws of a comparison, in a real browser."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
import vl_convert
import yaml

from pipeline.comparison.report import write_comparison
from pipeline.project.paths import Paths
from tests.comparison.records import LABELS, save, training
from tests.conftest import ROOT

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no `chromium` on the path"),
]

NAMES = ["own", "lad", "pair.big", "pair.small"]
"""Two students, and two networks that learn together."""

STEPS = 300


class Workspace:
    """A git and DVC repository with the plots and templates of this project, and results."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run("git", "init", "--quiet", ".")
        self.run("dvc", "init", "--quiet")
        shutil.copytree(ROOT / ".dvc/plots", folder / ".dvc/plots")
        plots = yaml.safe_load((ROOT / "dvc.yaml").read_bytes())["plots"]
        (folder / "dvc.yaml").write_text(yaml.safe_dump({"plots": plots}))

    def run(self, program: str, *arguments: str) -> None:
        """Run git or DVC, without the settings of whoever runs the tests."""
        command = ["git", *("-c", "user.name=test"), *("-c", "user.email=test@localhost")]
        if program == "dvc":
            command = [sys.executable, "-m", "dvc"]
        environment = {"DVC_NO_ANALYTICS": "1", "GIT_CONFIG_GLOBAL": os.devnull}
        subprocess.run(
            [*command, *arguments], cwd=self.folder, env=os.environ | environment, check=True
        )

    def compare(self, names: Sequence[str], ap: dict[str, float], checkpoint: bool = False) -> None:
        """Write the comparison of students whose losses differ, and of their teacher."""
        paths = Paths(self.folder / "out")
        shutil.rmtree(paths.root, ignore_errors=True)
        save(paths.labels_report, LABELS)
        for i, name in enumerate(["teacher", *names]):
            steps = list(range(1, STEPS + 1))
            curves = {"step": steps, "loss": [5 + i + 60 / step for step in steps]}
            record = training(name, "lad", {"seed": i}, curves=curves, total_seconds=60.0 * (i + 1))
            if name == "teacher" and checkpoint:
                record["checkpoint"] = "mine.pth"
                del record["curves"]
            save(paths.model(name) / "training.json", record)
            save(paths.metrics(name), {"AP": ap[name], "AP50": ap[name] + 0.2, "AP75": ap[name]})
        write_comparison(names, paths)

    def commit(self) -> None:
        self.run("dvc", "add", "--quiet", "out/compare")
        self.run("git", "add", ".")
        self.run("git", "commit", "--quiet", "--message", "results")

    def plots(self, *arguments: str) -> "Page":
        """The page that `dvc plots` writes, as a browser shows it."""
        self.run("dvc", "plots", *arguments, "--out", "shown")
        return Page(self.folder / "shown/index.html")


class Page(HTMLParser):
    """What a browser without network makes of a page of DVC's.

    Attributes:
        marks: by kind (`line mark`, `bar` or `point`), the description that Vega gives of each
            mark: names and values of its channels.
        paths: of each line mark its path.
        texts: all that can be read.
    """

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.marks: dict[str, list[dict[str, str]]] = {"line mark": [], "bar": [], "point": []}
        self.paths: list[str] = []
        self.texts: list[str] = []
        # The page loads these from the network: Vega-Lite 5.2, older than the oldest of the bundle.
        scripts = r'<script src="https://cdn\.jsdelivr\.net/npm/vega[^"]*"></script>'
        page, count = re.subn(scripts, "", file.read_text())
        assert count == 3
        bundle = vl_convert.javascript_bundle(None, vl_convert.get_vegalite_versions()[0])
        file.with_name("vega.js").write_text(bundle)
        local = file.with_name("local.html")
        local.write_text(page.replace("<title>", '<script src="vega.js"></script><title>'))
        self.feed(shown(local))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        kind = values.get("aria-roledescription")
        if kind not in self.marks:
            return
        channels = [one.rpartition(": ")[::2] for one in values["aria-label"].split("; ")]
        self.marks[kind].append(dict(channels))
        if kind == "line mark":
            self.paths.append(values["d"])

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    def pairs(self, kind: str) -> list[tuple[str, str]]:
        """Student and revision of each mark."""
        return [(mark["student"], mark["revision"]) for mark in self.marks[kind]]


def shown(page: Path) -> str:
    """The document of a page when its scripts have run."""
    flags = ["headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"]
    flags += ["disable-background-networking", "disable-component-update", "disable-sync"]
    flags += [f"user-data-dir={page.parent / 'profile'}", "virtual-time-budget=10000", "dump-dom"]
    command = [CHROMIUM, *(f"--{flag}" for flag in flags), page.as_uri()]
    return subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    ).stdout


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def test_show_draws_each_model(workspace: Workspace) -> None:
    everyone = [*NAMES, "teacher"]
    ap = {name: 0.1 + 0.1 * i for i, name in enumerate(everyone)}
    workspace.compare(NAMES, ap)
    page = workspace.plots("show")
    assert page.pairs("line mark") == [(name, "workspace") for name in everyone]
    # A line has a point more than it has pieces, and no two students' lines are the same.
    assert [path.count("L") for path in page.paths] == [199] * len(everyone)
    assert len(set(page.paths)) == len(everyone)
    bars = {(bar["student"], bar["metric"]): bar["average precision"] for bar in page.marks["bar"]}
    assert {key: float(value) for key, value in bars.items()} == pytest.approx(
        {(n, m): ap[n] + 0.2 * (m == "AP50") for n in everyone for m in ("AP", "AP50", "AP75")}
    )
    points = {point["student"]: point for point in page.marks["point"]}
    assert list(points) == everyone
    # The teacher trained for a minute, each student for one more than that before it.
    minutes = {name: float(point["minutes of training"]) for name, point in points.items()}
    assert minutes == dict(zip(everyone, (2, 3, 4, 5, 1), strict=True))
    assert {name: float(point["AP"]) for name, point in points.items()} == pytest.approx(ap)
    # The legends of curves and points, and the bars' axis.
    for name in everyone:
        assert page.texts.count(name) == 3
    titles = {"Training loss", "AP over training time", "step", "total loss (running mean)"}
    assert titles <= set(page.texts)


def test_diff_draws_each_model_of_both_commits(workspace: Workspace) -> None:
    """A teacher that was not trained here has no curve."""
    ap = dict.fromkeys(["teacher", *NAMES, "new"], 0.5)
    workspace.compare(NAMES, ap, checkpoint=True)
    workspace.commit()
    workspace.compare([*NAMES, "new"], ap, checkpoint=True)
    workspace.commit()
    page = workspace.plots("diff", "HEAD~1", "HEAD")
    students = {(n, "HEAD~1") for n in NAMES} | {(n, "HEAD") for n in [*NAMES, "new"]}
    assert sorted(page.pairs("line mark")) == sorted(students)
    assert sorted(page.pairs("point")) == sorted(students)
    both = {("teacher", "HEAD~1"), ("teacher", "HEAD")}
    assert sorted(page.pairs("bar")) == sorted([*students, *both] * 3)
