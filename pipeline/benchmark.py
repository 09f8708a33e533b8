"""What a student's step costs with cached, online and constant labels, measured in one run."""

import pipeline.mmcv_ops  # noqa: F401

import platform
import statistics
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from torch import Tensor
from tqdm import tqdm

from pipeline.batch_grid import level_shapes_of
from pipeline.dataset import load_data_info
from pipeline.detector import build_detector, load_model_config, prior_grid, without_downloads
from pipeline.errors import UserError
from pipeline.methods import cached_model, online_model, student_labels
from pipeline.params import Params, Student
from pipeline.paths import Paths
from pipeline.replay import Attachments, ViewDataset, ViewSampler, view_pipeline
from pipeline.soft_students import SoftLAD
from pipeline.store.reader import LabelStore
from pipeline.students import CachedLAD
from pipeline.training import optim_wrapper
from pipeline.views import view_plan

BATCHES = 4
WARMUP = BATCHES


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


@dataclass(frozen=True)
class StepTimes:
    """Seconds of each repeat, by the way a student gets its labels."""

    seconds: dict[str, list[float]]
    load_seconds: float
    attach_seconds: float

    def median(self, way: str) -> float:
        """The median seconds of a step."""
        return statistics.median(self.seconds[way])


def time_steps(name: str, params: Params, paths: Paths, repeats: int) -> StepTimes:
    """Time training steps of the student `name`, all ways alternating on the same batches.

    Args:
        name: a student that learns from the store.
        params: the settings.
        paths: where data, teacher and labels are.
        repeats: steps per way.

    Raises:
        UserError: the student is no cached one, or data, teacher or labels are missing.
    """
    student = params.student(name)
    if student.method != "lad":
        raise UserError(f"the student {name} has the method {student.method}; name one with lad")
    data = load_data_info(paths)
    model = load_model_config(student.config, len(data.classes))
    training = params.student_training(name)
    store = LabelStore(paths.labels)
    grid = prior_grid(build_detector(without_downloads(model)).bbox_head)
    attachments = {"none": Attachments(), "lad": student_labels(student, store, grid)}
    if store.soft_settings():
        solad = student.model_copy(update={"method": "solad"})
        attachments["solad"] = student_labels(solad, store, grid)
    datasets = {
        labels: ViewDataset(
            plan=view_plan(params.views),
            annotations=data.train.annotations,
            images=data.train.images_folder,
            classes=data.classes,
            pipeline=view_pipeline(
                *attached.transforms,
                meta_keys=attached.meta_keys,
                after_packing=attached.after_packing,
            ),
        )
        for labels, attached in attachments.items()
    }
    sampler = ViewSampler(datasets["none"], training.seed)
    chosen = list(islice(sampler, BATCHES * training.batch_size))
    batches = {
        labels: [
            pseudo_collate([dataset[view] for view in chosen[start::BATCHES]])
            for start in range(BATCHES)
        ]
        for labels, dataset in datasets.items()
    }
    load, both = (
        _seconds(lambda: [datasets[labels][view] for view in chosen]) / len(chosen)  # noqa: B023
        for labels in ("none", "lad")
    )
    ways = _ways(without_downloads(model), student, store, paths)
    networks: dict[str, Any] = {way: build_detector(config) for way, (config, _) in ways.items()}
    state = networks["cached lad"].state_dict()
    wrappers = {}
    for way, network in networks.items():
        network.load_state_dict(state)
        network.to(get_device()).train()
        wrappers[way] = build_optim_wrapper(network, optim_wrapper(training))
    seconds: dict[str, list[float]] = {way: [] for way in networks}
    for repeat in tqdm(range(-WARMUP, repeats), desc="bench", unit="round"):
        for way, network in networks.items():
            batch = batches[ways[way][1]][repeat % BATCHES]
            spent = _seconds(lambda: network.train_step(batch, wrappers[way]))  # noqa: B023
            if repeat >= 0:
                seconds[way].append(spent)
    return StepTimes(seconds, load_seconds=load, attach_seconds=max(0.0, both - load))


def _seconds(call: Any) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


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


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    device = get_device()
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    names = [
        line.partition(":")[2].strip()
        for line in (info.read_text().splitlines() if info.is_file() else [])
        if line.startswith("model name")
    ]
    return names[0] if names else platform.processor() or "CPU"
