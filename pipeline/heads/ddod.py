"""DDOD (Chen et al., ACM MM 2021, arXiv 2107.02963): one assignment of classes, one of boxes."""

from pipeline.heads.family import HeadFamily, register
from pipeline.heads.replay import RecordingAssigner
from pipeline.project.errors import UserError


@register
class DDOD(HeadFamily):
    """mmdet's `DDODHead`. A student learns one assignment for both; a teacher would make two."""

    heads = ("DDODHead",)
    quality = "iou"
    assigners = ("assigner", "reg_assigner")

    def check(self, whose: str) -> None:
        """Refuse it as a teacher; see `HeadFamily.check`."""
        raise UserError(
            f"{whose} can't be a DDOD: it makes two assignments of a view, one for classes and one "
            "for boxes, and a store holds one; a DDOD can be a student"
        )

    def recorders(self) -> list[RecordingAssigner]:
        """What records the assignments of a `recording` network: that of classes counts."""
        return [self.head.cls_assigner]
