"""A student's step with cached, online and constant labels."""

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
from pipeline.heads.paa import HeadOutputs
from pipeline.loading.collate import collate_views
from pipeline.loading.dataset import view_dataset
from pipeline.loading.sampler import ViewSampler
from pipeline.loading.transforms import NO_LABELS
from pipeline.online.settings import OnlineStudent
from pipeline.online.train import online_model
from pipeline.project.errors import UserError
from pipeline.project.paths import Paths
from pipeline.store.reader import LabelStore
from pipeline.students.assignment import CachedLAD
from pipeline.students.cached import cached_model, student_labels
from pipeline.students.settings import Student
from pipeline.students.soft_scores import SoftLAD
from pipeline.teacher_pass.run import fill_store
from pipeline.heads.batch_grid import BatchGrid
from pipeline.heads.batched_paa import batched_paa
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
SOLAD_BAR = 1.1
LARGE_TEACHER = CONFIGS / "paa_r101.py"
LARGE_STUDENT = CONFIGS / "paa_r18.py"


@MODELS.register_module()
class ConstantLAD(CachedLAD):
    """The limit: a student whose labels of every batch lie ready in memory."""

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """The losses of LAD on labels that were made when the batch was first seen."""
        ready = self.__dict__.setdefault("ready", {})
        key = batch_data_samples[0].metainfo["img_id"]
        head = self.bbox_head
        if key not in ready:
            grid = BatchGrid.of(head.grid, batch_data_samples, batch_inputs.device)
            ready[key] = head.cached_assignment(batch_data_samples, grid)
        losses: dict[str, Tensor] = head.loss(
            self.extract_feat(batch_inputs), ready[key], batch_data_samples
        )
        return losses


@MODELS.register_module()
class ConstantSoLAD(SoftLAD):
    """The limit of SoLAD: assignments and soft scores of every batch lie ready in memory."""

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """The losses of SoLAD on labels that were made when the batch was first seen."""
        ready = self.__dict__.setdefault("ready", {})
        key = batch_data_samples[0].metainfo["img_id"]
        head = self.bbox_head
        if key not in ready:
            grid = BatchGrid.of(head.grid, batch_data_samples, batch_inputs.device)
            targets = head.cached_targets(batch_data_samples, grid)
            ready[key] = targets, head.cached_assignment(batch_data_samples, grid)
        outputs = HeadOutputs(*head(self.extract_feat(batch_inputs)))
        losses: dict[str, Tensor] = head.losses(outputs, *ready[key], batch_data_samples)
        return losses


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
    classes = len(load_split(paths, "train").classes)
    model = without_downloads(load_model_config(student.config, classes))
    training = student.training.over(params.training)
    store = LabelStore(paths.labels)
    ways = _ways(model, student, store, paths)
    state = build_detector(model).state_dict()
    batches: dict[str, list[Any]] = {}
    calls: StepCalls = {}
    for way in only or ways:
        config, method = ways[way]
        if method not in batches:
            batches[method] = _batches(params.views, training, paths, store, method)
        network = build_detector(config)
        network.load_state_dict(state)
        set_memory_format(network, training)
        network.to(get_device()).train()
        calls[way] = partial(
            _step, network, build_optim_wrapper(network, optim_wrapper(training)), batches[method]
        )
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
        ratios.append(_ratio("cached solad", "constant solad", middle, SOLAD_BAR))
    return Figures(ratios, f"student {name}, medians of {repeats} steps", {"seconds": seconds})


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
            labels={"batch_size": 2, "workers": 0},
            students={"r18": {"config": str(LARGE_STUDENT), "method": "lad"}},
        )
        fill_store(params.labels, params.views, paths, replace=False)
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


def _ways(
    model: ConfigDict, student: Student, store: LabelStore, paths: Paths
) -> dict[str, tuple[ConfigDict, str]]:
    """By the way that a student gets its labels, its config and the method of its samples' labels.

    Args:
        model: of the student, a plain PAA.
        student: its settings.
        store: of the labels.
        paths: where the teacher is.
    """

    def online(assigner: Literal["batched", "mmdet"]) -> ConfigDict:
        settings = OnlineStudent(config=student.config, method="lad", assigner=assigner)
        return online_model(model, settings, paths.teacher)

    lad = cached_model(model, "lad", store)
    ways = {
        "paa (mmdet)": (model, "none"),
        "paa (batched)": (batched_paa(model), "none"),
        "online LAD (mmdet)": (online("mmdet"), "none"),
        "online LAD (batched)": (online("batched"), "none"),
        "cached lad": (lad, "lad"),
        "constant labels": (ConfigDict(lad, type=ConstantLAD.__name__), "lad"),
    }
    if store.soft_settings():
        solad = cached_model(model, "solad", store)
        ways["cached solad"] = (solad, "solad")
        ways["constant solad"] = (ConfigDict(solad, type=ConstantSoLAD.__name__), "solad")
    return ways
