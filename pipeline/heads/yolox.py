"""YOLOX (Ge et al., 2021, arXiv 2107.08430): points, assigned by SimOTA, with an objectness."""

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.heads.family import HeadFamily, Outputs, register
from pipeline.heads.points import with_strides
from pipeline.views.priors import Priors


@register
class YOLOX(HeadFamily):
    """mmdet's `YOLOXHead`; a class probability is that of the class times that of an object."""

    heads = ("YOLOXHead",)
    assigns_whole_grid = True

    def class_logits(self, outputs: Outputs) -> Tensor:
        """The logits of its class probabilities, (B, P, C)."""
        log_class = F.logsigmoid(self.by_prior(outputs[0]))
        log_both = log_class + F.logsigmoid(self.by_prior(outputs[2]))
        return log_both - torch.log(-torch.expm1(log_both))

    def decode(self, encoded: Tensor, priors: Priors, index: Tensor) -> Tensor:
        """Boxes (K, 4) from centres and logarithms of sizes (K, 4), both in strides."""
        boxes: Tensor = self.head._bbox_decode(with_strides(priors)[index], encoded)
        return boxes

    def seen_by_assigner(self, outputs: Outputs, priors: Priors) -> dict[str, Tensor]:
        """The square roots of probabilities, and boxes."""
        scores = self.by_prior(outputs[0]).sigmoid() * self.by_prior(outputs[2]).sigmoid()
        boxes = self.boxes(outputs, priors).view(*scores.shape[:2], 4)
        return {"scores": scores.sqrt(), "bboxes": boxes}

    def priors_of_assigner(self, priors: Priors) -> Tensor:
        """x, y of the cells' centres and the strides, (P, 4)."""
        return with_strides(priors, 0.5)
