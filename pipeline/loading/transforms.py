"""The transforms that load and replay a view, with those that attach labels to it.

The teacher pass and the students read images through the same transforms, so a label belongs to
exactly the pixels that a student sees.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmcv.transforms import BaseTransform
from mmdet.datasets.transforms import RandomFlip, Resize
from mmdet.registry import TRANSFORMS
from torch import Tensor

import pipeline.loading.images  # noqa: F401  registers what loads images
from pipeline.views.plan import View, Window, of_image

SLIVER = 0.1
"""What a crop leaves of an object, in pixels, is none if it is less wide or high."""
META_KEYS = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "flip", "view_index")


@TRANSFORMS.register_module()
class ReplayView(BaseTransform):
    """Resizes, crops and flips the image and its boxes as the view says.

    All objects stay, in file order. One that the crop leaves nothing or a sliver of is absent: it
    is flagged as a crowd is, so that nobody learns it.

    Required keys: img, gt_bboxes, gt_ignore_flags, view. Modified keys: those of mmdet's
    `Resize`, `RandomCrop`, `RandomFlip`.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Replay the view `results["view"]`."""
        view: View = results["view"]
        with of_image(results["img_path"]):
            expected = view.resized_shape(*results["ori_shape"])
        results = Resize(scale=view.scale, keep_ratio=True)(results)
        assert results["img_shape"][:2] == expected, (results["img_shape"], expected)
        if view.crop:
            _crop(results, view.crop)
        return RandomFlip(prob=1.0 if view.flip else 0.0)(results)


def _cut_to_nothing(whole: Tensor, left: Tensor) -> Tensor:
    """Which boxes (N, 4) a window has cut off, or left so little of that no IoU makes sense."""
    before, after = (boxes[:, 2:] - boxes[:, :2] for boxes in (whole, left))
    return ((after < SLIVER) & (after < before)).any(1)


def _crop(results: dict[str, Any], window: Window) -> None:
    """What mmdet's `RandomCrop` does, but for the objects that it removes."""
    top, left, height, width = window
    results["img"] = results["img"][top : top + height, left : left + width]
    results["img_shape"] = (height, width)
    boxes = results["gt_bboxes"]
    boxes.translate_([-left, -top])
    whole = boxes.tensor.clone()
    boxes.clip_((height, width))
    absent = _cut_to_nothing(whole, boxes.tensor).numpy()
    results["gt_ignore_flags"] = results["gt_ignore_flags"] | absent


@TRANSFORMS.register_module()
class KeepObjects(BaseTransform):
    """Keeps all objects of the view in file order, crowds included, under the key `objects`.

    `PackDetInputs` splits and reorders them; an index into the annotation file needs them whole.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Add `objects`: boxes (N, 4) xyxy pixels of the view, labels (N,), crowd (N,).

        What is absent counts as a crowd.
        """
        results["objects"] = {
            "boxes": results["gt_bboxes"].tensor.numpy(),
            "labels": results["gt_bboxes_labels"],
            "crowd": results["gt_ignore_flags"],
        }
        return results


class LabelTransform(BaseTransform):
    """Base of what attaches a store's labels to a view.

    The labels of a batch are read before its images are. Between two images, which fill the
    caches, a read would take four times as long.
    """

    def __init__(self) -> None:
        self._ahead: dict[int, Any] = {}

    def read(self, view: int) -> Any:
        """What the store says of the view."""
        raise NotImplementedError

    def read_ahead(self, views: Sequence[int]) -> None:
        """Read the labels of views that are transformed next."""
        self._ahead = {view: self.read(view) for view in views}

    def labels(self, view: int) -> Any:
        """What `read` gives, read ahead or not."""
        return self._ahead.pop(view) if view in self._ahead else self.read(view)


@dataclass(frozen=True)
class LabelTransforms:
    """What attaches to a sample the labels that a network learns.

    Attributes:
        transforms: before the sample is packed.
        meta_keys: the keys that they add.
        after_packing: transforms of the packed sample.
    """

    transforms: Sequence[dict[str, Any]] = ()
    meta_keys: Sequence[str] = ()
    after_packing: Sequence[dict[str, Any]] = ()


NO_LABELS = LabelTransforms()
ALL_OBJECTS = LabelTransforms([dict(type="KeepObjects")], ["objects"])
"""What the teacher pass needs of a view: its objects as the annotation file has them."""


def view_pipeline(labels: LabelTransforms) -> list[dict[str, Any]]:
    """The mmdet configs of the transforms that load and replay a view, and attach labels."""
    return [
        dict(type="LoadCheckedImage"),
        dict(type="LoadAnnotations", with_bbox=True),
        dict(type="ReplayView"),
        *labels.transforms,
        dict(type="PackDetInputs", meta_keys=(*META_KEYS, *labels.meta_keys)),
        *labels.after_packing,
    ]
