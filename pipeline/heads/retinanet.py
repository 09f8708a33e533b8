"""RetinaNet (Lin et al., ICCV 2017, arXiv 1708.02002): nine anchors a cell, assigned by IoU."""

from pipeline.heads.family import HeadFamily, register


@register
class RetinaNet(HeadFamily):
    """mmdet's `RetinaHead`."""

    heads = ("RetinaHead",)
