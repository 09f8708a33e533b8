"""The head families that come with the pipeline, and how the family of a head is found."""

from mmengine.config import ConfigDict
from torch import nn

import pipeline.heads.atss
import pipeline.heads.ddod
import pipeline.heads.gfl
import pipeline.heads.paa
import pipeline.heads.retinanet
import pipeline.heads.rtmdet
import pipeline.heads.tood
import pipeline.heads.vfnet
import pipeline.heads.yolox  # noqa: F401  each registers its family
from pipeline.heads.family import HeadFamily, find_family, known_heads
from pipeline.project.errors import UserError

_WITHIN_THE_LOSS = "it decides within its loss which prior learns what, with no assigner to ask"
_REASONS = {
    **dict.fromkeys(
        ["FCOSHead", "AutoAssignHead", "FreeAnchorRetinaHead", "FoveaHead", "NASFCOSHead"],
        _WITHIN_THE_LOSS,
    ),
    "LDHead": "it asks a teacher of its own in each step; its weights are a GFL's: name GFLHead",
}


def family_of(head: nn.Module) -> HeadFamily:
    """The family of a head that mmdet has built, asked about this head."""
    family = find_family(type(head).__name__)
    assert family, f"no family has registered {type(head).__name__}"
    return family(head)


def family_of_model(model: ConfigDict | None, file: str) -> type[HeadFamily]:
    """The family of a model config's head.

    Args:
        model: of an mmdet config, or None where it has none.
        file: of the config, for the error.

    Raises:
        UserError: there is no such family; the message says why, and which heads work.
    """
    head = (model or {}).get("bbox_head")
    name = head.get("type") if isinstance(head, dict) else None
    family = find_family(name) if model and name and "roi_head" not in model else None
    if family is None:
        raise UserError(
            f"the config {file} can't be used: {_why_not(model, name)}; "
            f"the heads that work are {', '.join(known_heads())}"
        )
    return family


def _why_not(model: ConfigDict | None, head: str | None) -> str:
    if not model:
        return "it has no model"
    if "roi_head" in model or "rpn_head" in model:
        return f"its {model.get('type')} has two stages, of which the second learns on proposals"
    if head is None:
        return f"its {model.get('type')} has no bbox_head, so no priors"
    if "query_head" in model or "decoder" in model or "DETR" in str(head):
        return f"its {head} has queries instead of priors"
    return f"its head is a {head}: " + _REASONS.get(head, "no family has registered it")
