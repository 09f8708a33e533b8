"""A student's step with cached, online and constant labels."""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from torch import Tensor

from benchmarks.measure import Figures, Row, alternate, medians
from benchmarks.synthetic import write_project
from pipeline.data.dataset import DataInfo, load_data_info
from pipeline.detector.build import build_detector, load_model_config, prior_grid, without_downloads
from pipeline.loading.replay import Attachments, ViewSampler
from pipeline.project.errors import UserError
from pipeline.project.params import Params, Student, Training
from pipeline.project.paths import Paths
from pipeline.store.reader import LabelStore
from pipeline.students.assignment import CachedLAD
from pipeline.students.methods import cached_model, online_model, student_labels
from pipeline.students.soft_scores import SoftLAD
from pipeline.teacher_pass.labelling import view_dataset
from pipeline.teacher_pass.run import precompute_labels
from pipeline.training.batch_grid import level_shapes_of
from pipeline.training.run import optim_wrapper, set_memory_format
from pipeline.views.plan import view_plan
from pipeline.views.priors import PriorGrid

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
LARGE_TEACHER = "configs/paa_r101.py"
LARGE_STUDENT = "configs/paa_r18.py"


@MODELS.register_module()
class ConstantLAD(CachedLAD):
    """The limit: a student whose labels of every batch lie ready in memory."""

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """The losses of LAD on labels that were made when the batch was first seen."""
        ready = self.__dict__.setdefault("ready", {})
        key = batch_data_samples[0].metainfo["img_id"]
        features = self.extract_feat(batch_inputs)
        if key not in ready:
            ready[key] = self.bbox_head.cached_assignment(
                batch_data_samples, level_shapes_of(features), batch_inputs.device
            )
        losses: dict[str, Tensor] = self.bbox_head.loss(features, ready[key], batch_data_samples)
        return losses


@MODELS.register_module()
class ConstantSoLAD(SoftLAD):
    """The limit of SoLAD: assignments and soft scores of every batch lie ready in memory."""

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """The losses of SoLAD on labels that were made when the batch was first seen."""
        ready = self.__dict__.setdefault("ready", {})
        key = batch_data_samples[0].metainfo["img_id"]
        features = self.extract_feat(batch_inputs)
        head = self.bbox_head
        if key not in ready:
            place = (batch_data_samples, level_shapes_of(features), batch_inputs.device)
            ready[key] = head.cached_targets(*place), head.cached_assignment(*place)
        losses: dict[str, Tensor] = head.losses(head(features), *ready[key], batch_data_samples)
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
    student = params.student(name)
    if student.method != "lad":
        raise UserError(f"the student {name} has the method {student.method}; name one with lad")
    data = load_data_info(paths)
    model = without_downloads(load_model_config(student.config, len(data.classes)))
    training = params.student_training(name)
    store = LabelStore(paths.labels)
    ways = _ways(model, student, store, paths)
    first = build_detector(ways["cached lad"][0])
    state, grid = first.state_dict(), prior_grid(first.bbox_head)
    batches: dict[str, list[Any]] = {}
    calls: StepCalls = {}
    for way in only or ways:
        config, labels = ways[way]
        if labels not in batches:
            batches[labels] = _batches(
                params, training, data, _attachments(student, labels, store, grid)
            )
        network = build_detector(config)
        network.load_state_dict(state)
        set_memory_format(network, training)
        network.to(get_device()).train()
        calls[way] = partial(
            _step, network, build_optim_wrapper(network, optim_wrapper(training)), batches[labels]
        )
    return calls


def _step(network: Any, wrapper: Any, batches: list[Any], number: int) -> None:
    network.train_step(batches[number % len(batches)], wrapper)


def _attachments(student: Student, labels: str, store: LabelStore, grid: PriorGrid) -> Attachments:
    if labels == "none":
        return Attachments()
    return student_labels(student.model_copy(update={"method": labels}), store, grid)


def _batches(
    params: Params, training: Training, data: DataInfo, attached: Attachments
) -> list[dict[str, Any]]:
    dataset = view_dataset(data, view_plan(params.views), attached)
    sampler = ViewSampler(dataset, training.seed)
    chosen = list(islice(sampler, BATCHES * training.batch_size))
    return [
        pseudo_collate([dataset[view] for view in chosen[start::BATCHES]])
        for start in range(min(BATCHES, len(chosen)))
    ]


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
    rows = [_row("cached lad", way, middle, bar) for way, bar in LAD_BARS.items()]
    if "cached solad" in middle:
        rows.append(_row("cached solad", "constant solad", middle, SOLAD_BAR))
    return Figures(rows, f"student {name}, medians of {repeats} steps", {"seconds": seconds})


def _row(way: str, against: str, middle: dict[str, float], at_most: float | None) -> Row:
    return Row(f"step, {way}", middle[way], against, middle[against], "s", at_most=at_most)


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
            students={"r18": {"config": LARGE_STUDENT, "method": "lad"}},
        )
        precompute_labels(params, paths, replace=False)
        ways = ("cached lad", "online LAD (mmdet)", "online LAD (batched)", "constant labels")
        seconds = alternate(step_calls("r18", params, paths, ways), repeats, warmup=1)
    middle = medians(seconds)
    rows = [
        _row("cached lad", "online LAD (mmdet)", middle, 0.4),
        _row("cached lad", "online LAD (batched)", middle, None),
        _row("cached lad", "constant labels", middle, None),
    ]
    note = (
        "R-18 student of an R-101 teacher, random weights, 2 digit scenes of 512 x 512; "
        f"medians of {repeats} steps"
    )
    return Figures(rows, note, {"seconds": seconds})


def _ways(
    model: ConfigDict, student: Student, store: LabelStore, paths: Paths
) -> dict[str, tuple[ConfigDict, str]]:
    """By the way that a student gets its labels, its config and what its samples carry."""

    def online(**settings: str) -> ConfigDict:
        return online_model(model, Student(config=student.config, **settings), paths.teacher)

    ways = {
        "paa (mmdet)": (online(method="paa", assigner="mmdet"), "none"),
        "paa (batched)": (online(method="paa"), "none"),
        "online LAD (mmdet)": (online(method="lad", labels="online", assigner="mmdet"), "none"),
        "online LAD (batched)": (online(method="lad", labels="online"), "none"),
        "cached lad": (cached_model(model, "lad"), "lad"),
        "constant labels": (ConfigDict(cached_model(model, "lad"), type="ConstantLAD"), "lad"),
    }
    if store.soft_settings():
        solad = cached_model(model, "solad", store)
        ways["cached solad"] = (solad, "solad")
        ways["constant solad"] = (ConfigDict(solad, type="ConstantSoLAD"), "solad")
    return ways
