"""The benchmark: its parts, and how much of each is measured."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from benchmarks.assignment import measure_assignment
from benchmarks.cluster import measure_cluster
from benchmarks.command_line import require_parts
from benchmarks.data import measure_data
from benchmarks.growth import measure_growth
from benchmarks.loader import measure_loader
from benchmarks.measure import Figures
from benchmarks.memory import measure_memory
from benchmarks.mixture import measure_mixtures, random_costs, trained_costs
from benchmarks.reads import measure_reads
from benchmarks.sharing import measure_sharing
from benchmarks.speedups import measure_speedups
from benchmarks.steps import measure_bckd_steps, measure_large_steps, measure_steps
from benchmarks.teacher_pass import measure_large_pass, measure_other_heads, measure_pass
from pipeline.detector.build import load_model_config
from pipeline.detector.model_folder import CONFIG
from pipeline.heads.family import find_family
from pipeline.heads.paa import PAA
from pipeline.project.errors import UserError
from pipeline.project.paths import Paths
from pipeline.teacher_pass.settings import Labels
from stages.params import Params


@dataclass(frozen=True)
class Effort:
    """How much is measured; the defaults are for the record.

    Attributes:
        repeats: rounds of an alternation.
        checked_images: of a data set.
        long_repeats: rounds of what takes seconds.
        steps: training steps.
        store_views: of the random store.
        shared_views: of the random store that DVC shares.
        reads: of its views.
        fits: mixtures to compare with scikit-learn's.
        random_fits: as many where there is no trained teacher.
        batch: objects whose fits are timed together.
        objects: of an image.
        sizes: (width, height) of views, 1,000 to 25,000 priors.
        pass_images: for a pass.
        large_images: for a pass of a large teacher.
        items: of a loader's epoch.
        workers: of the loader.
        memory_items: to load while memory is watched.
        images: of data sets.
        classes: of data sets.
    """

    repeats: int = 5
    checked_images: int = 300
    long_repeats: int = 3
    steps: int = 30
    store_views: int = 128
    shared_views: int = 100_000
    reads: int = 300
    fits: int = 10_000
    random_fits: int = 1_500
    batch: int = 500
    objects: Sequence[int] = (1, 10, 30, 100)
    sizes: Sequence[tuple[int, int]] = ((256, 192), (640, 480), (1333, 800), (1408, 896))
    pass_images: int = 480
    large_images: int = 12
    items: int = 256
    workers: Sequence[int] = (0, 1, 2, 3, 4)
    memory_items: int = 10_000
    images: Sequence[int] = (100, 1_000, 10_000)
    classes: Sequence[int] = (1, 10, 80, 365)


QUICK = Effort(
    repeats=1,
    checked_images=4,
    long_repeats=1,
    steps=2,
    store_views=2,
    shared_views=3,
    reads=5,
    fits=40,
    random_fits=20,
    batch=10,
    objects=(1, 2),
    sizes=((128, 128), (256, 192)),
    pass_images=4,
    large_images=1,
    items=16,
    workers=(0, 1),
    memory_items=20,
    images=(8, 16),
    classes=(1, 10),
)
"""Whether it runs; the figures mean nothing."""


@dataclass(frozen=True)
class Bench:
    """What is measured.

    Attributes:
        params: the project's settings, if there is a project.
        paths: where its data, teacher and labels are, if there are any.
        effort: how much is measured.
        student: one with cached labels; None for the first of the settings.
        large: large networks, too; minutes.
    """

    params: Params | None
    paths: Paths
    effort: Effort
    student: str | None = None
    large: bool = False

    def params_with_teacher(self) -> Params | None:
        """The project's settings, if its teacher is there."""
        return self.params if self.paths.teacher.is_dir() else None

    def has_paa_teacher(self) -> bool:
        """Whether there is a teacher, and it assigns by mixtures."""
        if not self.params_with_teacher():
            return False
        return find_family(load_model_config(self.paths.teacher / CONFIG).bbox_head.type) is PAA

    def cached_student(self) -> tuple[str, Params, Paths] | None:
        """A student with cached labels, if there is a store, or the user named one.

        Raises:
            UserError: no student learns from the store.
        """
        if not self.params or not (self.student or self.paths.labels.exists()):
            return None
        names = [name for name, one in self.params.students.items() if one.method == "lad"]
        if not (self.student or names):
            raise UserError("no student in params.yaml has the method lad; add one")
        return self.student or names[0], self.params, self.paths


def _data(bench: Bench) -> list[Figures]:
    return [measure_data(bench.effort.checked_images, bench.effort.repeats)]


def _reads(bench: Bench) -> list[Figures]:
    labels = bench.params.labels if bench.params else Labels()
    return [measure_reads(labels, bench.effort.store_views, bench.effort.reads)]


def _sharing(bench: Bench) -> list[Figures]:
    return [measure_sharing(bench.effort.shared_views)]


def _steps(bench: Bench) -> list[Figures]:
    found = bench.cached_student()
    figures = [_NO_STORE]
    if found:
        steps = bench.effort.steps
        figures = [measure_steps(*found, steps), measure_bckd_steps(*found[1:], steps)]
    if bench.large:
        figures.append(measure_large_steps(bench.effort.repeats))
    return figures


def _mixture(bench: Bench) -> list[Figures]:
    effort, params = bench.effort, bench.params
    if params and bench.has_paa_teacher():
        costs, source = (
            trained_costs(params.views, bench.paths, effort.fits),
            "the project's teacher",
        )
    else:
        costs, source = random_costs(effort.random_fits), "the random teacher"
    return [measure_mixtures(costs, effort.batch, effort.repeats, source)]


def _assignment(bench: Bench) -> list[Figures]:
    effort = bench.effort
    threads = torch.get_num_threads()
    return [measure_assignment(effort.objects, effort.sizes, 3 * effort.repeats, threads)]


def _pass(bench: Bench) -> list[Figures]:
    effort, params = bench.effort, bench.params_with_teacher()
    figures = [_NO_TEACHER]
    if params:
        what = "the project's teacher"
        project = params.labels, params.teacher_pass, params.views, bench.paths
        figures = [measure_pass(*project, effort.pass_images, effort.repeats, 0.9, what)]
    if bench.large:
        figures.append(measure_large_pass(effort.large_images, effort.repeats))
    return figures


def _heads(bench: Bench) -> list[Figures]:
    effort = bench.effort
    return list(measure_other_heads(effort.pass_images // 2, effort.long_repeats))


def _cluster(bench: Bench) -> list[Figures]:
    effort, params = bench.effort, bench.params_with_teacher()
    if not params:
        return [_NO_TEACHER]
    project = params.labels, params.teacher_pass, params.views, bench.paths
    return [measure_cluster(*project, effort.pass_images, effort.long_repeats)]


def _loader(bench: Bench) -> list[Figures]:
    effort = bench.effort
    repeats = 6 * effort.repeats  # processes that share two cores scatter
    return [measure_loader(effort.items, effort.workers, repeats, effort.memory_items)]


def _growth(bench: Bench) -> list[Figures]:
    return [measure_growth(bench.effort.images, bench.effort.classes)]


def _memory(bench: Bench) -> list[Figures]:
    found = bench.cached_student()
    return [measure_memory(*found, steps=min(4, bench.effort.steps)) if found else _NO_STORE]


def _speedups(bench: Bench) -> list[Figures]:
    effort, params = bench.effort, bench.params_with_teacher()
    if not params:
        return [_NO_TEACHER]
    project = params.labels, params.teacher_pass, params.views, bench.paths
    return [measure_speedups(*project, effort.pass_images // 4, effort.repeats)]


_NO_STORE = Figures([], "skipped: there is no label store yet; run `lad labels`")
_NO_TEACHER = Figures([], "skipped: there is no teacher yet; run `lad teacher`")

PARTS: dict[str, Callable[[Bench], list[Figures]]] = {
    "data": _data,
    "reads": _reads,
    "sharing": _sharing,
    "steps": _steps,
    "mixture": _mixture,
    "assignment": _assignment,
    "pass": _pass,
    "heads": _heads,
    "cluster": _cluster,
    "loader": _loader,
    "growth": _growth,
    "memory": _memory,
    "speedups": _speedups,
}


def run_parts(bench: Bench, parts: Sequence[str]) -> Iterator[tuple[str, Figures]]:
    """Run parts of the benchmark, one after the other.

    Args:
        bench: what is measured.
        parts: of `PARTS`; none for all.

    Raises:
        UserError: there is no such part, the student is none with cached labels, or what is there
            is broken.
    """
    require_parts(parts, PARTS)
    for part in parts or PARTS:
        for figures in PARTS[part](bench):
            yield part, figures
