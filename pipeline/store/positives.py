"""How many priors a store's assignments teach, and whether that can be right."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.data.coco import AnnotatedImage
from pipeline.data.ground_truth import BACKGROUND
from pipeline.store.reader import LabelStore
from pipeline.views.plan import View, ViewPlan

FEW = 0.5
"""The share of objects with positives under which a store is doubtful."""


@dataclass(frozen=True)
class PositiveCounts:
    """How many priors learn objects, in some views of a store.

    Attributes:
        views: how many were read.
        priors: of these views.
        per_object: (N,) positives of each object that has any.
        without: views without any.
    """

    views: int
    priors: int
    per_object: npt.NDArray[np.int64]
    without: int


def count_positives(store: LabelStore, views: Iterable[int]) -> PositiveCounts:
    """Read the assignments of views.

    Args:
        store: complete in these views.
        views: places in the view table.
    """
    counts: list[npt.NDArray[np.int64]] = []
    priors = 0
    for view in views:
        assigned = store.assigned(view)
        priors += len(assigned)
        counts.append(np.unique(assigned[assigned > BACKGROUND], return_counts=True)[1])
    return PositiveCounts(
        views=len(counts),
        priors=priors,
        per_object=np.concatenate(counts) if counts else np.zeros(0, np.int64),
        without=sum(not len(count) for count in counts),
    )


def count_objects(images: Sequence[AnnotatedImage], plan: ViewPlan) -> int:
    """How many objects all views of all images show that can be learnt, without crowds."""
    return sum(
        _shown(image, plan.view(number, image.image_id, image.height, image.width))
        for image in images
        for number in range(len(plan))
    )


def _shown(image: AnnotatedImage, view: View) -> int:
    there = ~image.objects.crowd
    if view.crop:
        resized = view.resized_shape(image.height, image.width)
        top, left, height, width = view.crop
        scale = np.array([resized[1] / image.width, resized[0] / image.height] * 2)
        boxes = image.objects.boxes * scale - [left, top, left, top]
        sides = np.clip(boxes[:, 2:], 0, [width, height]) - np.clip(
            boxes[:, :2], 0, [width, height]
        )
        there &= (sides > 0).all(1)
    return int(there.sum())


def doubt(with_positives: int, objects: int) -> str | None:
    """What to say of a store in which most objects have no positive; None where they have.

    Args:
        with_positives: objects that some prior learns.
        objects: all of the same views that could be learnt.
    """
    if with_positives >= FEW * objects:
        return None
    return (
        f"no prior learns {objects - with_positives:,} of {objects:,} objects: students would "
        "learn next to nothing of them from these assignments; look at the teacher's AP "
        "(`lad evaluate teacher`), or whether its anchors and the views' scales fit the objects"
    )
