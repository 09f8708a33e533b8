"""Views inside mmdet: a data set of views, the sampler that chooses them, and their replay.

The teacher pass and the students read images through the same transforms, so a label belongs to
exactly the pixels that a student sees.
"""

import io
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import RandomFlip, Resize
from mmdet.registry import DATA_SAMPLERS, DATASETS, TRANSFORMS
from mmengine.dist import get_dist_info
from torch.utils.data import Sampler

from pipeline.views.plan import View, ViewPlan, Window, choose_views

META_KEYS = ("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "flip", "view_index")


@TRANSFORMS.register_module()
class ReplayView(BaseTransform):
    """Resizes, crops and flips the image and its boxes as the view says.

    All objects stay, in file order. One that the crop leaves without area is absent: it is
    flagged as a crowd is, so that nobody learns it.

    Required keys: img, gt_bboxes, gt_ignore_flags, view. Modified keys: those of mmdet's
    `Resize`, `RandomCrop`, `RandomFlip`.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Replay the view `results["view"]`."""
        view: View = results["view"]
        results = Resize(scale=view.scale, keep_ratio=True)(results)
        expected = view.resized_shape(*results["ori_shape"])
        assert results["img_shape"][:2] == expected, (results["img_shape"], expected)
        if view.crop:
            _crop(results, view.crop)
        return RandomFlip(prob=1.0 if view.flip else 0.0)(results)


def _crop(results: dict[str, Any], window: Window) -> None:
    """What mmdet's `RandomCrop` does, but for the objects that it removes."""
    top, left, height, width = window
    results["img"] = results["img"][top : top + height, left : left + width]
    results["img_shape"] = (height, width)
    boxes = results["gt_bboxes"]
    boxes.translate_([-left, -top])
    boxes.clip_((height, width))
    absent = ~boxes.is_inside((height, width)).numpy()
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


@DATASETS.register_module()
class ViewDataset(CocoDataset):
    """All views of all images of a checked COCO file.

    Item `image * len(plan) + view` is that view of the image at that place of the file. Images
    without objects are part of it.

    Args:
        plan: the view plan.
        annotations: a file checked by the stage `data`.
        images: the folder that its file names start from.
        classes: names of the classes, in label order.
        pipeline: mmdet transforms; they find the view under the key `view`.
    """

    def __init__(
        self,
        plan: ViewPlan,
        annotations: str | Path,
        images: str | Path,
        classes: Sequence[str],
        pipeline: list[dict[str, Any]],
    ) -> None:
        self.plan = plan
        # pycocotools prints each of its steps.
        with redirect_stdout(io.StringIO()):
            super().__init__(
                ann_file=str(annotations),
                data_prefix={"img": str(images)},
                metainfo={"classes": tuple(classes)},
                pipeline=pipeline,
            )
        self.num_images = super().__len__()

    def __len__(self) -> int:
        return self.num_images * len(self.plan)

    def __getitems__(self, places: list[int]) -> list[Any]:
        """The items of a batch, which torch's loader asks for."""
        for transform in self.pipeline.transforms:
            if isinstance(transform, LabelTransform):
                transform.read_ahead(places)
        return [self[place] for place in places]

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """What the annotation file says of the image, with the view to show."""
        image, number = divmod(idx, len(self.plan))
        info: dict[str, Any] = super().get_data_info(image)
        info["view"] = self.plan.view(number, info["img_id"], info["height"], info["width"])
        info["view_index"] = idx
        return info

    def image_ids(self) -> np.ndarray:
        """The ids of the images, (N,) int64, in file order."""
        infos = (CocoDataset.get_data_info(self, image) for image in range(self.num_images))
        return np.array([info["img_id"] for info in infos], np.int64)


@DATA_SAMPLERS.register_module()
class ViewSampler(Sampler[int]):
    """Every image once an epoch, in random order, in the view of (seed, epoch, image id).

    Args:
        dataset: the views to choose from.
        seed: decides order and views.
        shuffle: whether the order is random, too.
    """

    def __init__(self, dataset: ViewDataset, seed: int = 0, shuffle: bool = True) -> None:
        self.dataset = dataset
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0
        self.rank, self.world_size = get_dist_info()
        self.ids = dataset.image_ids()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0; mmengine calls it before each."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        plan = len(self.dataset.plan)
        flat = np.arange(len(self.ids)) * plan
        flat += choose_views(self.seed, self.epoch, self.ids, plan)
        if self.shuffle:
            flat = np.random.default_rng([self.seed, self.epoch]).permutation(flat)
        # Ranks get equally many; the first images of the order fill up the last round.
        total = len(self) * self.world_size
        flat = np.resize(flat, total)
        return iter(flat[self.rank :: self.world_size].tolist())

    def __len__(self) -> int:
        return -(-len(self.ids) // self.world_size)


@dataclass(frozen=True)
class Attachments:
    """How a sample gets what it is to be learnt from.

    Attributes:
        transforms: before the sample is packed.
        meta_keys: the keys that they add.
        after_packing: transforms of the packed sample.
    """

    transforms: Sequence[dict[str, Any]] = ()
    meta_keys: Sequence[str] = ()
    after_packing: Sequence[dict[str, Any]] = ()


def view_pipeline(attached: Attachments) -> list[dict[str, Any]]:
    """The transforms that load and replay a view, with those that attach labels."""
    return [
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations", with_bbox=True),
        dict(type="ReplayView"),
        *attached.transforms,
        dict(type="PackDetInputs", meta_keys=(*META_KEYS, *attached.meta_keys)),
        *attached.after_packing,
    ]
