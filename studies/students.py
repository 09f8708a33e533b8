"""Students of the coding study: as PAA trains them, and on soft labels of a live teacher.

Shapes: B views of one bucket, P priors of its grid.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.models.detectors import PAA
from mmengine.config import ConfigDict
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.runner import set_random_seed
from torch import Tensor
from tqdm import tqdm

from pipeline.detector.build import build_detector, preprocessing
from pipeline.heads.paa import HeadOutputs
from pipeline.loading.collate import view_loader
from pipeline.loading.dataset import ViewDataset
from pipeline.loading.sampler import ViewSampler
from pipeline.online.settings import OnlineStudent
from pipeline.online.students import batch_targets
from pipeline.online.train import online_model
from pipeline.teacher_pass.label import run_network
from pipeline.teacher_pass.teacher import SoftPredictions, Teacher
from pipeline.heads.batch_grid import BatchGrid
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
        model: the student's mmdet config, a PAA.
        training: how it is trained; its schedule is always a cosine.
        dataset: of all views, with `ALL_OBJECTS`.
        teacher: the teacher's model folder.
        min_iou: the teacher's boxes count where they overlap an object by more than this.

    Attributes:
        models: the student's config in each way, `paa` and `soft`.
    """

    def __init__(
        self,
        model: ConfigDict,
        training: Training,
        dataset: ViewDataset,
        teacher: Path,
        min_iou: float,
    ) -> None:
        self.training, self.dataset = training, dataset
        self.divisor = preprocessing(model)["pad_size_divisor"]
        soft = OnlineStudent(config="", method="soft", min_iou=min_iou)
        self.models = {"paa": model, "soft": online_model(model, soft, teacher)}

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

    def stages(self) -> Iterator[tuple[str, PAA]]:
        """Train a student in each way; the stage, `<way> <epochs>`, and the network as it is then.

        Stages are after 0, 1, 2, 4, 8, ... epochs and after the last; 0 is the same in both ways.
        """
        epochs = self.training.epochs
        wanted = {0, epochs} | {2**n for n in range(epochs.bit_length()) if 2**n <= epochs}
        MMLogger.get_instance("study", log_level="ERROR")
        for way, model in self.models.items():
            set_random_seed(self.training.seed)
            student = build_detector(model)
            student.init_weights()
            student.to(get_device())
            for epoch, _ in enumerate(self._epochs(way, student)):
                if epoch in wanted and (epoch or way == "paa"):
                    yield f"{way} {epoch}", student

    def _epochs(self, way: str, student: PAA) -> Iterator[None]:
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


def predict(teacher: Teacher, batch: dict[str, Any], min_iou: float) -> SoftBatch:
    """Show a teacher views.

    Args:
        teacher: predicts.
        batch: B collated items of a data set with `ALL_OBJECTS`.
        min_iou: boxes count where they overlap an object by more than this.
    """
    images = teacher.detector.data_preprocessor(batch)["inputs"]
    views = run_network(teacher, batch)
    predicted = teacher.predict_soft(views.outputs, views.truth, views.padded, min_iou)
    # Tensors of inference mode can't be part of a loss.
    copied = {
        part.name: getattr(predicted, part.name).clone(memory_format=torch.contiguous_format)
        for part in fields(predicted)
    }
    grid = BatchGrid(teacher.grid, views.padded, [views.padded] * len(images), teacher.device)
    return SoftBatch(images, SoftPredictions(**copied), grid)


def with_weights(model: ConfigDict, student: PAA) -> PAA:
    """Another network with a student's weights.

    Args:
        model: its config; the student's, but for what learns.
        student: stays as it is.
    """
    network = build_detector(model)
    network.load_state_dict(student.state_dict())
    network.to(next(student.parameters()).device)
    return network


def soft_losses(
    student: PAA, outputs: HeadOutputs, predicted: SoftPredictions, grid: BatchGrid
) -> dict[str, Tensor]:
    """The soft-label losses of a student, summed over the batch instead of averaged.

    Args:
        student: with a `SoftLADHead`.
        outputs: of its head.
        predicted: what it learns.
        grid: of the batch.
    """
    targets = batch_targets(predicted, grid)
    # The head divides by the sum of the IoUs.
    weight = targets.max_iou.sum() if len(targets.indices) else 1
    losses = student.bbox_head.soft_losses(outputs, targets)
    return {name: loss * weight for name, loss in losses.items()}
