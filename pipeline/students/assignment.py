"""Students: mmdet detectors that learn from cached assignments, with no teacher in memory."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.models.detectors import PAA
from mmdet.registry import MODELS, TRANSFORMS
from mmdet.structures import SampleList
from torch import Tensor

from pipeline.data.coco import Objects, objects_digest
from pipeline.heads.lad import ObjectnessLADHead
from pipeline.loading.replay import LabelTransform
from pipeline.project.errors import UserError
from pipeline.store.reader import LabelStore
from pipeline.store.schema import BACKGROUND, GEOMETRY
from pipeline.training.batch_grid import label_assignment, level_shapes_of, own_grid
from pipeline.views.plan import Shape
from pipeline.views.priors import PriorGrid

ASSIGNED = "assigned"
"""The key under which a sample's meta data carries its `CachedPositives`."""


@dataclass(frozen=True, eq=False)
class CachedPositives:
    """The N positive priors of a view with M objects, and what they learn.

    Attributes:
        cells: (N, 3) int16 level, row and column of each.
        objects: (N,) int16 the object of each.
        boxes: (M, 4) float32 of the objects, xyxy in pixels of the view.
        labels: (M,) int64 of the objects.
    """

    cells: np.ndarray
    objects: np.ndarray
    boxes: Tensor
    labels: np.ndarray

    def __deepcopy__(self, memo: dict[int, Any]) -> "CachedPositives":
        """Itself: mmengine copies meta data deeply, and this never changes."""
        return self


@TRANSFORMS.register_module()
class CheckObjects(BaseTransform):
    """Refuses an image whose objects, or view, are not those that the store was made from.

    Each process checks a view when it first shows it.

    Required keys: view, view_index, ori_shape, instances.

    Args:
        store: the label store.
    """

    def __init__(self, store: str | Path) -> None:
        self.store = LabelStore(store)
        self._checked = np.zeros(len(self.store), np.bool_)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Change nothing.

        Raises:
            UserError: the objects or the view are others.
        """
        if not self._checked[results["view_index"]]:
            self._check_view(results)
            self._check_objects(results)
            self._checked[results["view_index"]] = True
        return results

    def _check_objects(self, results: dict[str, Any]) -> None:
        instances = results["instances"]
        objects = Objects(
            boxes=np.array([i["bbox"] for i in instances], np.float64).reshape(-1, 4),
            labels=np.array([i["bbox_label"] for i in instances], np.int64),
            crowd=np.array([i["ignore_flag"] for i in instances], bool),
        )
        if objects_digest(objects) != self.store.gt_digest(results["view_index"]):
            raise UserError(
                f"the objects of image {results['img_id']} are not those that the store "
                f"{self.store.path} was made from; run `lad labels --replace`"
            )

    def _check_view(self, results: dict[str, Any]) -> None:
        place = results["view_index"]
        shown = results["view"].geometry(*results["ori_shape"])
        recorded = self.store.geometry(place)
        if shown != recorded:
            raise UserError(
                f"{self.store.path} was made from other views: {', '.join(GEOMETRY)} of "
                f"{self.store.place('views', place)}: expected {shown}, found {recorded}; "
                "run `lad labels --replace`"
            )


@TRANSFORMS.register_module()
class AttachAssignment(LabelTransform):
    """Attaches the cached assignment of the view: its positives and what they learn.

    Required keys: view_index, gt_bboxes, gt_bboxes_labels. Added key: assigned, `CachedPositives`.

    Args:
        store: the label store.
        grid: the priors of the student's head.
    """

    def __init__(self, store: str | Path, grid: PriorGrid) -> None:
        super().__init__()
        self.store = LabelStore(store)
        self.grid = grid

    def read(self, view: int) -> tuple[np.ndarray, np.ndarray]:
        """The cells (N, 3) of the positive priors, and the object (N,) that each learns."""
        assigned = self.store.assigned(view)
        priors = np.flatnonzero(assigned != BACKGROUND)
        return self.grid.cells(priors, self.store.padded(view)), assigned.take(priors)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Attach the assignment."""
        cells, objects = self.labels(results["view_index"])
        results[ASSIGNED] = CachedPositives(
            cells=cells,
            objects=objects,
            boxes=results["gt_bboxes"].tensor,
            labels=results["gt_bboxes_labels"],
        )
        return results


@MODELS.register_module()
class CachedLADHead(ObjectnessLADHead):
    """mmdet's `LADHead`, with its label assignment built from what samples carry.

    It may have an objectness; see `pipeline.heads.objectness`.
    """

    def cached_assignment(
        self, samples: SampleList, level_shapes: list[Shape], device: torch.device
    ) -> tuple:
        """What `LADHead.get_label_assignment` returns, without a teacher.

        Positives of each view are placed into the batch's grid, which is larger where the view is
        padded to the size of others.

        Args:
            samples: B samples whose meta data holds `assigned` and `pad_shape`.
            level_shapes: (rows, columns) of the batch's feature maps.
            device: where the losses are computed.
        """
        found: list[CachedPositives] = [sample.metainfo[ASSIGNED] for sample in samples]
        level, row, column = np.concatenate([one.cells for one in found], dtype=np.int64).T
        counts = [len(one.cells) for one in found]
        place = self.places(level, row, column, counts, level_shapes)
        before = np.cumsum([0, *(len(one.labels) for one in found[:-1])])
        objects = np.concatenate([one.objects for one in found]) + np.repeat(before, counts)
        labels = np.concatenate([one.labels for one in found])[objects]
        boxes = torch.cat([one.boxes for one in found])[torch.from_numpy(objects)]
        return label_assignment(
            self,
            own_grid(self, samples, level_shapes, device),
            places=torch.from_numpy(place).to(device, non_blocking=True),
            labels=torch.from_numpy(labels).to(device, non_blocking=True),
            boxes=boxes.to(device, non_blocking=True),
            anchors=self.anchors(level, row, column).to(device, non_blocking=True),
        )

    def places(
        self,
        level: np.ndarray,
        row: np.ndarray,
        column: np.ndarray,
        counts: list[int],
        level_shapes: list[Shape],
    ) -> np.ndarray:
        """Where cells lie among the batch's B * P priors, image after image; (N,).

        Args:
            level: (N,) of each cell, all of the first view, then all of the second and so on.
            row: (N,).
            column: (N,).
            counts: how many cells each view has.
            level_shapes: (rows, columns) of the batch's feature maps.
        """
        sizes = np.array(level_shapes)
        starts = np.concatenate([[0], np.cumsum(sizes.prod(1))])
        image = np.repeat(np.arange(len(counts)), counts)
        place: np.ndarray = image * starts[-1] + starts[level] + row * sizes[level, 1] + column
        return place

    def anchors(self, level: np.ndarray, row: np.ndarray, column: np.ndarray) -> Tensor:
        """The priors of cells as mmdet's anchors, (N, 4) xyxy pixels."""
        base = torch.cat(list(self.prior_generator.base_anchors))
        strides = np.array(self.prior_generator.strides)
        shift = np.stack([column, row, column, row], 1) * strides[level][:, [0, 1, 0, 1]]
        return base[level] + torch.from_numpy(shift).float()


@MODELS.register_module()
class CachedLAD(PAA):
    """A PAA detector that learns cached assignments with mmdet's LAD losses."""

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """The losses of `LADHead`: loss_cls, loss_bbox, loss_iou.

        Args:
            batch_inputs: (B, 3, H, W) normalised images.
            batch_data_samples: B samples, as `AttachAssignment` and the preprocessor leave them.
        """
        features = self.extract_feat(batch_inputs)
        assignment = self.bbox_head.cached_assignment(
            batch_data_samples, level_shapes_of(features), batch_inputs.device
        )
        losses: dict[str, Tensor] = self.bbox_head.loss(features, assignment, batch_data_samples)
        return losses
