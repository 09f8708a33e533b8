"""From a batch of views to the rows of a store: the network, its decisions, their coding.

Shapes: B views with the same padded size.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.device import get_device

from pipeline.data.dataset import CheckedSplit
from pipeline.data.ground_truth import GroundTruth
from pipeline.detector.model_folder import load_model
from pipeline.heads.batch_grid import BatchGrid
from pipeline.heads.family import Outputs
from pipeline.heads.positives import Assignment
from pipeline.project.errors import UserError
from pipeline.project.paths import Paths
from pipeline.project.transfer import fetch
from pipeline.store.coding import SoftSettings, encode_distances, encode_fraction
from pipeline.store.schema import ASSIGNED_GT, SOFT_ARRAYS, Shard, StoreLayout
from pipeline.teacher_pass.teacher import (
    FLOAT32,
    Least,
    Numerics,
    SoftPredictions,
    Teacher,
)


def load_teacher(
    paths: Paths,
    split: CheckedSplit,
    numerics: Numerics = FLOAT32,
    device: str | None = None,
) -> tuple[Teacher, ConfigDict]:
    """The teacher on a device, and its config.

    Args:
        paths: of the project, whose teacher it is.
        split: it must know the classes of this one.
        numerics: how its network computes.
        device: None for the one of this process.

    Raises:
        UserError: it is missing, or knows other classes than the data set.
    """
    detector, model = load_model(paths.teacher, "lad teacher")
    if detector.bbox_head.num_classes != len(split.classes):
        raise UserError(
            f"the teacher in {paths.teacher} knows {detector.bbox_head.num_classes} classes, "
            f"the data set has {len(split.classes)}: {', '.join(split.classes)}"
        )
    return Teacher(detector.to(device or get_device()), numerics), model


@dataclass(frozen=True)
class ForwardPass:
    """What the network says of B views, with what it is to be compared with.

    Attributes:
        outputs: of the head.
        truth: the objects of the views.
        grid: of the views, which is that of each.
    """

    outputs: Outputs
    truth: GroundTruth
    grid: BatchGrid


def run_network(teacher: Teacher, batch: dict[str, Any]) -> ForwardPass:
    """Show the teacher's network views with the same padded size.

    Args:
        teacher: its network and its preprocessor are used.
        batch: B collated items of a data set with `ALL_OBJECTS`.
    """
    ready = teacher.detector.data_preprocessor(batch)
    objects = [sample.metainfo["objects"] for sample in ready["data_samples"]]
    truth = GroundTruth.pad(
        *([torch.from_numpy(one[name]) for one in objects] for name in ("boxes", "labels", "crowd"))
    )
    count, _, height, width = ready["inputs"].shape
    grid = BatchGrid(teacher.grid, (height, width), [(height, width)] * count, teacher.device)
    return ForwardPass(teacher.forward(ready["inputs"]), truth.to(teacher.device), grid)


def label_views(
    teacher: Teacher, views: ForwardPass, soft: SoftSettings | None
) -> tuple[Assignment, SoftPredictions | None]:
    """The teacher's assignment and soft scores, from what its network says.

    Args:
        teacher: its head decides.
        views: what the network says of them.
        soft: how soft scores are stored, if at all.
    """
    assignment = teacher.assign(views.outputs, views.truth, views.grid)
    if soft is None:
        return assignment, None
    least = Least(soft.min_iou, soft.min_score)
    return assignment, teacher.predict_soft(views.outputs, views.truth, views.grid, least)


def label_rows(
    teacher: Teacher, views: ForwardPass, soft: SoftSettings | None
) -> tuple[dict[str, np.ndarray], int]:
    """The rows of views in a store.

    Args:
        teacher: its head decides.
        views: what the network says of them.
        soft: how soft scores are stored, if at all.

    Returns:
        What to write by array name, each (B, ...), and the number of objects that fell back.

    Raises:
        UserError: what the network says is not finite.
    """
    finite = _are_finite(views.outputs)
    try:
        assignment, predicted = label_views(teacher, views, soft)
    except Exception:
        _require(bool(finite))
        raise
    rows = {ASSIGNED_GT: assignment.assigned_gt_inds.to(torch.int16), "finite": finite}
    if soft and predicted:
        coded = (
            *soft.scores.encode(predicted.probabilities),
            encode_distances(predicted.distances),
            encode_fraction(torch.stack((predicted.max_iou, predicted.quality), 1)),
        )
        rows |= dict(zip(SOFT_ARRAYS, coded, strict=True))
    arrived = fetch(rows)
    _require(bool(arrived.pop("finite")))
    return arrived, assignment.fallbacks


def _are_finite(outputs: Outputs) -> torch.Tensor:
    """Whether all that a head returns is finite, a bool of its device; a sum tells."""
    sums = [level.sum() for levels in outputs for level in levels]
    return torch.stack(sums).isfinite().all()


def _require(finite: bool) -> None:
    if not finite:
        raise UserError(
            "the teacher's outputs are not finite, so it can't say what a prior learns: its "
            "training has diverged, or labels.autocast is too narrow for its network (float16 ends "
            "at 65504; bfloat16 does not)"
        )


def batches_of(shard: Shard, layout: StoreLayout, made_with: dict[str, Any]) -> list[list[int]]:
    """The views of a shard, in batches for the teacher.

    Args:
        shard: which views.
        layout: of the store.
        made_with: of the store: its `batch_size`, and those of buckets that have others.
    """
    bucket = layout.buckets[shard.bucket].name
    size = made_with.get("bucket_batch_sizes", {}).get(bucket, made_with["batch_size"])
    views: list[int] = shard.views.tolist()
    return [views[start : start + size] for start in range(0, len(views), size)]
