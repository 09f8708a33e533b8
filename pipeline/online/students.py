"""Students with their teacher in memory, which labels the batch in each step."""

from pathlib import Path
from typing import Any

import torch
from mmdet.models.detectors import PAA
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from torch import Tensor

from pipeline.detector.model_folder import load_model
from pipeline.students.soft_scores import BatchTargets
from pipeline.teacher_pass.teacher import Outputs, Teacher
from pipeline.training.batch_grid import level_shapes_of, own_grid
from pipeline.training.online_assignment import assign_batch, count_fallbacks, pad_objects
from pipeline.views.plan import Shape


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

    def ask(self, batch_inputs: Tensor) -> Outputs:
        """What the teacher's head says of a batch.

        Args:
            batch_inputs: (B, 3, H, W) normalised images, on the student's device.
        """
        if self.teacher.device != batch_inputs.device:
            self.teacher.detector.to(batch_inputs.device)
        return self.teacher.forward(batch_inputs)

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """The losses of `LADHead`: loss_cls, loss_bbox, loss_iou; and the count of fallbacks.

        Args:
            batch_inputs: (B, 3, H, W) normalised images.
            batch_data_samples: B samples, as the preprocessor leaves them.
        """
        believed = self.ask(batch_inputs)
        features = self.extract_feat(batch_inputs)
        shapes = level_shapes_of(features)
        assignment = assign_batch(self.teacher.head, believed, batch_data_samples, shapes)
        losses: dict[str, Tensor] = self.bbox_head.loss(
            features, assignment.results, batch_data_samples
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
        believed = self.ask(batch_inputs)
        features = self.extract_feat(batch_inputs)
        head, teacher = self.bbox_head, self.teacher.head
        shapes = level_shapes_of(features)
        targets = self._targets(believed, batch_data_samples, shapes)
        if not head.with_assignment:
            losses: dict[str, Tensor] = head.soft_losses(head(features), targets)
            return losses
        assignment = assign_batch(teacher, believed, batch_data_samples, shapes)
        losses = head.losses(head(features), targets, assignment.results, batch_data_samples)
        return losses | count_fallbacks(assignment)

    def _targets(self, believed: Outputs, samples: SampleList, shapes: list[Shape]) -> BatchTargets:
        """The soft scores of a batch."""
        device = believed.device
        boxes, _, present = pad_objects(samples, device)
        padded = samples[0].metainfo["batch_input_shape"]
        beliefs = self.teacher.believe_padded(believed, boxes, present, padded, self.min_iou)
        inside = own_grid(self.teacher.head, samples, shapes, device)
        image, prior = ((beliefs.overlap > 0) & inside).nonzero(as_tuple=True)
        grid = self.teacher.grid
        priors = grid.priors(padded, device)
        strides = torch.tensor(grid.strides, device=device)
        return BatchTargets(
            inside=inside,
            # Tensors of inference mode can't be part of a loss; indexing copies the others.
            probabilities=beliefs.probabilities.clone(
                memory_format=torch.contiguous_format
            ).flatten(0, 1),
            places=image * inside.shape[1] + prior,
            anchors=priors.boxes[prior],
            strides=strides[priors.levels[prior]],
            overlap=beliefs.overlap[image, prior],
            boxes=beliefs.boxes[image, prior],
            iou=beliefs.iou[image, prior],
        )
