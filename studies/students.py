"""Students of the coding study: as PAA trains them, and on soft labels of a live teacher."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmdet.models.detectors import PAA
from mmdet.models.losses import GIoULoss
from mmengine.config import ConfigDict
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.runner import set_random_seed
from torch import Tensor
from tqdm import tqdm

from pipeline.detector.build import build_detector, preprocessing
from pipeline.loading.collate import view_loader
from pipeline.loading.replay import ViewDataset, ViewSampler
from pipeline.project.params import Training
from pipeline.store.coding import SoftSettings
from pipeline.students.losses import SoftLabelLoss
from pipeline.teacher_pass.labelling import ask
from pipeline.teacher_pass.teacher import Beliefs, Teacher
from pipeline.training.batch_grid import by_prior
from pipeline.training.run import optim_wrapper
from pipeline.views.plan import Shape, padded_shape
from pipeline.views.priors import PriorGrid

WAYS = ("paa", "soft")
CLASS_LOSS = SoftLabelLoss(loss_weight=10)
IOU_LOSS = SoftLabelLoss(loss_weight=10)
BOX_LOSS = GIoULoss(loss_weight=1.3)


@dataclass(frozen=True)
class SoftBatch:
    """Views of one bucket with what a live teacher believes of them.

    Attributes:
        images: (B, 3, H, W), normalised and padded.
        beliefs: the teacher's, on the P priors of the bucket.
        level: (P,) of each prior.
        padded: (H, W).
    """

    images: Tensor
    beliefs: Beliefs
    level: Tensor
    padded: Shape


class Course:
    """A student's training on views of a data set, with the teacher at hand.

    Args:
        model: the student's mmdet config, a PAA.
        training: how it is trained.
        dataset: of `view_dataset`.
        teacher: is asked for soft labels.
        soft: which of its boxes count.
    """

    def __init__(
        self,
        model: ConfigDict,
        training: Training,
        dataset: ViewDataset,
        teacher: Teacher,
        soft: SoftSettings,
    ) -> None:
        self.model, self.training, self.dataset = model, training, dataset
        self.teacher, self.soft = teacher, soft
        self.divisor = preprocessing(model)["pad_size_divisor"]

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

    def ask(self, batch: dict[str, Any]) -> SoftBatch:
        """The teacher's beliefs of collated views."""
        images = self.teacher.detector.data_preprocessor(batch)["inputs"]
        padded = (images.shape[-2], images.shape[-1])
        _, beliefs = ask(self.teacher, batch, self.soft)
        assert beliefs is not None
        # What was made in inference mode can't be part of a loss.
        names = ("probabilities", "overlap", "boxes", "iou")
        as_decoded = torch.contiguous_format
        copied = Beliefs(
            **{name: getattr(beliefs, name).clone(memory_format=as_decoded) for name in names}
        )
        return SoftBatch(
            images, copied, self.teacher.grid.priors(padded, images.device).levels, padded
        )

    def stages(self) -> Iterator[tuple[str, PAA]]:
        """Train a student in each way; its name and the network at each stage.

        Stages are after 0, 1, 2, 4, 8, ... epochs and after the last.
        """
        epochs = self.training.epochs
        wanted = {0, epochs} | {2**n for n in range(epochs.bit_length()) if 2**n <= epochs}
        for way in WAYS:
            MMLogger.get_instance("study", log_level="ERROR")
            set_random_seed(self.training.seed)
            student = build_detector(self.model)
            student.init_weights()
            student.to(get_device())
            for epoch, _ in enumerate(self._epochs(way, student)):
                if epoch in wanted and (epoch or way == WAYS[0]):
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
                wrapper.update_params(self._loss(way, student, batch))
                schedule.step()
            yield

    def _loss(self, way: str, student: PAA, batch: dict[str, Any]) -> Tensor:
        if way == "paa":
            ready = student.data_preprocessor(batch, training=True)
            loss, _ = student.parse_losses(student.loss(ready["inputs"], ready["data_samples"]))
        else:
            asked = self.ask(batch)
            outputs = head_outputs(student, asked.images)
            total = asked.beliefs.overlap.sum().clamp(min=1)
            loss = soft_loss(student, outputs, asked, asked.beliefs, self.teacher.grid, total)
        return loss


def head_outputs(student: PAA, images: Tensor) -> list[Tensor]:
    """Class logits (B, P, C), encoded boxes (B, P, 4) and IoU logits (B, P, 1)."""
    levels = student.bbox_head(student.extract_feat(images))
    return [by_prior(part) for part in levels]


def soft_loss(
    student: PAA,
    outputs: list[Tensor],
    batch: SoftBatch,
    beliefs: Beliefs,
    grid: PriorGrid,
    total: Tensor,
) -> Tensor:
    """All soft-label losses of LAD's KL baseline (WACV 2022, section 4).

    Args:
        student: whose box coder counts.
        outputs: class logits (B, P, C), encoded boxes (B, P, 4) and IoU logits (B, P, 1).
        batch: the views.
        beliefs: what is learnt of them.
        grid: of the priors.
        total: what the losses are divided by.
    """
    scores, deltas, iou = outputs
    loss: Tensor = CLASS_LOSS(
        scores.flatten(0, 1), beliefs.probabilities.flatten(0, 1), avg_factor=total
    )
    view, prior = (beliefs.overlap > 0).nonzero(as_tuple=True)
    if not len(view):
        return loss
    anchors = grid.priors(batch.padded, scores.device).boxes[prior]
    strides = torch.tensor(grid.strides, device=scores.device)[batch.level[prior]]
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    sides = beliefs.boxes[view, prior] * strides[:, None]
    believed = torch.cat([centres - sides[:, :2], centres + sides[:, 2:]], 1)
    decoded = student.bbox_head.bbox_coder.decode(anchors, deltas[view, prior])
    loss = loss + BOX_LOSS(decoded, believed, beliefs.overlap[view, prior], avg_factor=total)
    return loss + IOU_LOSS(iou[view, prior, 0], beliefs.iou[view, prior], avg_factor=total)
