"""What the results of all models say together: over seeds, and what the labels cost and save."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from pipeline.comparison.records import (
    Model,
    Run,
    TeacherPass,
    read_student,
    read_teacher,
    read_teacher_pass,
)
from pipeline.project.paths import Paths


@dataclass(frozen=True)
class Group:
    """Models with the same settings but for their seeds, a row of the table.

    Attributes:
        name: of the first.
        models: one for each seed.
    """

    name: str
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
    """The time of a cached student's step over that of a student of the method `own`."""

    student: str
    own: str
    student_seconds: float
    own_seconds: float
    ratio: float


@dataclass(frozen=True)
class Comparison:
    """All numbers of the report.

    Attributes:
        models: all of them; the teacher is the first, where there is one.
        groups: the same, those in one that differ in their seeds alone.
        teacher_pass: what the label store cost; None where there is none, and nobody needs it.
        break_even: when that is paid back; None without cached students.
        step_ratios: of cached students.
    """

    models: list[Model]
    groups: list[Group]
    teacher_pass: TeacherPass | None
    break_even: BreakEven | None
    step_ratios: list[StepRatio]


def read_comparison(names: Sequence[str], paths: Paths) -> Comparison:
    """Read the results of the teacher, the teacher pass, all students and co-learning networks.

    Args:
        names: of the students and of the networks that learnt together.
        paths: where the results are.

    Raises:
        UserError: some are missing.
    """
    students = [read_student(name, paths) for name in names]
    sources = {student.labels for student in students}
    teacher_pass = None
    if "cached" in sources or paths.labels_report.is_file():
        teacher_pass = read_teacher_pass(paths)
    teachers = []
    if sources & {"cached", "online"} or not students or paths.teacher.is_dir():
        teachers = [read_teacher(paths)]
    groups = by_seed(students)
    return Comparison(
        models=[*teachers, *students],
        groups=[*(Group(teacher.name, (teacher,)) for teacher in teachers), *groups],
        teacher_pass=teacher_pass,
        break_even=break_even(students, teacher_pass),
        step_ratios=step_ratios([group.models[0] for group in groups]),
    )


def by_seed(models: Sequence[Model]) -> list[Group]:
    """Groups of those models whose settings differ in their seeds alone, in order of the first."""
    found: dict[str, list[Model]] = {}
    for model in models:
        found.setdefault(_settings_but_seed(model), []).append(model)
    return [Group(group[0].name, tuple(group)) for group in found.values()]


def _settings_but_seed(model: Model) -> str:
    cost_only = ("seed", "workers", "checkpoint_every")
    training = {k: v for k, v in model.settings["training"].items() if k not in cost_only}
    return json.dumps([model.labels, dict(model.settings) | {"training": training}], sort_keys=True)


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
    """Each cached student beside the first of the method `own` of its config and batch size."""
    alone: dict[tuple[str, int], tuple[str, float]] = {}
    for s in students:
        if s.run and s.method == "own":
            alone.setdefault((s.config, s.run.batch_size), (s.name, s.run.seconds_per_step))
    ratios = []
    for s in students:
        if s.run and s.labels == "cached" and (s.config, s.run.batch_size) in alone:
            own, own_seconds = alone[s.config, s.run.batch_size]
            seconds = s.run.seconds_per_step
            ratios.append(StepRatio(s.name, own, seconds, own_seconds, seconds / own_seconds))
    return ratios
