"""RTMDet (Lyu et al., 2022, arXiv 2212.07784): points, assigned by a cost of soft labels."""

from mmdet.structures.bbox import distance2bbox
from torch import Tensor

from pipeline.heads.family import HeadFamily, Outputs, register
from pipeline.heads.points import with_strides
from pipeline.views.priors import Priors


@register
class RTMDet(HeadFamily):
    """mmdet's `RTMDetHead` and `RTMDetSepBNHead`."""

    heads = ("RTMDetHead", "RTMDetSepBNHead")

    def decode(self, encoded: Tensor, priors: Priors, index: Tensor) -> Tensor:
        """Boxes (K, 4) from distances (K, 4) in pixels."""
        boxes: Tensor = distance2bbox(priors.centres[index], encoded)
        return boxes

    def seen_by_assigner(self, outputs: Outputs, priors: Priors) -> dict[str, Tensor]:
        """Class logits and boxes."""
        scores = self.class_logits(outputs)
        return {"scores": scores, "bboxes": self.boxes(outputs, priors).view(*scores.shape[:2], 4)}

    def priors_of_assigner(self, priors: Priors) -> Tensor:
        """x, y and the strides, (P, 4)."""
        return with_strides(priors)
