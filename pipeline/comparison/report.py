"""The comparison of all models: their metrics and costs in a table, over seeds where there are."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pipeline.comparison.plots import Points, plot_ap, plot_ap_over_time, plot_curves
from pipeline.comparison.records import (
    METRICS,
    Curve,
    Model,
    Run,
    TeacherPass,
    read_curve,
    read_student,
    read_teacher,
    read_teacher_pass,
)
from pipeline.project.params import Params
from pipeline.project.paths import Paths


@dataclass(frozen=True)
class Row:
    """Models with the same settings but for their seeds."""

    name: str
    """Of the first."""
    models: tuple[Model, ...]

    def mean(self, metric: str) -> float | None:
        """The mean of a metric, None where there is nothing to measure."""
        values = self.values(metric)
        return fmean(values) if values else None

    def spread(self, metric: str) -> float | None:
        """The standard deviation of a metric over seeds, None for a single one."""
        values = self.values(metric)
        return stdev(values) if len(values) > 1 else None

    def values(self, metric: str) -> list[float]:
        """A metric of each seed."""
        return [v for model in self.models if (v := model.metrics[metric]) is not None]

    @property
    def runs(self) -> list[Run]:
        """What each training cost."""
        return [model.run for model in self.models if model.run]


@dataclass(frozen=True)
class BreakEven:
    """How many students, and epochs of one student, pay back the teacher pass."""

    saved_seconds_per_student: float | None
    students: float
    epochs: float


@dataclass(frozen=True)
class StepRatio:
    """The time of a cached student's step over that of a PAA student's."""

    student: str
    paa: str
    student_seconds: float
    paa_seconds: float
    ratio: float


@dataclass(frozen=True)
class Comparison:
    """All numbers of the report.

    Attributes:
        models: all of them; the teacher is the first, where there is one.
        rows: the same, those in one that differ in their seeds alone.
        teacher_pass: what the label store cost; None where there is none, and nobody needs it.
        break_even: when that is paid back; None without cached students.
        step_ratios: of cached students.
    """

    models: list[Model]
    rows: list[Row]
    teacher_pass: TeacherPass | None
    break_even: BreakEven | None
    step_ratios: list[StepRatio]


def read_comparison(params: Params, paths: Paths) -> Comparison:
    """Read the results of the teacher, the teacher pass, all students and co-learning networks.

    Raises:
        UserError: some are missing.
    """
    students = {name: read_student(name, paths) for name in trained(params)}
    asked = {student.labels_from for student in params.students.values()}
    teacher_pass = None
    if "cached" in asked or paths.labels_report.is_file():
        teacher_pass = read_teacher_pass(paths)
    teachers = []
    if asked & {"cached", "online"} or not students or paths.model("teacher").is_dir():
        teachers = [read_teacher(params, paths)]
    rows = by_seed(params, students)
    return Comparison(
        models=[*teachers, *students.values()],
        rows=[*(Row(teacher.name, (teacher,)) for teacher in teachers), *rows],
        teacher_pass=teacher_pass,
        break_even=break_even(list(students.values()), teacher_pass),
        step_ratios=step_ratios([row.models[0] for row in rows]),
    )


def by_seed(params: Params, models: Mapping[str, Model]) -> list[Row]:
    """Rows of those models whose settings differ in their seeds alone, in the order of the first.

    Args:
        params: the settings.
        models: students and networks that learn together, by name.
    """
    found: dict[str, list[Model]] = {}
    for name, model in models.items():
        found.setdefault(_settings_but_seed(params, name), []).append(model)
    return [Row(models[0].name, tuple(models)) for models in found.values()]


def _settings_but_seed(params: Params, name: str) -> str:
    pair, dot, network = name.partition(".")
    own = params.colearning(pair) if dot else params.student(name)
    training = params.colearning_training(pair) if dot else params.student_training(name)
    return json.dumps(
        [
            own.model_dump(exclude={"training"}),
            training.model_dump(exclude={"seed", "workers", "checkpoint_every"}),
            network,
        ],
        sort_keys=True,
    )


def break_even(students: Sequence[Model], teacher_pass: TeacherPass | None) -> BreakEven | None:
    """When the teacher pass has paid for itself; None without one, or without cached students.

    An online student asks the teacher for every image of every epoch. Each costs a view's share
    of the pass, so the seconds cancel out: what counts is how many views are asked for.
    """
    runs = [s.run for s in students if s.run and s.labels == "cached"]
    if not runs or teacher_pass is None:
        return None
    views_per_student = fmean(run.epochs * run.images for run in runs)
    return BreakEven(
        saved_seconds_per_student=teacher_pass.seconds
        and views_per_student * teacher_pass.seconds / teacher_pass.views,
        students=teacher_pass.views / views_per_student,
        epochs=teacher_pass.views / fmean(run.images for run in runs),
    )


def step_ratios(students: Sequence[Model]) -> list[StepRatio]:
    """Each cached student beside the first PAA student of its config and batch size."""
    paas: dict[tuple[str, int], tuple[str, float]] = {}
    for s in students:
        if s.run and s.method == "paa":
            paas.setdefault((s.config, s.run.batch_size), (s.name, s.run.seconds_per_step))
    ratios = []
    for s in students:
        if s.run and s.labels == "cached" and (s.config, s.run.batch_size) in paas:
            paa, seconds = paas[s.config, s.run.batch_size]
            own = s.run.seconds_per_step
            ratios.append(StepRatio(s.name, paa, own, seconds, own / seconds))
    return ratios


def trained(params: Params) -> list[str]:
    """The names of all students, and of all networks that learn together."""
    return [*params.students, *params.colearners()]


def markdown(comparison: Comparison) -> str:
    """The table, and below it what the teacher pass cost and saved."""
    lines = [
        "| name | method | labels | config | parameters (M) | AP | AP50 | AP75 | s/step "
        "| total time |",
        "|---|---|---|---|--:|--:|--:|--:|--:|--:|",
        *(_line(row) for row in comparison.rows),
    ]
    if any(len(row.models) > 1 for row in comparison.rows):
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
            f"- {r.student} takes {r.ratio:.2f} of the time of {r.paa} "
            f"({r.student_seconds:.3f} against {r.paa_seconds:.3f} s/step)"
        )
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    model, *others = row.models
    rule = "" if model.labels == "cached" else f" ({model.assigner})"
    labels = model.labels + rule if model.run else "-"
    name = f"{row.name} ({len(row.models)} seeds)" if others else row.name
    cells = [name, model.method, labels, Path(model.config).stem]
    cells.append(f"{model.run.parameters / 1e6:.2f}" if model.run else "-")
    for metric in ("AP", "AP50", "AP75"):
        mean, spread = row.mean(metric), row.spread(metric)
        cell = "-" if mean is None else f"{mean:.3f}"
        cells.append(cell if spread is None or metric != "AP" else f"{cell} ± {spread:.3f}")
    runs = row.runs
    cells.append(f"{fmean(run.seconds_per_step for run in runs):.3f}" if runs else "-")
    cells.append(duration(fmean(run.total_seconds for run in runs)) if runs else "-")
    return f"| {' | '.join(cells)} |"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, for people."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def size(count: float) -> str:
    """Bytes, for people."""
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} GB"


def plain(comparison: Comparison) -> dict[str, Any]:
    """The comparison for JSON, with flat models, and rows that name theirs."""
    content = asdict(comparison)
    for model in content["models"]:
        model |= model.pop("metrics") | (
            model.pop("run") or dict.fromkeys([field.name for field in fields(Run)])
        )
    content["rows"] = [
        {
            "name": row.name,
            "models": [model.name for model in row.models],
            "mean": {metric: row.mean(metric) for metric in METRICS},
            "spread": {metric: row.spread(metric) for metric in METRICS},
        }
        for row in comparison.rows
    ]
    return content


def write_comparison(params: Params, paths: Paths) -> str:
    """Write `table.md`, `table.json`, `curves.csv`, and plots.

    `ap.png` has AP by row, `time.png` AP over training time, `curves.png` the losses, and with
    co-learning `taught.png` who taught.

    Returns:
        The content of `table.md`.

    Raises:
        UserError: a model's results are missing.
    """
    comparison = read_comparison(params, paths)
    curves = {name: read_curve(name, paths) for name in trained(params)}
    table = markdown(comparison)
    files = {
        "table.md": table.encode(),
        "table.json": json.dumps(plain(comparison), indent=2).encode() + b"\n",
        "curves.csv": _csv(curves).encode(),
    } | _plots(comparison, curves)
    paths.compare.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        # The whole file or nothing.
        part = paths.compare / f"{name}.part"
        part.write_bytes(content)
        part.replace(paths.compare / name)
    return table


def _plots(comparison: Comparison, curves: Mapping[str, Curve]) -> dict[str, bytes]:
    """PNG files by name. Of several seeds the first has its curves shown."""
    firsts = {row.name: curves[row.name] for row in comparison.rows if row.name in curves}
    losses = {name: (curve.steps, curve.losses) for name, curve in firsts.items()}
    plots = {"curves.png": plot_curves(losses, "Training loss", "total loss")}
    if taught := {name: (c.steps, c.taught) for name, c in firsts.items() if c.taught}:
        plots["taught.png"] = plot_curves(taught, "Who teaches", "part of the objects")
    measured = {row.name: row for row in comparison.rows if row.mean("AP") is not None}
    plots["ap.png"] = plot_ap({name: row.values("AP") for name, row in measured.items()})
    plots["time.png"] = plot_ap_over_time(
        {
            name: Points([run.total_seconds / 60 for run in row.runs], row.values("AP"))
            for name, row in measured.items()
            if row.runs
        }
    )
    return plots


def _csv(curves: Mapping[str, Curve]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["student", "step", "loss"])
    for name, curve in curves.items():
        for step, loss in zip(curve.steps, curve.losses, strict=True):
            writer.writerow([name, step, loss])
    return file.getvalue()
