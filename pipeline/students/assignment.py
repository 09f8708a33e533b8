"""Learning cached assignments: what a sample carries, and the detector that learns it.

Shapes: B views, N positives of a view, K of a batch. Boxes are xyxy in pixels of the view.
"""

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
from pipeline.heads.paa import LabelAssignment
from pipeline.loading.transforms import LabelTransform
from pipeline.project.errors import UserError
from pipeline.project.transfer import send
from pipeline.store.reader import LabelStore
from pipeline.store.schema import BACKGROUND, GEOMETRY
from pipeline.training.batch_grid import BatchGrid

ASSIGNED = "assigned"
"""The key under which a sample's meta data carries its `CachedPositives`."""


@dataclass(frozen=True, eq=False)
class CachedPositives:
    """The N positive priors of a view with M objects, and what they learn.

    Attributes:
        priors: (N,) int64 index of each in the view's own grid.
        gt_inds: (N,) int16 the object of each.
        boxes: (M, 4) float32 of the objects, xyxy in pixels of the view.
        labels: (M,) int64 of the objects.
    """

    priors: np.ndarray
    gt_inds: np.ndarray
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
        store: path of the label store.
    """

    def __init__(self, store: str | Path) -> None:
        super().__init__()
        self.store = LabelStore(store)

    def read(self, view: int) -> tuple[np.ndarray, np.ndarray]:
        """The positive priors (N,) of a view, and the object (N,) that each learns."""
        assigned = self.store.assigned(view)
        priors = np.flatnonzero(assigned != BACKGROUND)
        return priors, assigned.take(priors)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Attach the assignment."""
        priors, gt_inds = self.labels(results["view_index"])
        results[ASSIGNED] = CachedPositives(
            priors=priors,
            gt_inds=gt_inds,
            boxes=results["gt_bboxes"].tensor,
            labels=results["gt_bboxes_labels"],
        )
        return results


@MODELS.register_module()
class CachedLADHead(ObjectnessLADHead):
    """mmdet's `LADHead`, with its label assignment built from what samples carry.

    It may have an objectness; see `pipeline.heads.objectness`.
    """

    def cached_assignment(self, samples: SampleList, grid: BatchGrid) -> LabelAssignment:
        """What `LADHead.get_label_assignment` returns, without a teacher.

        Args:
            samples: B samples whose meta data holds `assigned`.
            grid: of the batch.
        """
        found: list[CachedPositives] = [sample.metainfo[ASSIGNED] for sample in samples]
        counts = [len(one.priors) for one in found]
        before = np.cumsum([0, *(len(one.labels) for one in found[:-1])])
        gt_inds = np.concatenate([one.gt_inds for one in found]) + np.repeat(before, counts)
        labels = np.concatenate([one.labels for one in found])[gt_inds]
        boxes = torch.cat([one.boxes for one in found])[torch.from_numpy(gt_inds)]
        indices = torch.from_numpy(grid.indices([one.priors for one in found]))
        pos_inds, pos_labels, pos_boxes = send(
            (indices, torch.from_numpy(labels), boxes), grid.device
        )
        return LabelAssignment.of_positives(
            self.num_classes,
            grid.valid_flags,
            pos_inds=pos_inds,
            labels=pos_labels,
            boxes=pos_boxes,
            anchors=grid.anchors(pos_inds),
        )


@MODELS.register_module()
class CachedLAD(PAA):
    """A PAA detector that learns cached assignments with mmdet's LAD losses."""

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """The losses of `LADHead`: loss_cls, loss_bbox, loss_iou.

        Args:
            batch_inputs: (B, 3, H, W) normalised images.
            batch_data_samples: B samples, as `AttachAssignment` and the preprocessor leave them.
        """
        grid = BatchGrid.of(self.bbox_head.grid, batch_data_samples, batch_inputs.device)
        assignment = self.bbox_head.cached_assignment(batch_data_samples, grid)
        losses: dict[str, Tensor] = self.bbox_head.loss(
            self.extract_feat(batch_inputs), assignment, batch_data_samples
        )
        return losses
