"""VFNet (Zhang et al., CVPR 2021, arXiv 2008.13367): distances, refined once, IoU-aware scores."""

from functools import cached_property

from mmdet.structures.bbox import distance2bbox
from torch import Tensor

from pipeline.heads.atss import AssignedByATSS
from pipeline.heads.family import Outputs, register
from pipeline.heads.prior_grid import read_grid
from pipeline.project.errors import UserError
from pipeline.views.priors import PriorGrid, Priors


@register
class VFNet(AssignedByATSS):
    """mmdet's `VFNetHead`, assigned by ATSS."""

    heads = ("VFNetHead",)

    @cached_property
    def grid(self) -> PriorGrid:
        """The anchors that ATSS assigns."""
        return read_grid(self.head.atss_prior_generator)

    def check(self, whose: str) -> None:
        """Refuse a VFNet that assigns as FCOS does; see `HeadFamily.check`."""
        super().check(whose)
        if not self.head.use_atss:
            raise UserError(f"{whose}'s config must assign by ATSS: expected use_atss=True")

    def boxes(self, outputs: Outputs, priors: Priors, chosen: Tensor | None = None) -> Tensor:
        """The refined boxes: the last maps, in training and afterwards."""
        return super().boxes((outputs[0], outputs[-1]), priors, chosen)

    def decode(self, encoded: Tensor, priors: Priors, index: Tensor) -> Tensor:
        """Boxes (K, 4) from distances (K, 4) in pixels."""
        boxes: Tensor = distance2bbox(priors.centres[index], encoded)
        return boxes
