"""Which coding of the teacher's soft scores is small and still teaches the same.

Students are trained in two ways: as PAA trains them, and on the soft labels of a live teacher. At
stages of their training the soft-label loss and its gradient are computed with the teacher's
float32 scores, and again with what each coding leaves of them. docs/coding.md has results.
"""

import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from mmdet.models.detectors import PAA
from torch import Tensor

from benchmarks.random_teacher import DIVISOR, SCALE, RandomTeacher, random_images
from pipeline.data.dataset import load_data_info
from pipeline.detector.build import load_model_config
from pipeline.loading.collate import collate_views
from pipeline.project.params import Params
from pipeline.project.paths import Paths
from pipeline.store.coding import Coding, SoftSettings
from pipeline.teacher_pass.labelling import load_teacher, view_dataset
from pipeline.teacher_pass.teacher import Beliefs
from pipeline.views.plan import padded_shape, view_plan
from pipeline.views.priors import PriorGrid
from studies.codings import Arrays, BoxTrial, Trial, box_trials, chunk, trials, unchunk
from studies.students import CLASS_LOSS, Course, SoftBatch, head_outputs, soft_loss

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


Coded = list[list[Arrays]]
"""The arrays of each view of each batch."""


def encode_batches(trial: Trial | BoxTrial, batches: Sequence[SoftBatch]) -> Coded:
    """What a coding would write of the batches."""
    if isinstance(trial, Trial):
        return [
            [trial.encode(view.cpu(), batch.level.cpu()) for view in batch.beliefs.probabilities]
            for batch in batches
        ]
    return [
        [
            trial.encode(*(part.cpu() for part in view))
            for view in zip(
                batch.beliefs.overlap, batch.beliefs.boxes, batch.beliefs.iou, strict=True
            )
        ]
        for batch in batches
    ]


def decode_batch(trial: Trial | BoxTrial, views: list[Arrays], batch: SoftBatch) -> Beliefs:
    """What a coding leaves of the beliefs of a batch."""
    device = batch.images.device
    if isinstance(trial, Trial):
        level = batch.level.cpu()
        decoded = torch.stack([trial.decode(arrays, level) for arrays in views])
        return replace(batch.beliefs, probabilities=decoded.to(device))
    parts = zip(*(trial.decode(*arrays) for arrays in views), strict=True)
    overlap, boxes, iou = (torch.stack(part).to(device) for part in parts)
    return replace(batch.beliefs, overlap=overlap, boxes=boxes, iou=iou)


def relative_errors(
    student: PAA,
    batches: Sequence[SoftBatch],
    grid: PriorGrid,
    coded: dict[Trial | BoxTrial, Coded],
) -> dict[Trial | BoxTrial, Error]:
    """How far each coding takes loss and gradient from those of the teacher's float32 scores.

    Codings of class probabilities are judged by the class loss alone, those of boxes by the sum
    of all soft-label losses. All batches together are divided by their sum of overlaps.

    Args:
        student: as it is in training; stays as it is.
        batches: what is learnt.
        grid: of the priors.
        coded: what each coding writes of the batches.
    """
    student = copy.deepcopy(student).train()
    weights = [weight for weight in student.parameters() if weight.requires_grad]
    total = torch.stack([batch.beliefs.overlap.sum() for batch in batches]).sum()
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
        outputs = head_outputs(student, batch.images)
        for kind in {type(trial) for trial in coded}:
            add(kind, _loss(kind, student, outputs, batch, batch.beliefs, grid, total))
        for trial, views in coded.items():
            beliefs = decode_batch(trial, views[number], batch)
            add(trial, _loss(type(trial), student, outputs, batch, beliefs, grid, total))
    return {
        trial: Error(
            loss=abs(losses[trial] / losses[type(trial)] - 1),
            gradient=float(
                (gradients[trial] - gradients[type(trial)]).norm() / gradients[type(trial)].norm()
            ),
        )
        for trial in coded
    }


def _loss(
    kind: type,
    student: PAA,
    outputs: list[Tensor],
    batch: SoftBatch,
    beliefs: Beliefs,
    grid: PriorGrid,
    total: Tensor,
) -> Tensor:
    """The loss that codings of this kind are judged by."""
    if kind is BoxTrial:
        return soft_loss(student, outputs, batch, beliefs, grid, total)
    loss: Tensor = CLASS_LOSS(
        outputs[0].flatten(0, 1), beliefs.probabilities.flatten(0, 1), avg_factor=total
    )
    return loss


def study_codings(
    name: str, params: Params, paths: Paths, views: int, epochs: int | None = None
) -> Study:
    """Train the student `name` in both ways, and measure all codings at stages of its training.

    Args:
        name: of the student; its config and training settings count, its method does not.
        params: the settings.
        paths: where data and teacher are.
        views: how many to measure, spread evenly over the training images.
        epochs: replaces those of the student's training.

    Raises:
        UserError: there is no such student, or data or teacher are missing.
    """
    training = params.student_training(name)
    training = training.model_copy(update={"amp": False, "epochs": epochs or training.epochs})
    data = load_data_info(paths)
    teacher, _ = load_teacher(paths, data)
    soft = SoftSettings(Coding(**params.labels.scores.model_dump()), params.labels.min_iou)
    model = load_model_config(params.student(name).config, num_classes=len(data.classes))
    dataset = view_dataset(data, view_plan(params.views))
    course = Course(model, training, dataset, teacher, soft)

    images = np.linspace(0, dataset.num_images - 1, min(views, dataset.num_images)).round()
    plan = len(dataset.plan)
    chosen = [int(image) * plan + number % plan for number, image in enumerate(images)]
    measured = [
        course.ask(collate_views([dataset[view] for view in batch]))
        for batch in course.batches(chosen)
    ]
    like_coco = random_batches(soft.min_iou)
    compared: list[Trial | BoxTrial] = [*trials(soft.scores), *box_trials()]
    coded = {trial: encode_batches(trial, measured) for trial in compared}
    errors: dict[Trial | BoxTrial, dict[str, Error]] = {trial: {} for trial in compared}
    for stage, student in course.stages():
        for trial, error in relative_errors(student, measured, teacher.grid, coded).items():
            errors[trial][stage] = error
    results = {
        trial: Result(
            name=trial.name,
            view_bytes=mean_bytes(coded[trial]),
            coco_bytes=mean_bytes(encode_batches(trial, like_coco)),
            decode_ms=_decode_time(trial, coded[trial], measured),
            errors=errors[trial],
        )
        for trial in compared
    }
    return Study(
        classes=tuple(result for trial, result in results.items() if isinstance(trial, Trial)),
        boxes=tuple(result for trial, result in results.items() if isinstance(trial, BoxTrial)),
    )


def random_batches(min_iou: float) -> list[SoftBatch]:
    """Random views like COCO's with the beliefs of a random teacher; no images."""
    teacher = RandomTeacher(seed=0)
    padded = padded_shape((SCALE[1], SCALE[0]), DIVISOR)
    batches = []
    for image in random_images(RANDOM_VIEWS, seed=0):
        teacher.objects = image.objects
        outputs = teacher.forward(torch.zeros(1, 3, *padded))
        beliefs = teacher.believe(outputs, [image.objects], padded, min_iou)
        batches.append(
            SoftBatch(torch.zeros(0), beliefs, teacher.grid.priors(padded).levels, padded)
        )
    return batches


def mean_bytes(coded: Coded) -> float:
    """Mean size of a view, each array compressed as a chunk of the store."""
    views = [arrays for batch in coded for arrays in batch]
    return statistics.mean(sum(len(chunk(array)) for array in arrays) for arrays in views)


def _decode_time(trial: Trial | BoxTrial, coded: Coded, batches: Sequence[SoftBatch]) -> float:
    """Median milliseconds to decompress and decode a view."""
    spent = []
    for views, batch in zip(coded, batches, strict=True):
        level = batch.level.cpu()
        for arrays in views:
            chunks = [chunk(array) for array in arrays]
            started = time.perf_counter()
            read = tuple(unchunk(data, like) for data, like in zip(chunks, arrays, strict=True))
            if isinstance(trial, Trial):
                trial.decode(read, level)
            else:
                trial.decode(*read)
            spent.append(time.perf_counter() - started)
    return statistics.median(spent) * 1e3
