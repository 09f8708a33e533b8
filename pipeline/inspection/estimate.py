"""What a teacher pass will write and cost, and when it pays."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.comparison.compare import BreakEven, break_even
from pipeline.comparison.records import Model, Run
from pipeline.comparison.records import TeacherPass as PassCost
from pipeline.ingest.settings import Data
from pipeline.inspection.sample_pass import (
    BatchCost,
    find_data,
    find_teacher,
    index_bytes,
    read_images,
    sample_pass,
)
from pipeline.project.files import bytes_on_disk
from pipeline.project.machine import machine
from pipeline.project.paths import Paths
from pipeline.project.text import duration, markdown_table
from pipeline.store.schema import ASSIGNED_GT, Bucket, StoreLayout, plan_store
from pipeline.store.writer import StoreWriter
from pipeline.students.settings import Student
from pipeline.teacher.settings import TeacherSettings
from pipeline.teacher_pass.settings import Labels, TeacherPass
from pipeline.training.settings import Training
from pipeline.views.plan import ViewPlan, view_plan
from pipeline.views.priors import PaddedViews
from pipeline.views.settings import Views

ENOUGH = 8
"""Views of a bucket whose mean stands for the bucket; with fewer, that of all views by prior."""
SHOWN = 12
"""Buckets in the table, at most."""


@dataclass(frozen=True)
class BucketEstimate:
    """What a view of a bucket will take.

    Attributes:
        bucket: its padded size, views and priors.
        sampled: how many of its views the sample has.
        bytes_on_disk: by array, indexes of shards included; empty where not known.
        seconds: None where not known.
    """

    bucket: Bucket
    sampled: int
    bytes_on_disk: dict[str, float]
    seconds: float | None


@dataclass(frozen=True)
class Estimate:
    """What a teacher pass will write and cost.

    Attributes:
        images: number of images.
        objects: number of their objects.
        plan: the view plan.
        buckets: in order of height and width.
        overhead: bytes of the store before any shard is written.
        teacher: what the sample was made with.
        missing: what is not known, and why.
        pays: None without a cached student; its seconds are 0 where the time is not known.
    """

    images: int
    objects: int
    plan: ViewPlan
    buckets: list[BucketEstimate]
    overhead: int
    teacher: str
    missing: list[str]
    pays: BreakEven | None

    @property
    def views(self) -> int:
        """The number of views."""
        return sum(one.bucket.rows for one in self.buckets)

    @property
    def seconds(self) -> float | None:
        """Of the whole pass; None where not known."""
        return _pass_seconds(self.buckets)

    @property
    def assignment_bytes(self) -> float | None:
        """Of all assignments; None where not known."""
        sizes = [one.bytes_on_disk.get(ASSIGNED_GT) for one in self.buckets]
        return _total(sizes, self.buckets)

    @property
    def soft_bytes(self) -> float | None:
        """Of all soft scores; None where not known, or not wanted."""
        sizes = [
            sum(size for name, size in one.bytes_on_disk.items() if name != ASSIGNED_GT) or None
            for one in self.buckets
        ]
        return _total(sizes, self.buckets)

    @property
    def total_bytes(self) -> float | None:
        """Of the whole store, as far as its arrays are known; None where no size is."""
        if self.assignment_bytes is None:
            return None
        return self.assignment_bytes + (self.soft_bytes or 0) + self.overhead


def _total(each: Sequence[float | None], buckets: Sequence[BucketEstimate]) -> float | None:
    known = [value for value in each if value is not None]
    if len(known) < len(buckets):
        return None
    return sum(value * one.bucket.rows for value, one in zip(known, buckets, strict=True))


def _pass_seconds(buckets: Sequence[BucketEstimate]) -> float | None:
    return _total([one.seconds for one in buckets], buckets)


@dataclass(frozen=True)
class PassSettings:
    """The sections of the settings that a pass depends on, and those who will learn from it."""

    data: Data
    views: Views
    teacher: TeacherSettings
    labels: Labels
    teacher_pass: TeacherPass
    training: Training
    students: Mapping[str, Student]


def estimate(
    settings: PassSettings, paths: Paths, config: str | None, views: int, seconds: float
) -> Estimate:
    """Count views, and have a teacher label some of them to see what they cost.

    Without a trained teacher its config is used with random weights. That tells the time, and about
    the size of assignments: random boxes are about the priors, so that their IoU with the objects
    decides. It tells nothing of soft scores.

    Args:
        settings: of the pass.
        paths: where data and teacher are, if they are there yet.
        config: an mmdet config to take with random weights in place of the teacher.
        views: of the sample, about.
        seconds: after which the sample ends.

    Raises:
        UserError: there is no annotation file, or a config, checkpoint or teacher is broken.
    """
    missing = []
    labels = settings.labels
    with find_data(settings.data, paths) as train:
        images = read_images(train)
        teacher = find_teacher(settings.teacher, labels, paths, train, config)
        plan = view_plan(settings.views)
        layout = plan_store(
            images,
            PaddedViews(plan, teacher.teacher.grid, teacher.divisor),
            settings.teacher_pass.shard_rows,
            len(train.classes) if labels.soft else 0,
        )
        costs: list[BatchCost] = []
        file = train.images_folder / images[0].file_name
        if file.is_file():
            costs = sample_pass(
                teacher, train, images, plan, labels, settings.teacher_pass, views, seconds
            )
        else:
            missing.append(f"times and sizes: there is no image {file} to show the teacher")
    if labels.soft and not teacher.trained:
        missing.append("size of soft scores: only a trained teacher can tell")
        costs = [_without_soft(cost) for cost in costs]
    buckets = _spread(layout, costs)
    return Estimate(
        images=len(images),
        objects=sum(len(image.objects.labels) for image in images),
        plan=plan,
        buckets=buckets,
        overhead=_overhead(layout),
        teacher=teacher.name,
        missing=missing,
        pays=_pays(settings, len(images), len(plan), _pass_seconds(buckets) or 0),
    )


def _without_soft(cost: BatchCost) -> BatchCost:
    return BatchCost(cost.padded, cost.views, cost.seconds, {ASSIGNED_GT: cost.sizes[ASSIGNED_GT]})


def _spread(layout: StoreLayout, costs: Sequence[BatchCost]) -> list[BucketEstimate]:
    """From the views of the sample to those of all buckets, in proportion to their priors."""
    if not costs:
        return [BucketEstimate(bucket, 0, {}, None) for bucket in layout.buckets]
    priors = {bucket.padded: bucket.priors for bucket in layout.buckets}
    # The first batch waits for processes to start and memory to come.
    timed = costs[1:] or costs
    all_seconds = _per(timed, [cost.seconds for cost in timed], priors)
    found = []
    for bucket in layout.buckets:
        own = [cost for cost in costs if cost.padded == bucket.padded]
        sampled = sum(cost.views for cost in own)
        some = own if sampled >= ENOUGH else costs
        own_timed = [cost for cost in timed if cost.padded == bucket.padded]
        seconds = all_seconds
        if sum(cost.views for cost in own_timed) >= ENOUGH:
            seconds = _per(own_timed, [cost.seconds for cost in own_timed], priors)
        found.append(
            BucketEstimate(
                bucket,
                sampled,
                {
                    name: bucket.priors * _per(some, [cost.sizes[name] for cost in some], priors)
                    + bucket.shards(layout.shard_rows)
                    * index_bytes(layout.rows_in_shard(bucket))
                    / bucket.rows
                    for name in costs[0].sizes
                },
                bucket.priors * seconds,
            )
        )
    return found


def _per(
    costs: Sequence[BatchCost], values: Sequence[float], priors: dict[tuple[int, int], int]
) -> float:
    """What a prior of a view costs."""
    return sum(values) / sum(cost.views * priors[cost.padded] for cost in costs)


def _overhead(layout: StoreLayout) -> int:
    """Bytes of the store before any shard is written: metadata, view table, flags."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.zarr"
        StoreWriter.create(path, layout, {})
        return bytes_on_disk(path)


def _pays(settings: PassSettings, images: int, plan: int, seconds: float) -> BreakEven | None:
    """By the rule of the comparison, for the students of the settings."""
    students = []
    for name, student in settings.students.items():
        training = student.training.over(settings.training)
        run = Run(0, training.epochs, images, training.batch_size, 0.0, 0.0)
        about = (student.method, student.labels_from, student.assigner, student.config)
        students.append(Model(name, *about, metrics={}, run=run))
    views = images * plan
    rate = views / seconds if seconds else 0.0
    return break_even(students, PassCost(views, seconds, rate, 0, 0.0))


COLUMNS = (
    *("padded (height x width)", ">priors", ">views", ">sampled"),
    *(">assignment, bytes a view", ">soft scores, bytes a view", ">ms a view"),
)


def describe(found: Estimate) -> str:
    """The estimate as text."""
    lines = [
        f"{found.images:,} images with {found.objects:,} objects, {len(found.plan)} views of each: "
        f"{found.views:,} views in {len(found.buckets)} buckets",
        "",
    ]
    largest = sorted(found.buckets, key=lambda one: one.bucket.rows, reverse=True)
    lines += markdown_table(COLUMNS, map(_cells, largest[:SHOWN]))
    if len(largest) > SHOWN:
        views = sum(one.bucket.rows for one in largest[SHOWN:])
        lines.append(f"and {len(largest) - SHOWN} more buckets with {views:,} views")
    sampled = sum(one.sampled for one in found.buckets)
    lines += ["", f"sample: {sampled} views, with {found.teacher}, on {machine()['device']}"]
    lines += [f"not known: {what}" for what in found.missing]
    return "\n".join([*lines, "", *_totals(found)]) + "\n"


def _cells(one: BucketEstimate) -> list[Any]:
    assignment = one.bytes_on_disk.get(ASSIGNED_GT)
    soft = sum(one.bytes_on_disk.values()) - (assignment or 0)
    return [
        one.bucket.name,
        f"{one.bucket.priors:,}",
        f"{one.bucket.rows:,}",
        one.sampled,
        "-" if assignment is None else f"{assignment:,.0f}",
        f"{soft:,.0f}" if soft else "-",
        "-" if one.seconds is None else f"{one.seconds * 1e3:,.1f}",
    ]


def _totals(found: Estimate) -> list[str]:
    parts = {
        "assignments": found.assignment_bytes,
        "soft scores": found.soft_bytes,
        "the rest (metadata, view table)": found.overhead,
        "the store": found.total_bytes,
    }
    lines = [f"{name}: {size / 1e6:,.2f} MB" for name, size in parts.items() if size is not None]
    if found.seconds is not None:
        lines.append(f"the pass: {duration(found.seconds)}")
    pays = found.pays
    if pays is None:
        return [*lines, "no student of the settings learns from a store"]
    if pays.saved_seconds_per_student is not None:
        lines.append(
            "a student that asks the teacher online pays "
            f"{duration(pays.saved_seconds_per_student)} for it (mean of the cached students)"
        )
    lines.append(
        f"the pass is paid back after {pays.students:.2f} students, "
        f"or {pays.epochs:.1f} epochs of one"
    )
    return lines
