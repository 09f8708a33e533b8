"""What the pipeline must know of a head: a family of mmdet heads is a file in this room.

Shapes: B views on one grid of P priors, A priors of a cell, C classes, K chosen priors of a batch.
Boxes are xyxy in pixels of the view.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
from mmdet.models.task_modules import AssignResult
from mmdet.models.utils import unpack_gt_instances
from mmdet.structures import SampleList
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn

from pipeline.data.ground_truth import BACKGROUND, IGNORED, GroundTruth
from pipeline.heads.batch_grid import BatchGrid
from pipeline.heads.positives import Assignment, Positives
from pipeline.heads.prior_grid import read_grid
from pipeline.heads.replay import ASSIGNED, RecordingAssigner, ReplayingAssigner
from pipeline.project.errors import UserError
from pipeline.views.priors import PriorGrid, Priors

Outputs = Sequence[Sequence[Tensor]]
"""What a head's `forward` returns: for each kind of map one a level, (B, channels, H, W)."""


class HeadFamily:
    """A head of the family, as the pipeline asks it.

    What is here fits a head whose assigner decides by geometry alone and that predicts class logits
    and encoded boxes. A family overrides what differs, and is known once it is registered with
    `register`.

    Args:
        head: of a network that mmdet has built.
    """

    heads: ClassVar[tuple[str, ...]]
    """Names of mmdet's classes."""
    quality: ClassVar[str | None] = None
    """What heads of the family predict of a prior beside classes and box: `iou` or `centerness`."""
    rule: ClassVar[str] = "mmdet"
    """Whose code assigns in the step of a student that learns alone, or of a teacher in memory."""
    assigners: ClassVar[tuple[str, ...]] = ("assigner",)
    """Where `train_cfg` has its assigners."""
    assigns_whole_grid: ClassVar[bool] = False
    """Whether mmdet has it assign all priors of a batch's grid, those outside a view's own, too."""

    def __init__(self, head: nn.Module) -> None:
        self.head: Any = head

    @cached_property
    def grid(self) -> PriorGrid:
        """The priors of the head; a `UserError` where they differ from cell to cell."""
        return read_grid(self.head.prior_generator)

    def check(self, whose: str) -> None:
        """Refuse a head that assigns in a way that a store can't hold.

        Args:
            whose: names the network, for the error.

        Raises:
            UserError: objects or priors would be left out that a store knows nothing of.
        """
        settings = self.head.train_cfg or {}
        if "assigner" not in settings:
            raise UserError(
                f"{whose}'s config must say how it assigns: train_cfg.assigner is missing"
            )
        if settings.get("allowed_border", -1) >= 0:
            raise UserError(
                f"{whose}'s config must let priors outside the image learn: expected "
                f"train_cfg.allowed_border -1, found {settings['allowed_border']}"
            )
        if settings["assigner"].get("ignore_iof_thr", -1) > 0:
            raise UserError(
                f"{whose}'s config must not ignore priors on crowds: expected "
                "train_cfg.assigner.ignore_iof_thr -1, found "
                f"{settings['assigner']['ignore_iof_thr']}"
            )

    # What its outputs say.

    def class_logits(self, outputs: Outputs) -> Tensor:
        """The logits of its class probabilities, (B, P, C)."""
        return self.by_prior(outputs[0])

    def class_probabilities(self, outputs: Outputs) -> Tensor:
        """Its class probabilities, (B, P, C)."""
        return self.class_logits(outputs).sigmoid()

    def boxes(self, outputs: Outputs, priors: Priors, chosen: Tensor | None = None) -> Tensor:
        """Its boxes.

        Args:
            outputs: of the head.
            priors: of the batch's grid.
            chosen: (K,) int64, which of the B * P; None for all.

        Returns:
            (K, 4) or (B * P, 4).
        """
        encoded, index = self._chosen(outputs[1], priors, chosen)
        return self.decode(encoded, priors, index)

    def decode(self, encoded: Tensor, priors: Priors, index: Tensor) -> Tensor:
        """Boxes (K, 4) from what the head predicts of priors.

        Args:
            encoded: (K, channels).
            priors: of the grid.
            index: (K,) int64 which prior each is.
        """
        decoded: Tensor = self.head.bbox_coder.decode(priors.boxes[index], encoded)
        return decoded

    @classmethod
    def quality_of(cls, config: ConfigDict) -> str | None:
        """The `quality` of the head of a config."""
        return cls.quality

    def quality_logits(self, outputs: Outputs) -> Tensor | None:
        """The logits of its `quality`, (B, P); None for a head that has none."""
        return self.by_prior(outputs[2])[..., 0] if self.quality else None

    def by_prior(self, levels: Sequence[Tensor]) -> Tensor:
        """What maps (B, A * channels, H, W) say of each prior, (B, P, channels).

        It is stored channel by channel, as the maps are: turning them around takes long.
        """
        each = len(self.grid.cell)
        if each == 1:
            return torch.cat([level.flatten(2) for level in levels], 2).mT
        parts = [level.unflatten(1, (each, -1)).flatten(3).movedim(1, 3) for level in levels]
        return torch.cat([part.flatten(2) for part in parts], 2).mT

    def _chosen(
        self, levels: Sequence[Tensor], priors: Priors, chosen: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """What maps say of some of the B * P priors, (K, channels), and which prior each is."""
        rows = self.by_prior(levels)
        count = rows.shape[1]
        if chosen is None:
            index = torch.arange(count, device=rows.device).repeat(len(rows))
            return rows.flatten(0, 1), index
        index = chosen % count
        return rows[chosen // count, index], index

    # How it assigns.

    def assign(self, outputs: Outputs, truth: GroundTruth, grid: BatchGrid) -> Assignment:
        """What mmdet's assigner decides of each view alone.

        Args:
            outputs: of the head.
            truth: the objects of the views, on the same device.
            grid: of the batch.
        """
        seen = self.seen_by_assigner(outputs, grid.priors)
        priors = self.priors_of_assigner(grid.priors)
        assigned = torch.full((len(grid.own), grid.count), BACKGROUND, device=priors.device)
        for view, (own, places) in enumerate(zip(grid.own, grid.places, strict=True)):
            objects = truth.valid[view].nonzero()[:, 0]
            if not len(objects):
                continue
            instances = InstanceData(
                bboxes=truth.boxes[view][objects], labels=truth.labels[view][objects]
            )
            predicted = InstanceData(
                priors=priors[places], **{name: value[view][places] for name, value in seen.items()}
            )
            counts = self.grid.level_sizes(own)
            result = self.run_assigner(predicted, instances, counts)
            kinds = objects.new_tensor([IGNORED, BACKGROUND])
            assigned[view, places] = torch.cat([kinds, objects])[result.gt_inds + 1]
        return Assignment(assigned)

    def seen_by_assigner(self, outputs: Outputs, priors: Priors) -> dict[str, Tensor]:
        """What the assigner sees beside priors, (B, P, ...) each, under mmdet's names."""
        return {}

    def priors_of_assigner(self, priors: Priors) -> Tensor:
        """The priors as the assigner sees them, (P, 4)."""
        return priors.boxes

    def run_assigner(
        self, predicted: InstanceData, instances: InstanceData, counts: list[int]
    ) -> AssignResult:
        """Call mmdet's assigner for a view.

        Args:
            predicted: its priors and what the head says of them.
            instances: its objects, `bboxes` and `labels`.
            counts: the number of priors of each level.
        """
        return self.head.assigner.assign(predicted, instances)

    # How it learns.

    @classmethod
    def own(cls, model: ConfigDict) -> ConfigDict:
        """The config of the same network, as it trains alone; `model` may be changed."""
        return model

    @classmethod
    def replaying(cls, model: ConfigDict) -> ConfigDict:
        """The config of a network that learns given assignments; see `losses`.

        Args:
            model: of this family; it is changed.
        """
        for name in cls.assigners:
            model.train_cfg[name] = dict(type=ReplayingAssigner.__name__)
        return model

    @classmethod
    def recording(cls, model: ConfigDict) -> ConfigDict:
        """The config of a network that counts the positives of its own; see `own_losses`.

        Args:
            model: of this family; it is changed.
        """
        own = model.train_cfg.assigner
        model.train_cfg.assigner = dict(type=RecordingAssigner.__name__, assigner=own)
        return model

    def losses(self, outputs: Outputs, samples: SampleList, positives: Positives) -> dict[str, Any]:
        """The head's losses with a given assignment.

        Args:
            outputs: of the head of a `replaying` network.
            samples: B samples, as the preprocessor leaves them.
            positives: what their priors learn.
        """
        rows = self._assigner_results(positives)
        for sample, row in zip(samples, rows, strict=True):
            sample.gt_instances.set_field(row, ASSIGNED, field_type="metainfo")
        return self._loss_by_feat(outputs, samples)

    def own_losses(
        self, outputs: Outputs, samples: SampleList
    ) -> tuple[dict[str, Any], Tensor | int]:
        """The head's losses as mmdet computes them, and the number of its positives.

        Args:
            outputs: of the head of a `recording` network.
            samples: B samples, as the preprocessor leaves them.
        """
        losses = self._loss_by_feat(outputs, samples)
        results = [result for recorder in self.recorders() for result in recorder.take()]
        return losses, sum((result.gt_inds > 0).sum() for result in results)

    def recorders(self) -> list[RecordingAssigner]:
        """What records the assignments of a `recording` network."""
        return [self.head.assigner]

    def learnable(self, positives: Positives, samples: SampleList) -> Tensor | None:
        """Which positives the head can learn, (K,) bool; None for all.

        Args:
            positives: of a batch.
            samples: B samples, as the preprocessor leaves them.
        """
        return None

    def select(self, positives: Positives, samples: SampleList) -> Positives:
        """The positives that the head can learn; others are ignored.

        Args:
            positives: of a batch.
            samples: B samples, as the preprocessor leaves them.
        """
        kept = self.learnable(positives, samples)
        if kept is None:
            return positives
        return Positives(
            positives.grid,
            positives.pos_inds[kept],
            positives.gt_inds[kept],
            torch.cat([positives.ignored, positives.pos_inds[~kept]]),
            (~kept).sum(),
        )

    def _assigner_results(self, positives: Positives) -> list[Tensor]:
        """For each view what mmdet calls `gt_inds`; see `Positives.by_view`."""
        rows = positives.by_view()
        if self.assigns_whole_grid:
            return list(rows)
        return [row[places] for row, places in zip(rows, positives.grid.places, strict=True)]

    def _loss_by_feat(self, outputs: Outputs, samples: SampleList) -> dict[str, Any]:
        instances, ignored, metas = unpack_gt_instances(samples)
        losses: dict[str, Any] = self.head.loss_by_feat(*outputs, instances, metas, ignored)
        return losses


_FAMILIES: dict[str, type[HeadFamily]] = {}


def register(family: type[HeadFamily]) -> type[HeadFamily]:
    """Make a family known, by the names of its heads; a class decorator."""
    _FAMILIES.update(dict.fromkeys(family.heads, family))
    return family


def known_heads() -> list[str]:
    """The names of all heads that are known."""
    return sorted(_FAMILIES)


def find_family(head: str) -> type[HeadFamily] | None:
    """The family of a head by the name of its class; None where it is not known."""
    return _FAMILIES.get(head)
