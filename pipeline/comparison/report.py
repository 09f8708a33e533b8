"""The comparison of all models: their metrics and costs in a table, over seeds where there are."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from statistics import fmean
from typing import Any

from pipeline.comparison.compare import Comparison, Group, read_comparison
from pipeline.comparison.plot_data import ap_csv, curves_csv, time_csv
from pipeline.comparison.plots import Points, plot_ap, plot_ap_over_time, plot_curves
from pipeline.comparison.records import METRICS, Curve, Run, read_curve
from pipeline.project.files import write_whole
from pipeline.project.paths import Paths
from pipeline.project.text import duration, markdown_table, size

COLUMNS = (
    *("name", "method", "labels", "config"),
    *(">parameters (M)", ">AP", ">AP50", ">AP75", ">s/step", ">total time"),
)


def markdown(comparison: Comparison) -> str:
    """The table, and below it what the teacher pass cost and saved."""
    lines = markdown_table(COLUMNS, map(_cells, comparison.groups))
    if any(len(group.models) > 1 for group in comparison.groups):
        lines += ["", "Means over seeds, and the standard deviation of AP."]
    if cost := comparison.teacher_pass:
        took = ""
        if cost.seconds and cost.views_per_second:
            took = f" in {duration(cost.seconds)} ({cost.views_per_second:.1f} views/s)"
        lines += [
            "",
            f"Teacher pass: {cost.views:,} views{took}; the label store takes "
            f"{size(cost.bytes_on_disk)}, {cost.bytes_per_view:.0f} bytes a view.",
        ]
    if even := comparison.break_even:
        saved = ""
        if even.saved_seconds_per_student:
            saved = (
                f"about {duration(even.saved_seconds_per_student)} a student here (mean of the "
                "cached students). "
            )
        lines += [
            "",
            "A LAD student that asks the teacher online pays for epochs * images views, each at "
            f"the pass's seconds / views: {saved}The pass is paid back after pass seconds / saved "
            f"seconds = {even.students:.2f} students, or {even.epochs:.1f} epochs of one student.",
        ]
    if comparison.step_ratios:
        lines += ["", "Steps of students with the same config and batch size:", ""]
    for r in comparison.step_ratios:
        lines.append(
            f"- {r.student} takes {r.ratio:.2f} of the time of {r.own} "
            f"({r.student_seconds:.3f} against {r.own_seconds:.3f} s/step)"
        )
    return "\n".join(lines) + "\n"


def _cells(group: Group) -> list[str]:
    model, *others = group.models
    rule = "" if model.labels == "cached" else f" ({model.assigner})"
    labels = model.labels + rule if model.run else "-"
    name = f"{group.name} ({len(group.models)} seeds)" if others else group.name
    cells = [name, model.method, labels, Path(model.config).stem]
    cells.append(f"{model.run.parameters / 1e6:.2f}" if model.run else "-")
    for metric in ("AP", "AP50", "AP75"):
        mean, spread = group.mean(metric), group.spread(metric)
        cell = "-" if mean is None else f"{mean:.3f}"
        cells.append(cell if spread is None or metric != "AP" else f"{cell} ± {spread:.3f}")
    runs = group.runs
    cells.append(f"{fmean(run.seconds_per_step for run in runs):.3f}" if runs else "-")
    cells.append(duration(fmean(run.total_seconds for run in runs)) if runs else "-")
    return cells


def plain(comparison: Comparison) -> dict[str, Any]:
    """The comparison for JSON, with flat models, and rows that name theirs."""
    content = asdict(comparison)
    for model in content["models"]:
        del model["settings"]
        model |= model.pop("metrics") | (
            model.pop("run") or dict.fromkeys([field.name for field in fields(Run)])
        )
    del content["groups"]
    content["rows"] = [
        {
            "name": group.name,
            "models": [model.name for model in group.models],
            "mean": {metric: group.mean(metric) for metric in METRICS},
            "spread": {metric: group.spread(metric) for metric in METRICS},
        }
        for group in comparison.groups
    ]
    return content


def write_comparison(names: Sequence[str], paths: Paths) -> str:
    """Write `table.md`, `table.json`, and plots.

    `ap.png` has AP by row, `time.png` AP over training time, `curves.png` the losses, and with
    co-learning `taught.png` who taught. `ap.csv`, `time.csv` and `curves.csv` have the numbers of
    each model, for `dvc plots`.

    Args:
        names: of the students and of the networks that learnt together.
        paths: where the results are, and where the comparison goes.

    Returns:
        The content of `table.md`.

    Raises:
        UserError: a model's results are missing.
    """
    comparison = read_comparison(names, paths)
    # The teacher, which may have no curve, is last: DVC gives a student one colour in all plots.
    models = sorted(comparison.models, key=lambda model: model.name == "teacher")
    curves = {model.name: read_curve(model.name, paths) for model in models if model.run}
    table = markdown(comparison)
    files = {
        "table.md": table.encode(),
        "table.json": json.dumps(plain(comparison), indent=2).encode() + b"\n",
        "curves.csv": curves_csv(curves).encode(),
        "ap.csv": ap_csv(models).encode(),
        "time.csv": time_csv(models).encode(),
    } | _plots(comparison, curves)
    for name, content in files.items():
        write_whole(paths.compare / name, content)
    return table


def _plots(comparison: Comparison, curves: Mapping[str, Curve]) -> dict[str, bytes]:
    """PNG files by name. Of several seeds the first has its curves shown."""
    groups = comparison.groups
    firsts = {group.name: curves[group.name] for group in groups if group.name in curves}
    losses = {name: (curve.steps, curve.losses) for name, curve in firsts.items()}
    plots = {"curves.png": plot_curves(losses, "Training loss", "total loss")}
    if taught := {name: (c.steps, c.taught) for name, c in firsts.items() if c.taught}:
        plots["taught.png"] = plot_curves(taught, "Who teaches", "part of the objects")
    measured = {group.name: group for group in groups if group.mean("AP") is not None}
    plots["ap.png"] = plot_ap({name: group.values("AP") for name, group in measured.items()})
    plots["time.png"] = plot_ap_over_time(
        {
            name: Points([run.total_seconds / 60 for run in group.runs], group.values("AP"))
            for name, group in measured.items()
            if group.runs
        }
    )
    return plots
