"""What trainings, evaluations and the teacher pass left behind, read for the comparison."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from pipeline.project.errors import UserError
from pipeline.project.paths import Paths, made_by

T = TypeVar("T")

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
    """A model that was trained and measured.

    Attributes:
        name: as in `Paths.model`.
        method: of a student, or how two networks learnt together.
        labels: `cached`, `online`, `own` for one that learns alone, or `shared` in co-learning.
        assigner: `batched` or `mmdet`: whose code assigns in the step, for labels that are not
            cached.
        config: the mmdet config file.
        metrics: by name; None where there is no object to measure.
        run: what its training did and cost; None for a teacher that was not trained here.
        settings: all of a student, its training's included; those of two seeds differ in the seed.
    """

    name: str
    method: str
    labels: str
    assigner: str
    config: str
    metrics: Mapping[str, float | None]
    run: Run | None
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TeacherPass:
    """What filling the label store cost; no times for a store that came without its report."""

    views: int
    seconds: float | None
    views_per_second: float | None
    bytes_on_disk: int
    bytes_per_view: float


@dataclass(frozen=True)
class Curve:
    """What the steps of a training logged.

    Attributes:
        steps: counted from 1.
        losses: the total loss of each.
        taught: co-learning: the part of the objects that this network taught.
    """

    steps: Sequence[int]
    losses: Sequence[float]
    taught: Sequence[float] = ()


def read_student(name: str, paths: Paths) -> Model:
    """A student, or a network that learnt together with another.

    Raises:
        UserError: its record or its metrics are missing.
    """
    about = ["method", "labels", "assigner", "config", "settings"]
    file = paths.model(name) / "training.json"
    content = _read(file, made_by(name), [*about, *_names(Run)])
    run = _pick(Run, content)
    described = {n: content[n] for n in about}
    return Model(name, **described, metrics=_read_metrics(name, paths), run=run)


def read_teacher(paths: Paths) -> Model:
    """The teacher.

    Raises:
        UserError: its record or its metrics are missing.
    """
    file = paths.teacher / "training.json"
    content = _read(file, "lad teacher", ["assigner", "config"])
    run = None
    if "checkpoint" not in content:
        run = _pick(Run, _read(file, "lad teacher", _names(Run)))
    metrics = _read_metrics("teacher", paths)
    return Model("teacher", "own", "own", content["assigner"], content["config"], metrics, run)


def _read_metrics(name: str, paths: Paths) -> dict[str, float | None]:
    content = _read(paths.metrics(name), f"lad evaluate {name}", ("AP", "AP50", "AP75"))
    # Older ones say -1 where there is no object to measure.
    return {n: None if content.get(n) in (None, -1) else content[n] for n in METRICS}


def read_teacher_pass(paths: Paths) -> TeacherPass:
    """What filling the label store cost.

    Raises:
        UserError: the store's report is missing.
    """
    content = _read(paths.labels_report, "lad labels", _names(TeacherPass))
    return _pick(TeacherPass, content)


def read_curve(name: str, paths: Paths) -> Curve:
    """The curves of a model that was trained here.

    Raises:
        UserError: its record is missing.
    """
    file = paths.model(name) / "training.json"
    curves = _read(file, made_by(name), ["curves"])["curves"]
    return Curve(curves["step"], curves["loss"], curves.get("taught", ()))


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


def _pick(kind: Callable[..., T], content: Mapping[str, Any]) -> T:
    """The record of a kind, out of content that may hold more."""
    return kind(**{name: content[name] for name in _names(kind)})


def _names(kind: Any) -> list[str]:
    return [field.name for field in fields(kind)]
