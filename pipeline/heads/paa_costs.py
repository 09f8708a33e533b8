"""What PAA's rule asks of a head (Kim and Lee, ECCV 2020, arXiv 2007.08103; LAD, WACV 2022).

The assignment depends on predictions and is made after mmdet's assigner, so it has a rule of its
own (`pipeline.assignment.paa`), whose costs are computed here with the head's own losses.

Shapes: B views on one grid of P priors, C classes, N candidates, K positives. Boxes are xyxy in
pixels of the view.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmdet.models.dense_heads import PAAHead
from torch import Tensor

from pipeline.assignment.paa import TOP_K, Candidates
from pipeline.project.errors import UserError

_RULE = {"pos_iou_thr": 0.1, "neg_iou_thr": 0.1, "min_pos_iou": 0}


class HeadOutputs(NamedTuple):
    """What a head returns for a batch: a map for each level, of H x W cells.

    Attributes:
        cls_scores: (B, C, H, W) class logits.
        bbox_preds: (B, 4, H, W) encoded boxes.
        iou_preds: (B, 1, H, W) logits of the IoU branch.
    """

    cls_scores: Sequence[Tensor]
    bbox_preds: Sequence[Tensor]
    iou_preds: Sequence[Tensor]

    @property
    def device(self) -> torch.device:
        """The device of all maps."""
        return self.cls_scores[0].device

    def at(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """Class logits (N, C) and encoded boxes (N, 4) of candidates, whose priors ascend."""
        counts = candidates.level.bincount(minlength=len(self.cls_scores)).tolist()
        first, cells = 0, []
        for level, image, prior in zip(
            self.cls_scores,
            candidates.image.split(counts),
            candidates.prior.split(counts),
            strict=True,
        ):
            cells.append((image, prior - first))
            first += level[0, 0].numel()
        scores, deltas = (
            torch.cat([m.flatten(2).mT[where] for m, where in zip(maps, cells, strict=True)])
            for maps in (self.cls_scores, self.bbox_preds)
        )
        return scores, deltas


class LabelAssignment(NamedTuple):
    """What mmdet's `LADHead.get_label_assignment` returns: what each prior of a batch learns.

    Attributes:
        labels: (B * P,) int64 class; the number of classes is background.
        labels_weight: (B * P,) float32, 0 for priors outside their view.
        bboxes_target: (B * P, 4) boxes, 0 where there is none to learn.
        bboxes_weight: not used by LAD's losses.
        pos_inds: (K,) int64 where the positives lie among the B * P, ascending.
        pos_anchors: (K, 4) the positives as boxes.
        num_pos: K.
    """

    labels: Tensor
    labels_weight: Tensor
    bboxes_target: Tensor
    bboxes_weight: None
    pos_inds: Tensor
    pos_anchors: Tensor
    num_pos: int

    @classmethod
    def of_positives(
        cls,
        num_classes: int,
        learning: Tensor,
        *,
        pos_inds: Tensor,
        labels: Tensor,
        boxes: Tensor,
        anchors: Tensor,
    ) -> "LabelAssignment":
        """The assignment in which all other priors are background.

        Args:
            num_classes: C.
            learning: (B, P) bool, the priors that learn anything: of those inside each view's own
                padded size, the ones that are not ignored.
            pos_inds: (K,) int64 where the positives lie among the B * P, ascending.
            labels: (K,) int64 the class that each learns.
            boxes: (K, 4) the box that each learns.
            anchors: (K, 4) the positives as boxes.
        """
        weights = learning.flatten().float()
        all_labels = torch.full(weights.shape, num_classes, device=weights.device)
        all_labels[pos_inds] = labels
        targets = weights.new_zeros(len(weights), 4)
        targets[pos_inds] = boxes
        return cls(all_labels, weights, targets, None, pos_inds, anchors, len(pos_inds))


def check_rule(head: PAAHead, whose: str) -> None:
    """Refuse a head with another assignment than PAA's.

    Args:
        head: of a PAA.
        whose: names the network, for the error.

    Raises:
        UserError: the assignment settings are others.
    """
    assigner = head.assigner
    expected = _RULE | {"topk": TOP_K, "ignore_iof_thr <= 0": True, "allowed_border < 0": True}
    found = {name: getattr(assigner, name, None) for name in _RULE} | {
        "topk": head.topk,
        "ignore_iof_thr <= 0": getattr(assigner, "ignore_iof_thr", -1) <= 0,
        "allowed_border < 0": head.train_cfg.allowed_border < 0,
    }
    if found != expected:
        raise UserError(
            f"{whose}'s config must assign as PAA does (train_cfg, topk): "
            f"expected {expected}, found {found}"
        )


@torch.no_grad()
def candidate_costs(head: PAAHead, outputs: HeadOutputs, candidates: Candidates) -> Tensor:
    """PAA's cost of each candidate, with the head's own losses and without gradient: (N,).

    The cost is what mmdet's `PAAHead.get_pos_loss` computes: the loss of the classes, summed over
    them, and that of the decoded box.

    Args:
        head: its losses and its box coder count.
        outputs: of that head.
        candidates: of the batch.
    """
    scores, deltas = outputs.at(candidates)
    if not len(scores):
        return scores.new_zeros(0)
    of_class: Tensor = head.loss_cls(scores, candidates.labels, reduction_override="none").sum(1)
    decoded = head.bbox_coder.decode(candidates.anchors, deltas)
    of_box: Tensor = head.loss_bbox(decoded, candidates.boxes, reduction_override="none")
    return of_box + of_class
