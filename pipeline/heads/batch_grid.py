"""The grid of a training batch, which views of several sizes share.

A view is padded to the size of the largest of its batch, so the batch's grid can have priors
outside the view's own. mmdet's valid flags name the others, and nothing is learnt outside.

Shapes: B views, P priors of the batch's grid. Boxes are xyxy in pixels of the view.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from mmdet.structures import SampleList
from torch import Tensor

from pipeline.data.ground_truth import GroundTruth
from pipeline.project.transfer import send
from pipeline.views.plan import Shape
from pipeline.views.priors import PriorGrid, Priors


@dataclass(frozen=True, eq=False)
class BatchGrid:
    """The priors of a batch.

    Attributes:
        grid: of the network's head.
        padded: (height, width) of the batch in pixels.
        own: the padded (height, width) of each of the B views alone.
        device: where tensors are wanted.
    """

    grid: PriorGrid
    padded: Shape
    own: Sequence[Shape]
    device: torch.device

    @classmethod
    def of(cls, grid: PriorGrid, samples: SampleList, device: torch.device) -> "BatchGrid":
        """The grid of B samples, as the preprocessor leaves them."""
        sizes = [sample.metainfo["pad_shape"][:2] for sample in samples]
        return cls(grid, samples[0].metainfo["batch_input_shape"], sizes, device)

    @property
    def priors(self) -> Priors:
        """All P of them."""
        return self.grid.priors(self.padded, self.device)

    @property
    def count(self) -> int:
        """P."""
        return self.grid.count(self.padded)

    @cached_property
    def alike(self) -> bool:
        """Whether all views have the batch's size: each of its priors is then one of each view."""
        return all(tuple(own) == tuple(self.padded) for own in self.own)

    @cached_property
    def places(self) -> list[Tensor | slice]:
        """For each view where its own priors lie among the P, in the order of its own grid."""
        others = [own for own in self.own if tuple(own) != tuple(self.padded)]
        found = send(
            [torch.from_numpy(self.grid.places_within(own, self.padded)) for own in others],
            self.device,
        )
        sent = iter(found)
        return [slice(None) if tuple(own) == tuple(self.padded) else next(sent) for own in self.own]

    @cached_property
    def valid_flags(self) -> Tensor:
        """Which priors lie inside a view's own padded size, (B, P) bool, as mmdet has them."""
        shape = len(self.own), self.count
        if self.alike:
            return torch.ones(shape, dtype=torch.bool, device=self.device)
        flags = torch.zeros(shape, dtype=torch.bool)
        for view, own in enumerate(self.own):
            flags[view, self.grid.places_within(own, self.padded)] = True
        return send([flags], self.device)[0]

    def indices(self, priors: Sequence[npt.NDArray]) -> npt.NDArray[np.int64]:
        """Where priors of views lie among the B * P of the batch, view after view: (K,).

        Args:
            priors: of each view, indices in the view's own grid.
        """
        return np.concatenate(
            [
                view * self.count + self.grid.places_within(own, self.padded)[chosen]
                for view, (own, chosen) in enumerate(zip(self.own, priors, strict=True))
            ]
        )

    def anchors(self, indices: Tensor) -> Tensor:
        """The priors as boxes, (K, 4).

        Args:
            indices: (K,) int64 among the B * P, on the grid's device.
        """
        boxes = self.priors.boxes
        return boxes[indices % len(boxes)]

    def boxes_at(self, indices: Tensor, distances: Tensor) -> Tensor:
        """Boxes (K, 4) from their distances (K, 4) in strides; see `Priors.boxes_at`.

        Args:
            indices: (K,) int64 among the B * P, on the grid's device.
            distances: of the box of each.
        """
        return self.priors.boxes_at(indices % len(self.priors.boxes), distances)


def ground_truth(samples: SampleList, device: torch.device) -> GroundTruth:
    """The objects of B samples, as the preprocessor leaves them: without crowds."""
    objects = [sample.gt_instances.to(device, non_blocking=True) for sample in samples]
    return GroundTruth.pad([one.bboxes for one in objects], [one.labels for one in objects])
