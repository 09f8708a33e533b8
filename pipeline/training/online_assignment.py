"""PAA's rule in the training step, for all views and objects of a batch at once.

The same rule as the teacher pass's (`pipeline.assignment.paa`), on a batch of mixed view sizes.

Shapes: B views on one grid of P priors, N candidates.
"""

from dataclasses import dataclass

import torch
from mmdet.models.dense_heads import LADHead, PAAHead
from mmdet.structures import SampleList
from mmengine.dist import all_reduce
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pipeline.assignment.paa import Candidates, Positives, list_candidates, select_positives
from pipeline.teacher_pass.teacher import Outputs, candidate_costs
from pipeline.training.batch_grid import label_assignment, own_grid
from pipeline.views.plan import Shape
from pipeline.views.priors import Priors


def batch_candidates(
    head: PAAHead, samples: SampleList, level_shapes: list[Shape], inside: Tensor
) -> Candidates:
    """Which prior of a batch is a candidate of which object; crowds have none.

    Args:
        head: whose priors they are.
        samples: B samples, as the preprocessor leaves them.
        level_shapes: (rows, columns) of the batch's feature maps.
        inside: (B, P) bool of `own_grid`, on the device of the result.
    """
    device = inside.device
    boxes, labels, present = pad_objects(samples, device)
    anchors = head.prior_generator.grid_priors(level_shapes, device=device)
    priors = Priors(torch.cat(anchors), level_shapes)
    return list_candidates(priors, boxes, labels, present, inside)


def pad_objects(samples: SampleList, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (B, M, 4), labels (B, M) and what is there (B, M); crowds are not.

    Args:
        samples: B samples, as the preprocessor leaves them.
        device: of the result.
    """
    objects = [sample.gt_instances.to(device) for sample in samples]
    boxes = pad_sequence([one.bboxes for one in objects], batch_first=True)
    labels = pad_sequence([one.labels for one in objects], batch_first=True)
    counts = torch.tensor([len(one.labels) for one in objects], device=device)
    return boxes, labels, torch.arange(labels.shape[1], device=device) < counts[:, None]


def choose(head: PAAHead, costs: Tensor, candidates: Candidates) -> Positives:
    """Which candidates PAA's rule makes positive.

    Args:
        head: whose priors they are.
        costs: (N,) of each candidate.
        candidates: of the batch.
    """
    levels = head.prior_generator.num_levels
    return select_positives(costs, candidates.group, candidates.level, levels)


def chosen_assignment(
    head: LADHead, candidates: Candidates, chosen: Tensor, inside: Tensor
) -> tuple:
    """What `LADHead.get_label_assignment` returns, from the candidates that are positive.

    Args:
        head: that learns it.
        candidates: of the batch.
        chosen: (N,) bool, which are positive.
        inside: (B, P) bool of `own_grid`.
    """
    kept = chosen.nonzero()[:, 0]
    places = candidates.image[kept] * inside.shape[1] + candidates.prior[kept]
    places, ascending = places.sort()
    kept = kept[ascending]
    return label_assignment(
        head,
        inside,
        places=places,
        labels=candidates.labels[kept],
        boxes=candidates.boxes[kept],
        anchors=candidates.anchors[kept],
    )


@dataclass(frozen=True)
class BatchAssignment:
    """The assignment of a batch.

    Attributes:
        results: what `LADHead.get_label_assignment` returns.
        fallbacks: how many objects had costs that allow no mixture.
    """

    results: tuple
    fallbacks: int


def assign_batch(
    head: PAAHead, outputs: Outputs, samples: SampleList, level_shapes: list[Shape]
) -> BatchAssignment:
    """PAA's assignment of a batch by the outputs of a head.

    Args:
        head: whose losses are the costs.
        outputs: of that head.
        samples: B samples, as the preprocessor leaves them.
        level_shapes: (rows, columns) of the batch's feature maps.
    """
    inside = own_grid(head, samples, level_shapes, outputs.device)
    candidates = batch_candidates(head, samples, level_shapes, inside)
    positives = choose(head, candidate_costs(head, outputs, candidates), candidates)
    results = chosen_assignment(head, candidates, positives.chosen, inside)
    return BatchAssignment(results, len(positives.fallbacks))


def count_fallbacks(assignment: BatchAssignment) -> dict[str, Tensor]:
    """Objects whose costs allowed no mixture, in all processes of a training, to be logged."""
    count = torch.tensor(float(assignment.fallbacks))
    all_reduce(count)
    return {"fallbacks": count}
