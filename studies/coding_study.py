"""Which coding of the teacher's soft scores is small and still teaches the same.

Students are trained in two ways: as their heads train alone, and by a live teacher's soft scores: a
PAA on soft labels, a GFL by bckd. At stages of their training the loss of these and its gradient
are computed with the teacher's float32 scores, and again with what each coding leaves of them; for
bckd the live teacher has a box everywhere. docs/coding.md has results.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmdet.models.detectors import SingleStageDetector
from torch import Tensor

from benchmarks.random_teacher import CONFIGS, SCALE, RandomTeacher, draw_view, random_images
from pipeline.data.dataset import load_split
from pipeline.detector.build import load_model_config
from pipeline.loading.collate import collate_views
from pipeline.loading.dataset import view_dataset
from pipeline.loading.transforms import ALL_OBJECTS
from pipeline.online.settings import OnlineStudent
from pipeline.project.paths import Paths
from pipeline.project.text import markdown_table
from pipeline.store.coding import SoftSettings
from pipeline.students.taught import TaughtDetector
from pipeline.teacher_pass.label import load_teacher
from pipeline.teacher_pass.teacher import Least
from pipeline.training.settings import Training
from pipeline.views.plan import view_plan
from pipeline.views.settings import Views
from studies.coded import AnyCoding, Coded, decode_batch, decode_time, encode_batches, mean_bytes
from studies.codings import BoxCoding, ClassCoding, box_codings, class_codings, store_codings
from studies.students import SoftBatch, StudentTrainer, predict, soft_losses

BCKD_CONFIG = CONFIGS / "gfl_r18_quarter.py"
EVERYWHERE = Least(0, 0)
"""All boxes of a teacher."""
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
    """The results: of codings of class probabilities, of boxes with their scores, and of stores.

    The errors of `classes` are those of the soft-label loss of the classes alone, the errors of
    `boxes` those of the whole soft-label loss, the errors of `stores` those of bckd's losses.
    """

    classes: tuple[Result, ...]
    boxes: tuple[Result, ...]
    stores: tuple[Result, ...]


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


def relative_errors(
    student: SingleStageDetector,
    taught: TaughtDetector,
    batches: Sequence[SoftBatch],
    coded: dict[AnyCoding, Coded],
) -> dict[AnyCoding, Error]:
    """How far each coding takes loss and gradient from those of the teacher's float32 scores.

    Codings of class probabilities are judged by the class loss alone, others by the sum of all
    losses of the distillation. The losses of all batches are added up.

    Args:
        student: as it is in training; stays as it is.
        taught: a network of the same detector with a distillation; takes over the weights.
        batches: what is learnt.
        coded: what each coding writes of the batches.
    """
    taught.detector.load_state_dict(student.state_dict())
    taught.train()
    weights = [weight for weight in taught.detector.parameters() if weight.requires_grad]
    losses: dict[Any, float] = defaultdict(float)
    gradients: dict[Any, Tensor] = {}

    def add(key: Any, kind: type, found: dict[str, Tensor]) -> None:
        total = torch.stack([*found.values()]).sum()
        loss = found["loss_soft_cls"] if kind is ClassCoding else total
        parts = torch.autograd.grad(
            loss, weights, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        gradient = torch.cat([part.flatten() for part in parts])
        losses[key] += float(loss.detach())
        gradients[key] = gradients[key] + gradient if key in gradients else gradient

    for number, batch in enumerate(batches):
        outputs = taught.detector.bbox_head(taught.detector.extract_feat(batch.images))
        for kind in {type(coding) for coding in coded}:
            add(kind, kind, soft_losses(taught, outputs, batch.predicted, batch.grid))
        for coding, views in coded.items():
            decoded = decode_batch(coding, views[number], batch)
            add(coding, type(coding), soft_losses(taught, outputs, decoded, batch.grid))
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


def study_codings(
    config: str, training: Training, soft: SoftSettings, views: Views, paths: Paths, measured: int
) -> Study:
    """Train students in both ways, and measure all codings at stages of their training.

    Args:
        config: of the student of soft labels, a PAA.
        training: how students are trained.
        soft: the coding of the settings, and which boxes of the teacher count.
        views: which views there are.
        paths: where data and teacher are.
        measured: how many views to measure, spread evenly over the training images.

    Raises:
        UserError: data or teacher are missing, or the config is broken.
    """
    split = load_split(paths, "train")
    teacher, _ = load_teacher(paths, split)
    dataset = view_dataset(split, view_plan(views), ALL_OBJECTS)
    images = np.linspace(0, dataset.num_images - 1, min(measured, dataset.num_images)).round()
    plan = len(dataset.plan)
    chosen = [int(image) * plan + number % plan for number, image in enumerate(images)]

    def study(
        file: str, student: OnlineStudent, least: Least, compared: Sequence[AnyCoding]
    ) -> list[Result]:
        model = load_model_config(file, num_classes=len(split.classes))
        trainer = StudentTrainer(model, student, training, dataset, paths.teacher)
        batches = [
            predict(teacher, collate_views([dataset[view] for view in batch]), least)
            for batch in trainer.batches(chosen)
        ]
        return measure(trainer, batches, random_batches(least), compared)

    codings: list[AnyCoding] = [*class_codings(soft.scores), *box_codings()]
    student = OnlineStudent(config=config, method="soft", min_iou=soft.min_iou)
    results = study(config, student, Least(soft.min_iou, torch.inf), codings)
    file = str(BCKD_CONFIG)
    bckd = OnlineStudent(config=file, method="bckd")
    found = list(zip(codings, results, strict=True))
    return Study(
        classes=tuple(one for coding, one in found if isinstance(coding, ClassCoding)),
        boxes=tuple(one for coding, one in found if isinstance(coding, BoxCoding)),
        stores=tuple(study(file, bckd, EVERYWHERE, store_codings(soft))),
    )


def measure(
    trainer: StudentTrainer,
    batches: Sequence[SoftBatch],
    like_coco: Sequence[SoftBatch],
    compared: Sequence[AnyCoding],
) -> list[Result]:
    """Measure codings at stages of the training of a student.

    Args:
        trainer: of the student.
        batches: what its errors are measured on.
        like_coco: what sizes are measured on, too.
        compared: the codings.
    """
    coded = {coding: encode_batches(coding, batches) for coding in compared}
    errors = {
        stage: relative_errors(student, trainer.taught, batches, coded)
        for stage, student in trainer.stages()
    }
    return [
        Result(
            name=coding.name,
            view_bytes=mean_bytes(coded[coding]),
            coco_bytes=mean_bytes(encode_batches(coding, like_coco)),
            decode_ms=decode_time(coding, coded[coding], batches),
            errors={stage: found[coding] for stage, found in errors.items()},
        )
        for coding in compared
    ]


def random_batches(least: Least) -> list[SoftBatch]:
    """Random views like COCO's with the predictions of a random teacher; no images.

    Args:
        least: which of its boxes count.
    """
    teacher = RandomTeacher(seed=0)
    batches = []
    for image in random_images(RANDOM_VIEWS, seed=0):
        views = draw_view(teacher, image.objects, SCALE).forward_pass()
        predicted = teacher.predict_soft(views.outputs, views.truth, views.grid, least)
        batches.append(SoftBatch(torch.zeros(0), predicted, views.grid))
    return batches
