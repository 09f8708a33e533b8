"""Students of the coding study: as their heads train alone, and by a live teacher's soft scores.

Shapes: B views of one bucket, P priors of its grid.
"""

import copy
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.models.detectors import SingleStageDetector
from mmengine.config import ConfigDict
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.optim import build_optim_wrapper
from mmengine.runner import set_random_seed
from torch import Tensor
from tqdm import tqdm

from pipeline.detector.build import build_detector, preprocessing
from pipeline.heads.batch_grid import BatchGrid
from pipeline.heads.family import Outputs
from pipeline.heads.registry import family_of_model
from pipeline.loading.collate import view_loader
from pipeline.loading.dataset import ViewDataset
from pipeline.loading.sampler import ViewSampler
from pipeline.online.settings import OnlineStudent
from pipeline.online.students import batch_targets
from pipeline.online.train import online_model
from pipeline.students.distillation import SoftLabelDistillation
from pipeline.students.taught import TaughtDetector
from pipeline.teacher_pass.label import run_network
from pipeline.teacher_pass.teacher import Least, SoftPredictions, Teacher
from pipeline.training.optimiser import optim_wrapper
from pipeline.training.settings import Training
from pipeline.views.plan import Shape, padded_shape


@dataclass(frozen=True)
class SoftBatch:
    """Views with what a live teacher predicts for them.

    Attributes:
        images: (B, 3, H, W), normalised and padded.
        predicted: the teacher's soft scores.
        grid: of the batch.
    """

    images: Tensor
    predicted: SoftPredictions
    grid: BatchGrid

    @property
    def levels(self) -> Tensor:
        """The level of each prior, (P,) int64."""
        return self.grid.priors.levels


class StudentTrainer:
    """Trains a student in two ways, on views of a data set.

    Args:
        model: the student's mmdet config.
        student: how it learns of the teacher; its config does not count.
        training: how it is trained; its schedule is always a cosine.
        dataset: of all views, with `ALL_OBJECTS`.
        teacher: the teacher's model folder.

    Attributes:
        models: the config of the network that is trained in each way, `own` and the method's.
        taught: the latter network.
    """

    def __init__(
        self,
        model: ConfigDict,
        student: OnlineStudent,
        training: Training,
        dataset: ViewDataset,
        teacher: Path,
    ) -> None:
        self.training, self.dataset = training, dataset
        self.divisor = preprocessing(model)["pad_size_divisor"]
        own = family_of_model(model, student.config).own(copy.deepcopy(model))
        self.models = {"own": own, student.method: online_model(model, student, teacher)}
        self.taught: TaughtDetector = build_detector(self.models[student.method])
        self.taught.to(get_device())

    def batches(self, views: Sequence[int]) -> list[list[int]]:
        """Views in batches of one bucket each: labels must not depend on the batch."""
        buckets: dict[Shape, list[int]] = defaultdict(list)
        for view in views:
            info = self.dataset.get_data_info(view)
            shape = info["view"].shape(info["height"], info["width"])
            buckets[padded_shape(shape, self.divisor)].append(view)
        size = self.training.batch_size
        return [
            bucket[start : start + size]
            for bucket in buckets.values()
            for start in range(0, len(bucket), size)
        ]

    def stages(self) -> Iterator[tuple[str, SingleStageDetector]]:
        """Train a student in each way; the stage, `<way> <epochs>`, and the detector as it is then.

        Stages are after 0, 1, 2, 4, 8, ... epochs and after the last; 0 is the same in both ways.
        """
        epochs = self.training.epochs
        wanted = {0, epochs} | {2**n for n in range(epochs.bit_length()) if 2**n <= epochs}
        MMLogger.get_instance("study", log_level="ERROR")
        for way, model in self.models.items():
            set_random_seed(self.training.seed)
            network = build_detector(model)
            network.init_weights()
            network.to(get_device())
            for epoch, _ in enumerate(self._epochs(way, network)):
                if epoch in wanted and (epoch or way == "own"):
                    yield f"{way} {epoch}", network if way == "own" else network.detector

    def _epochs(self, way: str, student: BaseModel) -> Iterator[None]:
        """Train the student, pausing before the first epoch and after each."""
        training = self.training
        sampler = ViewSampler(self.dataset, training.seed)
        plans = []
        for epoch in range(training.epochs):
            sampler.set_epoch(epoch)
            batches = self.batches(list(sampler))
            order = np.random.default_rng([training.seed, epoch]).permutation(len(batches))
            plans.append([batches[place] for place in order])
        wrapper = build_optim_wrapper(student, optim_wrapper(training))
        total = sum(map(len, plans))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            wrapper.optimizer,
            lambda step: (
                min(1.0, (step + 1) / (training.warmup_steps + 1))
                * (1 + math.cos(math.pi * step / total))
                / 2
            ),
        )
        yield
        for epoch, batches in enumerate(plans):
            student.train()
            loader = view_loader(self.dataset, batches, training.workers)
            for batch in tqdm(loader, desc=f"{way} epoch {epoch + 1}", mininterval=2):
                student.train_step(batch, wrapper)
                schedule.step()
            yield


def predict(teacher: Teacher, batch: dict[str, Any], least: Least) -> SoftBatch:
    """Show a teacher views.

    Args:
        teacher: predicts.
        batch: B collated items of a data set with `ALL_OBJECTS`.
        least: which boxes count.
    """
    images = teacher.detector.data_preprocessor(batch)["inputs"]
    views = run_network(teacher, batch)
    predicted = teacher.predict_soft(views.outputs, views.truth, views.grid, least)
    # Tensors of inference mode can't be part of a loss.
    copied = {
        part.name: getattr(predicted, part.name).clone(memory_format=torch.contiguous_format)
        for part in fields(predicted)
    }
    return SoftBatch(images, SoftPredictions(**copied), views.grid)


def soft_losses(
    student: TaughtDetector, outputs: Outputs, predicted: SoftPredictions, grid: BatchGrid
) -> dict[str, Tensor]:
    """The losses of a student's distillation, summed over the batch instead of averaged.

    Args:
        student: learns soft scores.
        outputs: of its head.
        predicted: what it learns.
        grid: of the batch.
    """
    targets = batch_targets(predicted, grid)
    assert student.distillation
    losses: dict[str, Tensor] = student.distillation(student.family, outputs, targets, 1)
    if not isinstance(student.distillation, SoftLabelDistillation):
        return losses
    # It divides by the sum of the IoUs.
    weight = targets.max_iou.sum() if len(targets.indices) else 1
    return {name: loss * weight for name, loss in losses.items()}
