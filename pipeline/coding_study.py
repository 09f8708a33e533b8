"""Which coding of the teacher's class probabilities is small and still teaches the same.

A student is trained on the soft labels of a live teacher. At several stages of its training, the
soft-label class loss and its gradient are computed with the teacher's float32 probabilities, and
again with what each coding leaves of them. docs/coding.md has the results.
"""

import pipeline.mmcv_ops  # noqa: F401

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmdet.models.detectors import PAA
from mmdet.models.losses import GIoULoss
from mmdet.models.utils import levels_to_images
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from mmengine.runner import set_random_seed
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from pipeline.checkpoint import load_model
from pipeline.coco import Objects
from pipeline.dataset import load_data_info
from pipeline.detector import build_detector, load_model_config
from pipeline.losses import SoftLabelLoss
from pipeline.params import Params, Training
from pipeline.paths import Paths
from pipeline.precompute import view_dataset
from pipeline.replay import ViewDataset, ViewSampler
from pipeline.teacher import Beliefs, Outputs, Teacher
from pipeline.training import optim_wrapper
from pipeline.trial_codings import Trial, measure_size
from pipeline.views import Shape, padded_shape, view_plan

CLASS_LOSS = SoftLabelLoss(loss_weight=10)
IOU_LOSS = SoftLabelLoss(loss_weight=10)
BOX_LOSS = GIoULoss(loss_weight=1.3)


class SoftBatch:
    """Views of one bucket as a student sees them, with what a live teacher believes of them.

    Args:
        teacher: is asked once.
        batch: B collated items of `view_dataset`.
        min_iou: boxes count where they overlap an object by more than this.

    Attributes:
        images: (B, 3, H, W), normalised and padded.
        beliefs: the teacher's.
    """

    def __init__(self, teacher: Teacher, batch: dict[str, Any], min_iou: float) -> None:
        ready = teacher.detector.data_preprocessor(batch)
        self.images: Tensor = ready["inputs"]
        self.padded: Shape = self.images.shape[-2], self.images.shape[-1]
        self.objects = [
            Objects(
                boxes=sample.metainfo["objects"]["boxes"].astype(np.float64),
                labels=sample.metainfo["objects"]["labels"],
                crowd=sample.metainfo["objects"]["crowd"],
            )
            for sample in ready["data_samples"]
        ]
        outputs = teacher.forward(self.images)
        self.beliefs = teacher.believe(outputs, self.objects, self.padded, min_iou)


def _batches(
    dataset: ViewDataset, views: Sequence[int], divisor: int, size: int
) -> list[list[int]]:
    """Views in batches of one bucket each, in order."""
    buckets: dict[Shape, list[int]] = {}
    for view in views:
        info = dataset.get_data_info(view)
        shape = info["view"].resized_shape(info["height"], info["width"])
        buckets.setdefault(padded_shape(shape, divisor), []).append(view)
    return [
        bucket[start : start + size]
        for bucket in buckets.values()
        for start in range(0, len(bucket), size)
    ]


def forward(detector: PAA, images: Tensor) -> Outputs:
    """Like `Teacher.forward`, with a graph."""
    outputs = detector.bbox_head(detector.extract_feat(images))
    scores, deltas, iou = (torch.stack(levels_to_images(levels)) for levels in outputs)
    return Outputs(scores, deltas, iou[..., 0])


def class_loss(scores: Tensor, probabilities: Tensor, overlap: Tensor) -> Tensor:
    """The soft-label class loss of a batch."""
    return CLASS_LOSS(
        scores.flatten(0, 1), probabilities.flatten(0, 1), avg_factor=overlap.sum().clamp(min=1)
    )
