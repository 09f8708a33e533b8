"""The soft scores of a view, as a store keeps them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class SoftScores:
    """The teacher's soft scores for a view with P priors, as `pipeline.store.coding` codes them.

    Attributes:
        codes: (C, P) uint8 codes of class probabilities.
        tail_mean: (C,) float16.
        tail_scale: (R,) uint8 codes.
        max_iou: (P,) uint8, best IoU of the teacher's box with an object in 1/255; 0 where it is
            at most `labels.min_iou`.
        distances: (P, 4) int8 codes of the box's left, top, right and bottom, in strides from the
            prior's centre; 0 where no box is stored.
        quality: (P,) uint8, the teacher's IoU prediction or centerness in 1/255; 0 where `max_iou`
            is.
    """

    codes: npt.NDArray[np.uint8]
    tail_mean: npt.NDArray[np.float16]
    tail_scale: npt.NDArray[np.uint8]
    max_iou: npt.NDArray[np.uint8]
    distances: npt.NDArray[np.int8]
    quality: npt.NDArray[np.uint8]

    @property
    def with_box(self) -> npt.NDArray[np.int64]:
        """The priors for which a box is stored, ascending."""
        return np.flatnonzero(self.distances.view(np.int32))
