"""Cached soft scores: what attaches them to a sample, and what a batch learns of its samples'.

Shapes: B views, P priors of the batch's grid, C classes, N priors for which the teacher's box
counts. Boxes are xyxy in pixels of the view.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.registry import TRANSFORMS
from mmdet.structures import SampleList
from torch import Tensor

from pipeline.heads.batch_grid import BatchGrid
from pipeline.loading.transforms import LabelTransform
from pipeline.project.transfer import send
from pipeline.store.coding import Coding, decode_distances, decode_fraction, encode_fraction
from pipeline.store.reader import LabelStore
from pipeline.students.distillation import BatchTargets

SOFT = "soft"
SOFT_CODES = "soft_codes"


@dataclass(frozen=True, eq=False)
class SoftTargets:
    """What a view's soft scores say beside its class probabilities.

    Attributes:
        tail_mean: (C,) float16 mean probability of each class's tail.
        tail_scale: (R,) uint8 codes of its scale for runs of priors.
        priors: (N,) int64 the priors with a teacher box, in the view's own grid.
        max_iou: (N,) uint8 code of the best IoU of that box with an object.
        distances: (N, 4) int8 codes of its distances from the prior's centre.
        quality: (N,) uint8 code of the teacher's IoU prediction or centerness.
    """

    tail_mean: np.ndarray
    tail_scale: np.ndarray
    priors: np.ndarray
    max_iou: np.ndarray
    distances: np.ndarray
    quality: np.ndarray


@TRANSFORMS.register_module()
class AttachSoftScores(LabelTransform):
    """Attaches the cached soft scores of the view to a packed sample.

    Comes after `PackDetInputs`. Added to the sample: soft_codes, (C, P) uint8 codes on the view's
    own grid, and soft, `SoftTargets`.

    Args:
        store: path of the label store.
        min_iou: m, teacher boxes count where they overlap an object by more than this; None where
            all boxes count that are stored.
    """

    def __init__(self, store: str | Path, min_iou: float | None) -> None:
        super().__init__()
        self.store = LabelStore(store)
        self.least_iou = None if min_iou is None else int(encode_fraction(torch.tensor(min_iou)))

    def read(self, view: int) -> tuple[torch.Tensor, SoftTargets]:
        """Codes (C, P) uint8 of the class probabilities, and the rest."""
        scores = self.store.soft(view)
        if self.least_iou is None:
            kept = scores.with_box
        else:
            # Rounding keeps the order: what is over the threshold has at least its code.
            kept = np.flatnonzero((scores.max_iou > 0) & (scores.max_iou >= self.least_iou))
        targets = SoftTargets(
            tail_mean=scores.tail_mean,
            tail_scale=scores.tail_scale,
            priors=kept,
            max_iou=scores.max_iou[kept],
            distances=scores.distances[kept],
            quality=scores.quality[kept],
        )
        return torch.from_numpy(scores.codes.copy()), targets

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Attach the soft scores."""
        sample = results["data_samples"]
        codes, targets = self.labels(sample.metainfo["view_index"])
        sample.set_field(codes, SOFT_CODES)
        sample.set_field(targets, SOFT)
        return results


def cached_targets(samples: SampleList, grid: BatchGrid, coding: Coding) -> BatchTargets:
    """What the samples carry of the teacher, on the batch's grid; in float32 always.

    Args:
        samples: B samples, as `AttachSoftScores` and the preprocessor leave them.
        grid: of the batch.
        coding: of the store's class probabilities.
    """
    targets: list[SoftTargets] = [getattr(sample, SOFT) for sample in samples]
    together = [grid.indices([one.priors for one in targets])]
    together += [
        np.concatenate([getattr(one, name) for one in targets])
        for name in ("max_iou", "distances", "quality")
    ]
    together += [tail for one in targets for tail in (one.tail_mean, one.tail_scale)]
    indices, max_iou, distances, quality, *tails = send(
        [torch.tensor(part) for part in together], grid.device
    )
    codes = [getattr(sample, SOFT_CODES) for sample in samples]
    with torch.autocast(grid.device.type, enabled=False):
        probabilities = _probabilities(codes, tails[::2], tails[1::2], grid, coding)
    return BatchTargets(
        grid=grid,
        probabilities=probabilities,
        indices=indices,
        max_iou=decode_fraction(max_iou),
        boxes=grid.boxes_at(indices, decode_distances(distances)),
        quality=decode_fraction(quality),
    )


def _probabilities(
    codes: Sequence[Tensor],
    means: Sequence[Tensor],
    scales: Sequence[Tensor],
    grid: BatchGrid,
    coding: Coding,
) -> Tensor:
    """The teacher's class probabilities on the batch's grid, (B * P, C).

    Args:
        codes: of each view, on its own grid.
        means: of its tail.
        scales: of its tail.
        grid: of the batch.
        coding: of the store.
    """
    if grid.alike:
        together = (torch.stack(list(parts)) for parts in (codes, means, scales))
        return coding.decode(*together).flatten(0, 1)
    placed = torch.zeros(len(codes), grid.count, len(means[0]), device=grid.device)
    decoded = map(coding.decode, codes, means, scales)
    for view, places, values in zip(placed, grid.places, decoded, strict=True):
        view[places] = values
    return placed.flatten(0, 1)
