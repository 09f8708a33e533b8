"""Which coding of the teacher's soft scores is small and still teaches the same.

Students are trained in two ways: as PAA trains them, and on the soft labels of a live teacher. At
stages of their training the soft-label loss and its gradient are computed with the teacher's
float32 scores, and again with what each coding leaves of them. docs/coding.md has results.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from mmdet.models.detectors import PAA
from mmengine.config import ConfigDict
from torch import Tensor

from benchmarks.random_teacher import SCALE, RandomTeacher, draw_view, random_images
from pipeline.data.dataset import load_split
from pipeline.detector.build import load_model_config
from pipeline.heads.paa import HeadOutputs
from pipeline.loading.collate import collate_views
from pipeline.loading.dataset import view_dataset
from pipeline.loading.transforms import ALL_OBJECTS
from pipeline.project.paths import Paths
from pipeline.project.text import markdown_table
from pipeline.store.coding import SoftSettings
from pipeline.teacher_pass.label import load_teacher
from pipeline.teacher_pass.teacher import SoftPredictions
from pipeline.heads.batch_grid import BatchGrid
from pipeline.training.settings import Training
from pipeline.views.plan import view_plan
from pipeline.views.settings import Views
from studies.codings import (
    Arrays,
    BoxCoding,
    ClassCoding,
    box_codings,
    chunk,
    class_codings,
    unchunk,
)
from studies.students import SoftBatch, StudentTrainer, predict, soft_losses, with_weights

RANDOM_VIEWS = 4
"""Views like COCO's that sizes are measured on."""


@dataclass(frozen=True)
class Error:
    """The relative error of a loss, and of its gradient in all parameters of a student."""

    loss: float
    gradient: float


@dataclass(frozen=True)
class Result:
    """What a coding costs and does.

    Attributes:
        name: of the coding.
        view_bytes: mean, each array of a view compressed as a chunk of the store.
        coco_bytes: the same for random views like COCO's, of 80 classes.
        decode_ms: median time to decompress and decode a view.
        errors: by stage of training, `<way> <epochs>`.
    """

    name: str
    view_bytes: float
    coco_bytes: float
    decode_ms: float
    errors: dict[str, Error]

    def worst(self, way: str) -> float:
        """The largest error of the gradient in students trained this way."""
        return max(e.gradient for stage, e in self.errors.items() if stage.startswith(way))


@dataclass(frozen=True)
class Study:
    """The results: of codings of class probabilities, and of boxes with their scores.

    The errors of `classes` are those of the class loss alone, the errors of `boxes` those of the
    whole soft-label loss.
    """

    classes: tuple[Result, ...]
    boxes: tuple[Result, ...]


def result_table(results: Sequence[Result]) -> list[str]:
    """Markdown: a line a coding, the smallest last, with the gradient's error at each stage."""
    stages = list(results[0].errors)
    figures = ("bytes a view", "like COCO", "decode, ms", "loss error, worst", *stages)
    rows = (
        (
            result.name,
            f"{result.view_bytes:.0f}",
            f"{result.coco_bytes:.0f}",
            f"{result.decode_ms:.2f}",
            f"{max(error.loss for error in result.errors.values()):.4f}",
            *(f"{result.errors[stage].gradient:.4f}" for stage in stages),
        )
        for result in sorted(results, key=lambda one: -one.view_bytes)
    )
    return markdown_table(["coding", *(f">{one}" for one in figures)], rows)


Coded = list[list[Arrays]]
"""The arrays of each view of each batch."""


def encode_batches(coding: ClassCoding | BoxCoding, batches: Sequence[SoftBatch]) -> Coded:
    """What a coding would write of the batches."""
    coded: Coded = []
    for batch in batches:
        predicted = batch.predicted
        if isinstance(coding, ClassCoding):
            levels = batch.levels.cpu()
            coded.append([coding.encode(view.cpu(), levels) for view in predicted.probabilities])
        else:
            views = zip(predicted.max_iou, predicted.distances, predicted.iou, strict=True)
            coded.append([coding.encode(*(part.cpu() for part in view)) for view in views])
    return coded


def decode_batch(
    coding: ClassCoding | BoxCoding, views: list[Arrays], batch: SoftBatch
) -> SoftPredictions:
    """What a coding leaves of what the teacher predicts.

    Args:
        coding: the one.
        views: the arrays of each view of the batch.
        batch: with the exact predictions.
    """
    device = batch.predicted.iou.device
    if isinstance(coding, ClassCoding):
        levels = batch.levels.cpu()
        decoded = torch.stack([coding.decode(arrays, levels) for arrays in views])
        return replace(batch.predicted, probabilities=decoded.to(device))
    parts = zip(*(coding.decode(*arrays) for arrays in views), strict=True)
    max_iou, distances, iou = (torch.stack(part).to(device) for part in parts)
    return replace(batch.predicted, max_iou=max_iou, distances=distances, iou=iou)


def relative_errors(
    student: PAA,
    soft_model: ConfigDict,
    batches: Sequence[SoftBatch],
    coded: dict[ClassCoding | BoxCoding, Coded],
) -> dict[ClassCoding | BoxCoding, Error]:
    """How far each coding takes loss and gradient from those of the teacher's float32 scores.

    Codings of class probabilities are judged by the class loss alone, those of boxes by the sum
    of all soft-label losses. The losses of all batches are added up.

    Args:
        student: as it is in training; stays as it is.
        soft_model: the student's config with a head that has the soft-label losses.
        batches: what is learnt.
        coded: what each coding writes of the batches.
    """
    network = with_weights(soft_model, student).train()
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    losses: dict[Any, float] = defaultdict(float)
    gradients: dict[Any, Tensor] = {}

    def add(key: Any, loss: Tensor) -> None:
        parts = torch.autograd.grad(
            loss, weights, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        gradient = torch.cat([part.flatten() for part in parts])
        losses[key] += float(loss.detach())
        gradients[key] = gradients[key] + gradient if key in gradients else gradient

    for number, batch in enumerate(batches):
        outputs = HeadOutputs(*network.bbox_head(network.extract_feat(batch.images)))
        for kind in {type(coding) for coding in coded}:
            add(kind, _loss(kind, network, outputs, batch.predicted, batch.grid))
        for coding, views in coded.items():
            decoded = decode_batch(coding, views[number], batch)
            add(coding, _loss(type(coding), network, outputs, decoded, batch.grid))
    return {
        coding: Error(
            loss=abs(losses[coding] / losses[type(coding)] - 1),
            gradient=float(
                (gradients[coding] - gradients[type(coding)]).norm()
                / gradients[type(coding)].norm()
            ),
        )
        for coding in coded
    }


def _loss(
    kind: type, network: PAA, outputs: HeadOutputs, predicted: SoftPredictions, grid: BatchGrid
) -> Tensor:
    """The loss that codings of this kind are judged by."""
    losses = soft_losses(network, outputs, predicted, grid)
    return losses["loss_soft_cls"] if kind is ClassCoding else torch.stack([*losses.values()]).sum()


def study_codings(
    config: str, training: Training, soft: SoftSettings, views: Views, paths: Paths, measured: int
) -> Study:
    """Train a student in both ways, and measure all codings at stages of its training.

    Args:
        config: of the student, a PAA.
        training: how it is trained.
        soft: the coding of the settings, and which boxes of the teacher count.
        views: which views there are.
        paths: where data and teacher are.
        measured: how many views to measure, spread evenly over the training images.

    Raises:
        UserError: data or teacher are missing, or the config is broken.
    """
    split = load_split(paths, "train")
    teacher, _ = load_teacher(paths, split)
    model = load_model_config(config, num_classes=len(split.classes))
    dataset = view_dataset(split, view_plan(views), ALL_OBJECTS)
    trainer = StudentTrainer(model, training, dataset, paths.teacher, soft.min_iou)

    images = np.linspace(0, dataset.num_images - 1, min(measured, dataset.num_images)).round()
    plan = len(dataset.plan)
    chosen = [int(image) * plan + number % plan for number, image in enumerate(images)]
    batches = [
        predict(teacher, collate_views([dataset[view] for view in batch]), soft.min_iou)
        for batch in trainer.batches(chosen)
    ]
    like_coco = random_batches(soft.min_iou)
    compared: list[ClassCoding | BoxCoding] = [*class_codings(soft.scores), *box_codings()]
    coded = {coding: encode_batches(coding, batches) for coding in compared}
    errors: dict[ClassCoding | BoxCoding, dict[str, Error]] = {coding: {} for coding in compared}
    for stage, student in trainer.stages():
        found = relative_errors(student, trainer.models["soft"], batches, coded)
        for coding, error in found.items():
            errors[coding][stage] = error
    results = {
        coding: Result(
            name=coding.name,
            view_bytes=mean_bytes(coded[coding]),
            coco_bytes=mean_bytes(encode_batches(coding, like_coco)),
            decode_ms=_decode_time(coding, coded[coding], batches),
            errors=errors[coding],
        )
        for coding in compared
    }
    return Study(
        classes=tuple(one for coding, one in results.items() if isinstance(coding, ClassCoding)),
        boxes=tuple(one for coding, one in results.items() if isinstance(coding, BoxCoding)),
    )


def random_batches(min_iou: float) -> list[SoftBatch]:
    """Random views like COCO's with the predictions of a random teacher; no images."""
    teacher = RandomTeacher(seed=0)
    batches = []
    for image in random_images(RANDOM_VIEWS, seed=0):
        views = draw_view(teacher, image.objects, SCALE).forward_pass()
        predicted = teacher.predict_soft(views.outputs, views.truth, views.padded, min_iou)
        grid = BatchGrid(teacher.grid, views.padded, [views.padded], teacher.device)
        batches.append(SoftBatch(torch.zeros(0), predicted, grid))
    return batches


def mean_bytes(coded: Coded) -> float:
    """Mean size of a view, each array compressed as a chunk of the store."""
    views = [arrays for batch in coded for arrays in batch]
    return statistics.mean(sum(len(chunk(array)) for array in arrays) for arrays in views)


def _decode_time(
    coding: ClassCoding | BoxCoding, coded: Coded, batches: Sequence[SoftBatch]
) -> float:
    """Median milliseconds to decompress and decode a view."""
    spent = []
    for views, batch in zip(coded, batches, strict=True):
        levels = batch.levels.cpu()
        for arrays in views:
            chunks = [chunk(array) for array in arrays]
            started = time.perf_counter()
            read = tuple(unchunk(data, like) for data, like in zip(chunks, arrays, strict=True))
            if isinstance(coding, ClassCoding):
                coding.decode(read, levels)
            else:
                coding.decode(*read)
            spent.append(time.perf_counter() - started)
    return statistics.median(spent) * 1e3
