"""TOOD (Feng et al., ICCV 2021, arXiv 2108.07755): priors that classify and locate well learn."""

import torch
from mmdet.models.task_modules import AssignResult
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor

from pipeline.heads.family import HeadFamily, Outputs, register
from pipeline.heads.replay import RecordingAssigner
from pipeline.views.priors import Priors

SMALLEST = 1e-6
"""Probabilities are not closer to 0 or 1 where their logit is taken."""


@register
class TOOD(HeadFamily):
    """mmdet's `TOODHead`, which puts out probabilities and boxes in strides.

    It begins with ATSS's assigner and goes on with its own; a store holds what the latter decides,
    and a student of given assignments learns them from the first epoch on.
    """

    heads = ("TOODHead",)
    assigners = ("initial_assigner", "assigner")

    def class_logits(self, outputs: Outputs) -> Tensor:
        """The logits of its class probabilities, (B, P, C)."""
        return torch.logit(self.by_prior(outputs[0]), SMALLEST)

    def class_probabilities(self, outputs: Outputs) -> Tensor:
        """Its class probabilities, (B, P, C)."""
        return self.by_prior(outputs[0])

    def decode(self, encoded: Tensor, priors: Priors, index: Tensor) -> Tensor:
        """Boxes (K, 4) from boxes (K, 4) in strides."""
        return encoded * priors.strides[index, None]

    def seen_by_assigner(self, outputs: Outputs, priors: Priors) -> dict[str, Tensor]:
        """Probabilities and boxes."""
        scores = self.class_probabilities(outputs)
        return {"scores": scores, "bboxes": self.boxes(outputs, priors).view(*scores.shape[:2], 4)}

    def run_assigner(
        self, predicted: InstanceData, instances: InstanceData, counts: list[int]
    ) -> AssignResult:
        """Call mmdet's assigner for a view; see `HeadFamily.run_assigner`."""
        head = self.head
        return head.alignment_assigner.assign(predicted, instances, None, head.alpha, head.beta)

    @classmethod
    def replaying(cls, model: ConfigDict) -> ConfigDict:
        """The config of a network that learns given assignments; see `HeadFamily.replaying`."""
        model.train_cfg.initial_epoch = 0
        return super().replaying(model)

    @classmethod
    def recording(cls, model: ConfigDict) -> ConfigDict:
        """The config of a network that counts the positives of its own."""
        for name in cls.assigners:
            own = model.train_cfg[name]
            model.train_cfg[name] = dict(type=RecordingAssigner.__name__, assigner=own)
        return model

    def recorders(self) -> list[RecordingAssigner]:
        """What records the assignments of a `recording` network."""
        return [self.head.initial_assigner, self.head.alignment_assigner]
