"""Students with their teacher in memory, which labels the batch in each step."""

from pathlib import Path
from typing import Any

import torch
from mmdet.models.detectors import PAA
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from torch import Tensor

from pipeline.detector.model_folder import load_model
from pipeline.heads.paa import HeadOutputs
from pipeline.students.soft_scores import BatchTargets
from pipeline.teacher_pass.teacher import SoftPredictions, Teacher
from pipeline.training.batch_assignment import BatchAssignment, assign_batch, count_fallbacks
from pipeline.training.batch_grid import BatchGrid, ground_truth


@MODELS.register_module()
class OnlineLAD(PAA):
    """A PAA detector that learns, with mmdet's LAD losses, what its teacher decides in each step.

    The teacher is no part of the student: not of its weights, checkpoints or training mode.

    Args:
        teacher: the teacher's model folder.

    Raises:
        UserError: there is no such folder, or its network does not assign as PAA does.
    """

    def __init__(self, *args: Any, teacher: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # A student starts from the same weights with and without a teacher beside it.
        with torch.random.fork_rng(devices=[]):
            detector, _ = load_model(Path(teacher), "lad teacher")
        self.teacher = Teacher(detector.requires_grad_(False))

    def teacher_outputs(self, batch_inputs: Tensor) -> HeadOutputs:
        """What the teacher's head says of a batch.

        Args:
            batch_inputs: (B, 3, H, W) normalised images, on the student's device.
        """
        if self.teacher.device != batch_inputs.device:
            self.teacher.detector.to(batch_inputs.device)
        return self.teacher.forward(batch_inputs)

    def teacher_assignment(
        self, outputs: HeadOutputs, samples: SampleList, grid: BatchGrid
    ) -> BatchAssignment:
        """What the teacher decides of a batch.

        Args:
            outputs: of the teacher's head.
            samples: B samples, as the preprocessor leaves them.
            grid: of the batch.
        """
        return assign_batch(self.teacher.head, outputs, samples, grid)

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """The losses of `LADHead`: loss_cls, loss_bbox, loss_iou; and the count of fallbacks.

        Args:
            batch_inputs: (B, 3, H, W) normalised images.
            batch_data_samples: B samples, as the preprocessor leaves them.
        """
        outputs = self.teacher_outputs(batch_inputs)
        grid = BatchGrid.of(self.teacher.grid, batch_data_samples, batch_inputs.device)
        assignment = self.teacher_assignment(outputs, batch_data_samples, grid)
        losses: dict[str, Tensor] = self.bbox_head.loss(
            self.extract_feat(batch_inputs), assignment.labels, batch_data_samples
        )
        return losses | count_fallbacks(assignment)


@MODELS.register_module()
class OnlineSoftLAD(OnlineLAD):
    """A PAA detector that learns its teacher's soft scores in each step, alone or with LAD.

    Its head is a `SoftLADHead`.

    Args:
        min_iou: m, teacher boxes count where they overlap an object by more than this.
        teacher: the teacher's model folder.
    """

    def __init__(self, *args: Any, min_iou: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.min_iou = min_iou

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """The losses of `SoftLADHead`, and with LAD the count of fallbacks.

        Args:
            batch_inputs: (B, 3, H, W) normalised images.
            batch_data_samples: B samples, as the preprocessor leaves them.
        """
        outputs = self.teacher_outputs(batch_inputs)
        grid = BatchGrid.of(self.teacher.grid, batch_data_samples, batch_inputs.device)
        head = self.bbox_head
        truth = ground_truth(batch_data_samples, grid.device)
        predicted = self.teacher.predict_soft(outputs, truth, grid.padded, self.min_iou)
        targets = batch_targets(predicted, grid)
        own = HeadOutputs(*head(self.extract_feat(batch_inputs)))
        if not head.with_assignment:
            losses: dict[str, Tensor] = head.soft_losses(own, targets)
            return losses
        assignment = self.teacher_assignment(outputs, batch_data_samples, grid)
        losses = head.losses(own, targets, assignment.labels, batch_data_samples)
        return losses | count_fallbacks(assignment)


def batch_targets(predicted: SoftPredictions, grid: BatchGrid) -> BatchTargets:
    """What a student learns of a teacher's soft scores of its batch.

    Args:
        predicted: of the teacher, on the batch's grid.
        grid: of the batch.
    """
    kept = (predicted.max_iou > 0) & grid.valid_flags
    (indices,) = kept.flatten().nonzero(as_tuple=True)
    return BatchTargets(
        valid_flags=grid.valid_flags,
        # Tensors of inference mode can't be part of a loss; indexing copies the others.
        probabilities=predicted.probabilities.clone(memory_format=torch.contiguous_format).flatten(
            0, 1
        ),
        indices=indices,
        anchors=grid.anchors(indices),
        max_iou=predicted.max_iou.flatten()[indices],
        boxes=grid.boxes_at(indices, predicted.distances.flatten(0, 1)[indices]),
        iou=predicted.iou.flatten()[indices],
    )
