"""GFL (Li et al., NeurIPS 2020, arXiv 2006.04388): boxes as distributions of four distances."""

from mmdet.structures.bbox import distance2bbox
from torch import Tensor

from pipeline.heads.atss import AssignedByATSS
from pipeline.heads.family import register
from pipeline.views.priors import Priors


@register
class GFL(AssignedByATSS):
    """mmdet's `GFLHead`, whose class scores are its IoU predictions, too."""

    heads = ("GFLHead",)

    def decode(self, encoded: Tensor, priors: Priors, index: Tensor) -> Tensor:
        """Boxes (K, 4) from logits (K, 4 * bins) of distances in strides."""
        distances = self.head.integral(encoded) * priors.strides[index, None]
        boxes: Tensor = distance2bbox(priors.centres[index], distances)
        return boxes
