"""A student's step with cached, online and constant labels."""

import copy
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.config import ConfigDict
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from torch import Tensor

from benchmarks.measure import Figures, Ratio, alternate, medians
from benchmarks.random_teacher import CONFIGS
from benchmarks.synthetic import write_project
from pipeline.data.dataset import load_split
from pipeline.detector.build import build_detector, load_model_config, without_downloads
from pipeline.heads.batch_grid import BatchGrid
from pipeline.heads.family import find_family
from pipeline.heads.paa import PAA
from pipeline.loading.collate import collate_views
from pipeline.loading.dataset import view_dataset
from pipeline.loading.sampler import ViewSampler
from pipeline.loading.transforms import NO_LABELS
from pipeline.online.settings import OnlineStudent
from pipeline.online.train import online_model
from pipeline.project.errors import UserError
from pipeline.project.paths import Paths
from pipeline.store.reader import LabelStore
from pipeline.students.cached import cached_model, student_labels
from pipeline.students.settings import Student
from pipeline.students.taught import CachedDetector, Lesson
from pipeline.teacher_pass.run import fill_store
from pipeline.training.optimiser import optim_wrapper, set_memory_format
from pipeline.training.settings import Training
from pipeline.views.plan import view_plan
from pipeline.views.settings import Views
from stages.params import Params, entry

BATCHES = 4
LAD_BARS = {
    "paa (mmdet)": 0.65,
    "paa (batched)": None,
    "online LAD (mmdet)": 0.5,
    "online LAD (batched)": None,
    "constant labels": 1.02,
}
"""What a step with cached LAD labels is compared with, and the most that it may take of that."""
SOFT_BAR = 1.1
"""The most that a step with cached soft scores may take of one with constant ones."""
BCKD_STUDENT = CONFIGS / "gfl_r18_quarter.py"
LARGE_TEACHER = CONFIGS / "paa_r101.py"
LARGE_STUDENT = CONFIGS / "paa_r18.py"


@MODELS.register_module()
class ConstantStudent(CachedDetector):
    """The limit: a student whose labels of every batch lie ready in memory."""

    def lesson(self, inputs: Tensor, samples: SampleList, grid: BatchGrid) -> Lesson:
        """What was made of the samples when the batch was first seen."""
        ready: dict[int, Lesson] = self.__dict__.setdefault("ready", {})
        key = samples[0].metainfo["img_id"]
        if key not in ready:
            ready[key] = super().lesson(inputs, samples, grid)
        return ready[key]


StepCalls = dict[str, Callable[[int], object]]
"""By the way that a student gets its labels, what takes the training step of a round."""


def step_calls(
    name: str, params: Params, paths: Paths, only: Sequence[str] | None = None
) -> StepCalls:
    """Networks with the same weights, ready to take training steps on the same batches.

    Args:
        name: a student that learns from the store.
        params: the settings.
        paths: where data, teacher and labels are.
        only: the ways to prepare; None for all.

    Raises:
        UserError: the student is no cached one, or data, teacher or labels are missing.
    """
    student = entry("students", params.students, name)
    if student.method != "lad":
        raise UserError(f"the student {name} has the method {student.method}; name one with lad")
    model = _model(student.config, paths)
    if find_family(model.bbox_head.type) is not PAA:
        raise UserError(f"the student {name} has the head {model.bbox_head.type}; name a PAA")
    store = LabelStore(paths.labels)
    ways = _ways(model, student, store, paths)
    chosen = {way: ways[way] for way in only or ways}
    return _calls(chosen, student.training.over(params.training), params.views, paths, store)


def bckd_calls(params: Params, paths: Paths) -> StepCalls:
    """The same of a GFL of quarter width that learns by bckd; see `step_calls`."""
    store = LabelStore(paths.labels)
    student = Student(config=str(BCKD_STUDENT), method="bckd")
    cached = cached_model(_model(student.config, paths), student, store)
    ways = {
        "cached bckd": (cached, "bckd"),
        "constant bckd": (ConfigDict(cached, type=ConstantStudent.__name__), "bckd"),
    }
    return _calls(ways, params.training, params.views, paths, store)


def _model(config: str, paths: Paths) -> ConfigDict:
    classes = len(load_split(paths, "train").classes)
    return without_downloads(load_model_config(config, classes))


Ways = dict[str, tuple[ConfigDict, str]]
"""By the way that a student gets its labels, its config and the method of its samples' labels."""


def _calls(
    ways: Ways, training: Training, views: Views, paths: Paths, store: LabelStore
) -> StepCalls:
    batches: dict[str, list[Any]] = {}
    calls: StepCalls = {}
    for way, (config, method) in ways.items():
        if method not in batches:
            batches[method] = _batches(views, training, paths, store, method)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            network = build_detector(config)
        set_memory_format(network, training)
        network.to(get_device()).train()
        wrapper = build_optim_wrapper(network, optim_wrapper(training))
        calls[way] = partial(_step, network, wrapper, batches[method])
    return calls


def _step(network: Any, wrapper: Any, batches: list[Any], number: int) -> None:
    network.train_step(batches[number % len(batches)], wrapper)


def _batches(
    views: Views, training: Training, paths: Paths, store: LabelStore, method: str
) -> list[dict[str, Any]]:
    """Some batches of an epoch, with the labels that a cached student of the method learns.

    Args:
        views: which views there are.
        training: its seed and batch size count.
        paths: where the data is.
        store: of the labels.
        method: `none` for samples without labels.
    """
    labels = NO_LABELS
    if method != "none":
        labels = student_labels(Student(config="", method=method), store)
    dataset = view_dataset(load_split(paths, "train"), view_plan(views), labels)
    sampler = ViewSampler(dataset, training.seed)
    chosen = list(islice(sampler, BATCHES * training.batch_size))
    batches = [
        collate_views([dataset[view] for view in chosen[start::BATCHES]])
        for start in range(min(BATCHES, len(chosen)))
    ]
    if torch.cuda.is_available():  # as a loader hands them over
        return [{name: part.pin_memory() for name, part in batch.items()} for batch in batches]
    return batches


def measure_steps(name: str, params: Params, paths: Paths, repeats: int) -> Figures:
    """Time training steps of a student, all ways alternating on the same batches.

    Args:
        name: a student that learns from the store.
        params: the settings.
        paths: where data, teacher and labels are.
        repeats: steps per way.

    Raises:
        UserError: the student is no cached one, or data, teacher or labels are missing.
    """
    seconds = alternate(step_calls(name, params, paths), repeats, warmup=BATCHES)
    middle = medians(seconds)
    ratios = [_ratio("cached lad", way, middle, bar) for way, bar in LAD_BARS.items()]
    if "cached solad" in middle:
        ratios.append(_ratio("cached solad", "constant solad", middle, SOFT_BAR))
    return Figures(ratios, f"student {name}, medians of {repeats} steps", {"seconds": seconds})


def measure_bckd_steps(params: Params, paths: Paths, repeats: int) -> Figures:
    """Time training steps of a GFL that learns by bckd; see `measure_steps`."""
    seconds = alternate(bckd_calls(params, paths), repeats, warmup=BATCHES)
    ratio = _ratio("cached bckd", "constant bckd", medians(seconds), SOFT_BAR)
    note = f"{BCKD_STUDENT.stem} by bckd, medians of {repeats} steps"
    return Figures([ratio], note, {"seconds": seconds})


def _ratio(way: str, against: str, middle: dict[str, float], at_most: float | None) -> Ratio:
    return Ratio(f"step, {way}", middle[way], against, middle[against], "s", at_most=at_most)


def measure_large_steps(repeats: int) -> Figures:
    """Steps of an R-18 student of an R-101 teacher, both with random weights, at 512 x 512."""
    with tempfile.TemporaryDirectory() as folder:
        params, paths = write_project(
            Path(folder),
            load_model_config(LARGE_TEACHER),
            images=2 * BATCHES,
            size=(512, 512),
            training={"batch_size": 2},
            teacher_pass={"batch_size": 2, "workers": 0},
            students={"r18": {"config": str(LARGE_STUDENT), "method": "lad"}},
        )
        fill_store(params.labels, params.teacher_pass, params.views, paths, replace=False)
        ways = ("cached lad", "online LAD (mmdet)", "online LAD (batched)", "constant labels")
        seconds = alternate(step_calls("r18", params, paths, ways), repeats, warmup=1)
    middle = medians(seconds)
    ratios = [
        _ratio("cached lad", "online LAD (mmdet)", middle, 0.4),
        _ratio("cached lad", "online LAD (batched)", middle, None),
        _ratio("cached lad", "constant labels", middle, None),
    ]
    note = (
        "R-18 student of an R-101 teacher, random weights, 2 digit scenes of 512 x 512; "
        f"medians of {repeats} steps"
    )
    return Figures(ratios, note, {"seconds": seconds})


def _ways(model: ConfigDict, student: Student, store: LabelStore, paths: Paths) -> Ways:
    """All ways that a PAA can get its labels.

    Args:
        model: of the student.
        student: its settings.
        store: of the labels.
        paths: where the teacher is.
    """

    def online(assigner: Literal["batched", "mmdet"]) -> ConfigDict:
        settings = OnlineStudent(config=student.config, method="lad", assigner=assigner)
        return online_model(model, settings, paths.teacher)

    lad = cached_model(model, student, store)
    ways = {
        "paa (mmdet)": (model, "none"),
        "paa (batched)": (PAA.own(copy.deepcopy(model)), "none"),
        "online LAD (mmdet)": (online("mmdet"), "none"),
        "online LAD (batched)": (online("batched"), "none"),
        "cached lad": (lad, "lad"),
        "constant labels": (ConfigDict(lad, type=ConstantStudent.__name__), "lad"),
    }
    if store.soft_settings():
        solad = cached_model(model, Student(config=student.config, method="solad"), store)
        ways["cached solad"] = (solad, "solad")
        ways["constant solad"] = (ConfigDict(solad, type=ConstantStudent.__name__), "solad")
    return ways
