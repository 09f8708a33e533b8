"""The objects of a batch of views, as tensors on one device.

Shapes: B views, M room for objects in a view. Boxes are xyxy in pixels of the view.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pipeline.project.transfer import send

BACKGROUND = -1
IGNORED = -2
"""What an assignment says of a prior instead of the index of an object: that it learns to see
nothing, or that it learns nothing at all."""


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """What is to be learnt in a batch of views.

    Attributes:
        boxes: (B, M, 4) float32, anything where not valid.
        labels: (B, M) int64 class of each object, anything where not valid.
        valid: (B, M) bool, false for padding and for crowds, which nobody learns.
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor

    @classmethod
    def pad(
        cls, boxes: Sequence[Tensor], labels: Sequence[Tensor], crowd: Sequence[Tensor] = ()
    ) -> "GroundTruth":
        """The objects of B views, each padded to as many as the view with most has.

        Args:
            boxes: (m, 4) of each view.
            labels: (m,) of each view.
            crowd: (m,) bool of each view; nothing where no object is a crowd.
        """
        crowd = crowd or [torch.zeros_like(one, dtype=torch.bool) for one in labels]
        return cls(
            boxes=pad_sequence(list(boxes), batch_first=True).float(),
            labels=pad_sequence(list(labels), batch_first=True),
            valid=pad_sequence([~one for one in crowd], batch_first=True),
        )

    def to(self, device: torch.device | str) -> "GroundTruth":
        """The same on a device, from the CPU; the caller need not wait for the copy."""
        return GroundTruth(*send((self.boxes, self.labels, self.valid), torch.device(device)))
