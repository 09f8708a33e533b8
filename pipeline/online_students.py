"""Detectors that make their labels in the training step: PAA on its own, LAD with a teacher.

All objects of a batch are assigned at once, where mmdet's PAA and LAD go object by object.
"""

import pipeline.mmcv_ops  # noqa: F401

from pathlib import Path
from typing import Any

import torch
from mmdet.models.dense_heads import LADHead
from mmdet.models.detectors import PAA
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

from pipeline.batch_grid import level_shapes_of, own_grid
from pipeline.checkpoint import load_model
from pipeline.online import BatchAssignment, assign_batch, pad_objects
from pipeline.soft_students import BatchTargets
from pipeline.teacher import Outputs, Teacher, check_rule, stack_levels
from pipeline.views import Shape

SMALLEST_WEIGHT = 1e-12
"""Of a positive's box loss: mmdet's EPS."""


@MODELS.register_module()
class BatchedPAAHead(LADHead):
    """A drop-in for mmdet's `PAAHead`: the same losses, all objects assigned at once.

    Raises:
        UserError: the assignment settings are not those of PAA.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_rule(self, "the student")

    def loss(self, x: list[Tensor], batch_data_samples: SampleList) -> dict[str, Tensor]:
        """The losses of `PAAHead`: loss_cls, loss_bbox, loss_iou; and the count of fallbacks.

        Args:
            x: features of the neck.
            batch_data_samples: B samples, as the preprocessor leaves them.
        """
        outputs = self(x)
        with torch.no_grad():
            found = stack_levels(outputs)
        assignment = assign_batch(self, found, batch_data_samples, level_shapes_of(x))
        instances, ignored, metas = unpack_gt_instances(batch_data_samples)
        losses: dict[str, Tensor] = self.loss_by_feat(
            *outputs, instances, metas, ignored, label_assignment_results=assignment.results
        )
        num_positives = assignment.results[-1]
        if num_positives:
            losses["loss_bbox"] = self._box_loss(outputs[1], assignment.results)
        return losses | _count(assignment)

    def _box_loss(self, deltas: list[Tensor], assignment: tuple) -> Tensor:
        """PAA's box loss, which weighs a positive by its overlap; LAD's does not."""
        _, _, targets, _, positives, anchors, _ = assignment
        flat = torch.cat([level.permute(0, 2, 3, 1).flatten(1, 2) for level in deltas], 1)
        predicted = self.bbox_coder.decode(anchors, flat.flatten(0, 1)[positives])
        overlap = bbox_overlaps(predicted.detach(), targets[positives], is_aligned=True)
        loss: Tensor = self.loss_bbox(
            predicted,
            targets[positives],
            overlap.clamp(min=SMALLEST_WEIGHT),
            avg_factor=overlap.sum(),
        )
        return loss


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
        return losses | _count(assignment)


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
        return losses | _count(assignment)

    def _targets(self, believed: Outputs, samples: SampleList, shapes: list[Shape]) -> BatchTargets:
        """The soft scores of a batch."""
        device = believed.scores.device
        boxes, _, present = pad_objects(samples, device)
        padded = samples[0].metainfo["batch_input_shape"]
        beliefs = self.teacher.believe_padded(believed, boxes, present, padded, self.min_iou)
        inside = own_grid(self.teacher.head, samples, shapes, device)
        image, prior = ((beliefs.overlap > 0) & inside).nonzero(as_tuple=True)
        grid = self.teacher.grid
        strides = torch.tensor(grid.strides, device=device)
        return BatchTargets(
            inside=inside,
            # Tensors of inference mode can't be part of a loss; indexing copies the others.
            probabilities=beliefs.probabilities.flatten(0, 1).clone(),
            places=image * inside.shape[1] + prior,
            anchors=grid.boxes(padded, device)[prior],
            strides=strides[grid.levels(padded, device)[prior]],
            overlap=beliefs.overlap[image, prior],
            boxes=beliefs.boxes[image, prior],
            iou=beliefs.iou[image, prior],
        )


def _count(assignment: BatchAssignment) -> dict[str, Tensor]:
    """Objects whose costs allowed no mixture, as what mmengine logs beside losses."""
    return {"fallbacks": torch.tensor(float(assignment.fallbacks))}
