"""Cached assignments: what attaches one to a sample, and what a batch learns of its samples'.

Shapes: B views, N priors of a view that learn an object or nothing at all.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmdet.structures import SampleList

from pipeline.data.coco import Objects, objects_digest
from pipeline.data.ground_truth import BACKGROUND
from pipeline.heads.batch_grid import BatchGrid
from pipeline.heads.positives import Positives
from pipeline.loading.transforms import LabelTransform
from pipeline.project.errors import UserError
from pipeline.project.transfer import send
from pipeline.store.reader import LabelStore
from pipeline.store.schema import GEOMETRY

ASSIGNED = "assigned"
"""The key under which a sample's meta data carries its `CachedPositives`."""


@dataclass(frozen=True, eq=False)
class CachedPositives:
    """The N priors of a view that are not background.

    Attributes:
        priors: (N,) int64 index of each in the view's own grid, ascending.
        gt_inds: (N,) int64 the object that each learns, an index into the view's `gt_instances`; a
            prior of less than 0 learns nothing.
    """

    priors: np.ndarray
    gt_inds: np.ndarray

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
    """Attaches the cached assignment of the view.

    Required keys: view_index, gt_ignore_flags. Added key: assigned, `CachedPositives`.

    Args:
        store: path of the label store.
    """

    def __init__(self, store: str | Path) -> None:
        super().__init__()
        self.store = LabelStore(store)

    def read(self, view: int) -> tuple[np.ndarray, np.ndarray]:
        """The priors (N,) of a view that are not background, and what each learns (N,)."""
        assigned = self.store.assigned(view)
        priors = np.flatnonzero(assigned != BACKGROUND)
        return priors, assigned.take(priors)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Attach the assignment."""
        priors, objects = self.labels(results["view_index"])
        # The store counts the objects of the file, and `gt_instances` are those without crowds.
        place = np.cumsum(~results["gt_ignore_flags"]) - 1
        gt_inds = objects.astype(np.int64)
        gt_inds[objects >= 0] = place[objects[objects >= 0]]
        results[ASSIGNED] = CachedPositives(priors, gt_inds)
        return results


def cached_positives(samples: SampleList, grid: BatchGrid) -> Positives:
    """What the samples carry of an assignment, on the batch's grid.

    Args:
        samples: B samples, as `AttachAssignment` and the preprocessor leave them.
        grid: of the batch.
    """
    found: list[CachedPositives] = [sample.metainfo[ASSIGNED] for sample in samples]
    indices = grid.indices([one.priors for one in found])
    gt_inds = np.concatenate([one.gt_inds for one in found])
    learnt = gt_inds >= 0
    parts = indices[learnt], gt_inds[learnt].astype(np.int64), indices[~learnt]
    return Positives(grid, *send([torch.from_numpy(part) for part in parts], grid.device))
