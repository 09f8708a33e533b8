"""The comparison of all models: their metrics and costs in a table, their curves in plots."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.paths import Paths, made_by

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


@dataclass(frozen=True)
class Run:
    """What a training did and cost; `images` are those of one epoch."""

    parameters: int
    epochs: int
    images: int
    batch_size: int
    seconds_per_step: float
    total_seconds: float


@dataclass(frozen=True)
class Model:
    """A row of the table; a metric is None where there is no object to measure."""

    name: str
    method: str
    labels: str
    """`cached`, `online`, `own` for a paa, or `shared` in co-learning."""
    assigner: str
    """`batched` or `mmdet`: what fits mixtures in the step, for labels that are not cached."""
    config: str
    metrics: Mapping[str, float | None]
    run: Run | None
    """None for a teacher that was not trained here."""


@dataclass(frozen=True)
class TeacherPass:
    """What filling the label store cost."""

    views: int
    seconds: float
    views_per_second: float
    bytes_on_disk: int
    bytes_per_view: float


@dataclass(frozen=True)
class BreakEven:
    """How many students, and epochs of one student, pay back the teacher pass."""

    saved_seconds_per_student: float
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
    """All numbers of the report; the teacher is the first model."""

    models: list[Model]
    teacher_pass: TeacherPass
    break_even: BreakEven | None
    step_ratios: list[StepRatio]


@dataclass(frozen=True)
class Curve:
    """What a student's steps logged."""

    steps: Sequence[int]
    losses: Sequence[float]
    """The total loss."""
    taught: Sequence[float] = ()
    """Co-learning: the part of the objects that this network taught."""


def write_comparison(params: Params, paths: Paths) -> str:
    """Write `table.md`, `table.json`, `curves.csv` and `curves.png`.

    With co-learning there is `taught.png`, too: who taught, over the steps.

    Returns:
        The content of `table.md`.

    Raises:
        UserError: a model's results are missing.
    """
    comparison = read_comparison(params, paths)
    curves = {name: _read_curve(name, paths) for name in _names_of_students(params)}
    table = markdown(comparison)
    paths.compare.mkdir(parents=True, exist_ok=True)
    _write(paths.compare / "table.md", table.encode())
    _write(paths.compare / "table.json", json.dumps(_plain(comparison), indent=2).encode() + b"\n")
    _write(paths.compare / "curves.csv", _csv(curves).encode())
    losses = {name: (curve.steps, curve.losses) for name, curve in curves.items()}
    _write(paths.compare / "curves.png", _png(losses, "Training loss", "total loss"))
    if taught := {name: (c.steps, c.taught) for name, c in curves.items() if c.taught}:
        _write(paths.compare / "taught.png", _png(taught, "Who teaches", "part of the objects"))
    return table


def read_comparison(params: Params, paths: Paths) -> Comparison:
    """Read the results of the teacher, the teacher pass, all students and co-learning networks.

    Raises:
        UserError: some are missing.
    """
    students = [_read_student(name, paths) for name in _names_of_students(params)]
    teacher_pass = _read_teacher_pass(paths)
    return Comparison(
        models=[_read_teacher(params, paths), *students],
        teacher_pass=teacher_pass,
        break_even=break_even(students, teacher_pass),
        step_ratios=step_ratios(students),
    )


def break_even(students: Sequence[Model], teacher_pass: TeacherPass) -> BreakEven | None:
    """When the teacher pass has paid for itself; None without cached students.

    An online student asks the teacher for every image of every epoch. Each costs a view's share
    of the pass, so the seconds cancel out: what counts is how many views are asked for.
    """
    runs = [s.run for s in students if s.run and s.labels == "cached"]
    if not runs:
        return None
    views_per_student = fmean(run.epochs * run.images for run in runs)
    return BreakEven(
        saved_seconds_per_student=views_per_student * teacher_pass.seconds / teacher_pass.views,
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


def smooth(values: Sequence[float], window: int) -> np.ndarray:
    """The running mean over `window` (odd, at most all) values, over fewer at both ends."""
    ones = np.ones(window)
    counts = np.convolve(np.ones(len(values)), ones, "same")
    return np.convolve(values, ones, "same") / counts


def markdown(comparison: Comparison) -> str:
    """The table, and below it what the teacher pass cost and saved."""
    lines = [
        "| name | method | labels | config | parameters (M) | AP | AP50 | AP75 | s/step "
        "| total time |",
        "|---|---|---|---|--:|--:|--:|--:|--:|--:|",
        *(_row(model) for model in comparison.models),
    ]
    cost = comparison.teacher_pass
    lines += [
        "",
        f"Teacher pass: {cost.views:,} views in {_duration(cost.seconds)} "
        f"({cost.views_per_second:.1f} views/s); the label store takes "
        f"{_size(cost.bytes_on_disk)}, {cost.bytes_per_view:.0f} bytes a view.",
    ]
    if even := comparison.break_even:
        lines += [
            "",
            "A LAD student that asks the teacher online pays for epochs * images views, each at "
            "the pass's seconds / views: "
            f"about {_duration(even.saved_seconds_per_student)} a student here (mean of the cached "
            "students). The pass is paid back after pass seconds / saved seconds = "
            f"{even.students:.2f} students, or {even.epochs:.1f} epochs of one student.",
        ]
    if comparison.step_ratios:
        lines += ["", "Steps of students with the same config and batch size:", ""]
    for r in comparison.step_ratios:
        lines.append(
            f"- {r.student} takes {r.ratio:.2f} of the time of {r.paa} "
            f"({r.student_seconds:.3f} against {r.paa_seconds:.3f} s/step)"
        )
    return "\n".join(lines) + "\n"


def _row(model: Model) -> str:
    rule = "" if model.labels == "cached" else f" ({model.assigner})"
    labels = model.labels + rule if model.run else "-"
    cells = [model.name, model.method, labels, Path(model.config).stem]
    cells.append(f"{model.run.parameters / 1e6:.2f}" if model.run else "-")
    for metric in ("AP", "AP50", "AP75"):
        value = model.metrics[metric]
        cells.append("-" if value is None else f"{value:.3f}")
    cells.append(f"{model.run.seconds_per_step:.3f}" if model.run else "-")
    cells.append(_duration(model.run.total_seconds) if model.run else "-")
    return f"| {' | '.join(cells)} |"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def _size(count: float) -> str:
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 1000:
            return f"{count:.1f} {unit}"
    return f"{count / 1000:.1f} GB"


def _plain(comparison: Comparison) -> dict[str, Any]:
    """The comparison for JSON, with flat rows."""
    content = asdict(comparison)
    for row in content["models"]:
        row |= row.pop("metrics") | (row.pop("run") or dict.fromkeys(_names(Run)))
    return content


def _csv(curves: Mapping[str, Curve]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["student", "step", "loss"])
    for name, curve in curves.items():
        for step, loss in zip(curve.steps, curve.losses, strict=True):
            writer.writerow([name, step, loss])
    return file.getvalue()


def _png(
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], title: str, label: str
) -> bytes:
    """A plot of the running means of curves, each of steps and values."""
    # A Figure made without pyplot is drawn by Agg: it needs no display and no closing.
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for i, (name, (steps, values)) in enumerate(curves.items()):
        window = len(values) // 50 * 2 + 1
        style = ("-", "--", ":", "-.")[i // 10 % 4]  # There are 10 colours.
        axes.plot(steps, smooth(values, window), style, label=name, linewidth=1.5)
    axes.set(title=f"{title} (running mean)", xlabel="step", ylabel=label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if curves:
        figure.legend(loc="outside right upper", frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def _write(file: Path, content: bytes) -> None:
    """Write the whole file or nothing."""
    part = file.with_name(f"{file.name}.part")
    part.write_bytes(content)
    part.replace(file)


def _read(file: Path, command: str, names: Iterable[str]) -> dict[str, Any]:
    """The JSON object in `file`, which `command` makes and which holds at least `names`."""
    try:
        content: dict[str, Any] = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{file} is missing; run `{command}`") from None
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}); run `{command}` again") from None
    if missing := [name for name in names if name not in content]:
        raise UserError(f"{file} has no {', '.join(missing)}; run `{command}` again")
    return content


def _names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


def _names_of_students(params: Params) -> list[str]:
    return [*params.students, *params.colearners()]


def _read_student(name: str, paths: Paths) -> Model:
    about = ["method", "labels", "assigner", "config"]
    file = paths.model(name) / "training.json"
    content = _read(file, made_by(name), [*about, *_names(Run)])
    run = Run(**{n: content[n] for n in _names(Run)})
    described = {n: content[n] for n in about}
    return Model(name, **described, metrics=_read_metrics(name, paths), run=run)


def _read_teacher(params: Params, paths: Paths) -> Model:
    file = paths.model("teacher") / "training.json"
    run = None
    if "checkpoint" not in _read(file, "lad teacher", []):
        content = _read(file, "lad teacher", _names(Run))
        run = Run(**{n: content[n] for n in _names(Run)})
    metrics = _read_metrics("teacher", paths)
    return Model("teacher", "paa", "own", "mmdet", params.teacher.config, metrics, run)


def _read_metrics(name: str, paths: Paths) -> dict[str, float | None]:
    content = _read(paths.metrics(name), f"lad evaluate {name}", METRICS)
    # pycocotools says -1 where there is no object to measure.
    return {n: None if content[n] in (None, -1) else content[n] for n in METRICS}


def _read_teacher_pass(paths: Paths) -> TeacherPass:
    content = _read(paths.labels_report, "lad labels", _names(TeacherPass))
    return TeacherPass(**{n: content[n] for n in _names(TeacherPass)})


def _read_curve(name: str, paths: Paths) -> Curve:
    file = paths.model(name) / "training.json"
    curves = _read(file, made_by(name), ["curves"])["curves"]
    return Curve(curves["step"], curves["loss"], curves.get("taught", ()))
