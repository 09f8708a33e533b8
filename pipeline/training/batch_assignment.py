"""PAA's rule in the training step, for all views and objects of a batch at once.

The same rule as the teacher pass's (`pipeline.assignment.paa`), on a batch of mixed view sizes.

Shapes: B views on one grid of P priors, N candidates.
"""

from dataclasses import dataclass

import torch
from mmdet.models.dense_heads import PAAHead
from mmdet.structures import SampleList
from mmengine.dist import all_reduce
from torch import Tensor

from pipeline.assignment.paa import Candidates, list_candidates, select_positives
from pipeline.heads.paa import HeadOutputs, LabelAssignment, candidate_costs
from pipeline.training.batch_grid import BatchGrid, ground_truth


@dataclass(frozen=True)
class BatchAssignment:
    """The assignment of a batch.

    Attributes:
        labels: what the head's losses take.
        fallbacks: how many objects had costs that allow no mixture.
    """

    labels: LabelAssignment
    fallbacks: int


def assign_batch(
    head: PAAHead, outputs: HeadOutputs, samples: SampleList, grid: BatchGrid
) -> BatchAssignment:
    """PAA's assignment of a batch by the outputs of a head.

    Args:
        head: its losses are the costs.
        outputs: of that head.
        samples: B samples, as the preprocessor leaves them.
        grid: of the batch.
    """
    candidates = batch_candidates(samples, grid)
    costs = candidate_costs(head, outputs, candidates)
    return assign_by_costs(head.num_classes, costs, candidates, grid)


def batch_candidates(samples: SampleList, grid: BatchGrid) -> Candidates:
    """Which prior of a batch is a candidate of which object; crowds have none.

    Args:
        samples: B samples, as the preprocessor leaves them.
        grid: of the batch.
    """
    return list_candidates(grid.priors, ground_truth(samples, grid.device), grid.valid_flags)


def assign_by_costs(
    num_classes: int, costs: Tensor, candidates: Candidates, grid: BatchGrid
) -> BatchAssignment:
    """PAA's assignment of a batch by the costs of its candidates.

    Args:
        num_classes: of the head that learns it.
        costs: (N,).
        candidates: of the batch.
        grid: of the batch.
    """
    positives = select_positives(costs, candidates.group, candidates.level, len(grid.grid.strides))
    kept = positives.chosen.nonzero()[:, 0]
    pos_inds = candidates.image[kept] * grid.valid_flags.shape[1] + candidates.prior[kept]
    pos_inds, ascending = pos_inds.sort()
    kept = kept[ascending]
    labels = LabelAssignment.of_positives(
        num_classes,
        grid.valid_flags,
        pos_inds=pos_inds,
        labels=candidates.labels[kept],
        boxes=candidates.boxes[kept],
        anchors=candidates.anchors[kept],
    )
    return BatchAssignment(labels, len(positives.fallbacks))


def count_fallbacks(assignment: BatchAssignment) -> dict[str, Tensor]:
    """Objects whose costs allowed no mixture, in all processes of a training, to be logged."""
    count = torch.tensor(float(assignment.fallbacks))
    all_reduce(count)
    return {"fallbacks": count}
