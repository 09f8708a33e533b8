"""mmdet's data set of all views of all images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.datasets import BaseDetDataset
from mmdet.registry import DATASETS

from pipeline.data.coco import load_images
from pipeline.data.dataset import CheckedSplit
from pipeline.loading.transforms import NO_LABELS, LabelTransform, LabelTransforms, view_pipeline
from pipeline.views.plan import ViewPlan


@DATASETS.register_module()
class ViewDataset(BaseDetDataset):
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
        super().__init__(
            ann_file=str(annotations),
            data_prefix={"img": str(images)},
            metainfo={"classes": tuple(classes)},
            pipeline=pipeline,
        )
        self.num_images = super().__len__()

    def load_data_list(self) -> list[dict[str, Any]]:
        """The images with their objects as mmdet's `CocoDataset` has them, in file order."""
        folder = Path(self.data_prefix["img"])
        return [
            {
                "img_path": str(folder / image.file_name),
                "img_id": image.image_id,
                "height": image.height,
                "width": image.width,
                "instances": [
                    {"bbox": box, "bbox_label": label, "ignore_flag": int(crowd)}
                    for box, label, crowd in zip(
                        image.objects.boxes.tolist(),
                        image.objects.labels.tolist(),
                        image.objects.crowd.tolist(),
                        strict=True,
                    )
                ],
            }
            for image in load_images(Path(self.ann_file))
        ]

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
        return np.array([image.image_id for image in load_images(Path(self.ann_file))], np.int64)


def view_dataset_config(
    split: CheckedSplit, plan: ViewPlan, labels: LabelTransforms = NO_LABELS
) -> dict[str, Any]:
    """The mmdet config of a `ViewDataset`.

    Args:
        split: whose images are shown.
        plan: the view plan.
        labels: what attaches labels to a sample.
    """
    return dict(
        type=ViewDataset.__name__,
        plan=plan,
        annotations=str(split.annotations),
        images=str(split.images_folder),
        classes=split.classes,
        pipeline=view_pipeline(labels),
    )


def view_dataset(
    split: CheckedSplit, plan: ViewPlan, labels: LabelTransforms = NO_LABELS
) -> ViewDataset:
    """The data set of `view_dataset_config`."""
    dataset: ViewDataset = DATASETS.build(view_dataset_config(split, plan, labels))
    return dataset
