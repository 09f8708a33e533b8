"""Students with their teacher in memory, which labels the batch in each step."""

from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from torch import Tensor

from pipeline.data.ground_truth import IGNORED, GroundTruth
from pipeline.detector.model_folder import load_model
from pipeline.heads.batch_grid import BatchGrid, ground_truth
from pipeline.heads.family import Outputs
from pipeline.heads.positives import Positives
from pipeline.students.distillation import BatchTargets
from pipeline.students.taught import Lesson, TaughtDetector
from pipeline.teacher_pass.teacher import Least, SoftPredictions, Teacher


@MODELS.register_module()
class OnlineDetector(TaughtDetector):
    """A detector that learns what its teacher says in each step.

    The teacher is no part of the student: not of its weights, checkpoints or training mode.

    Args:
        teacher: the teacher's model folder.
        min_iou: m, teacher boxes count where they overlap an object by more than this; None where
            all count.
        **kwargs: see `TaughtDetector`.

    Raises:
        UserError: there is no such folder, or its head can't teach.
    """

    def __init__(self, teacher: str, min_iou: float | None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # A student starts from the same weights with and without a teacher beside it.
        with torch.random.fork_rng(devices=[]):
            detector, _ = load_model(Path(teacher), "lad teacher")
        self.teacher = Teacher(detector.requires_grad_(False))
        self.least = Least(0, 0) if min_iou is None else Least(min_iou, torch.inf)

    def lesson(self, inputs: Tensor, samples: SampleList, grid: BatchGrid) -> Lesson:
        """What the teacher says of the batch; see `TaughtDetector.lesson`."""
        if self.teacher.device != inputs.device:
            self.teacher.detector.to(inputs.device)
        outputs = self.teacher.forward(inputs)
        truth = ground_truth(samples, grid.device)
        positives = targets = fallbacks = None
        if self.assignment == "teacher":
            positives, fallbacks = self._positives(outputs, truth, grid)
        if self.distillation:
            predicted = self.teacher.predict_soft(outputs, truth, grid, self.least)
            targets = batch_targets(predicted, grid)
        return Lesson(positives, targets, fallbacks)

    def _positives(
        self, outputs: Outputs, truth: GroundTruth, grid: BatchGrid
    ) -> tuple[Positives, int]:
        assignment = self.teacher.assign(outputs, truth, grid)
        assigned = assignment.assigned_gt_inds.clone().flatten()
        (pos_inds,) = (assigned >= 0).nonzero(as_tuple=True)
        (ignored,) = (assigned == IGNORED).nonzero(as_tuple=True)
        return Positives(grid, pos_inds, assigned[pos_inds], ignored), assignment.fallbacks


def batch_targets(predicted: SoftPredictions, grid: BatchGrid) -> BatchTargets:
    """What a student learns of a teacher's soft scores of its batch.

    Args:
        predicted: of the teacher, on the batch's grid.
        grid: of the batch.
    """
    kept = predicted.kept & grid.valid_flags
    (indices,) = kept.flatten().nonzero(as_tuple=True)
    return BatchTargets(
        grid=grid,
        # Tensors of inference mode can't be part of a loss; indexing copies the others.
        probabilities=predicted.probabilities.clone(memory_format=torch.contiguous_format).flatten(
            0, 1
        ),
        indices=indices,
        max_iou=predicted.max_iou.flatten()[indices],
        boxes=grid.boxes_at(indices, predicted.distances.flatten(0, 1)[indices]),
        quality=predicted.quality.flatten()[indices],
    )
