"""A detector that learns of a teacher, whatever their heads and wherever the labels come from."""

from dataclasses import dataclass
from typing import Any

from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from torch import Tensor

from pipeline.detector.build import build_detector, without_waits
from pipeline.heads.batch_grid import BatchGrid
from pipeline.heads.family import Outputs
from pipeline.heads.logged import counted
from pipeline.heads.positives import Positives
from pipeline.heads.registry import family_of
from pipeline.store.coding import Coding
from pipeline.students.assignment import cached_positives
from pipeline.students.distillation import BatchTargets
from pipeline.students.method import Decider
from pipeline.students.soft_scores import cached_targets


@dataclass(frozen=True)
class Lesson:
    """What a teacher says of a batch.

    Attributes:
        positives: its assignment, where the student learns that.
        targets: its soft scores, where the student learns those.
        fallbacks: how many objects had costs that allow no mixture, where it was asked in this
            step.
    """

    positives: Positives | None = None
    targets: BatchTargets | None = None
    fallbacks: int | None = None


class TaughtDetector(BaseModel):
    """Trains a detector by its head's own losses, by a distillation, or both.

    Args:
        detector: mmdet's config of it: of a `replaying` network where a teacher assigns, of a
            `recording` one where the head does and there is a distillation.
        assignment: who decides which prior learns which object; None for no such losses.
        distillation: what learns the teacher's soft scores.
    """

    def __init__(
        self,
        detector: ConfigDict,
        assignment: Decider | None,
        distillation: dict[str, Any] | None,
    ) -> None:
        detector = without_waits(detector)
        super().__init__(data_preprocessor=detector.get("data_preprocessor"))
        self.detector = build_detector(detector)
        self.assignment = assignment
        self.distillation = MODELS.build(distillation) if distillation else None
        self.family = family_of(self.detector.bbox_head)

    def forward(
        self, inputs: Tensor, data_samples: SampleList, mode: str = "loss"
    ) -> dict[str, Any]:
        """What `loss` says; the trained detector predicts on its own.

        Args:
            inputs: (B, 3, H, W) normalised images.
            data_samples: B samples, as the preprocessor leaves them.
            mode: as mmengine names it, `loss`.
        """
        assert mode == "loss", mode
        return self.loss(inputs, data_samples)

    def loss(self, inputs: Tensor, data_samples: SampleList) -> dict[str, Any]:
        """The losses of the head and of the distillation, and counts to be logged.

        Counts: `fallbacks`, and `left_out`, the teacher's positives that the head can't learn.

        Args:
            inputs: (B, 3, H, W) normalised images.
            data_samples: B samples, as the preprocessor leaves them.
        """
        grid = BatchGrid.of(self.family.grid, data_samples, inputs.device)
        lesson = self.lesson(inputs, data_samples, grid)
        outputs = self.detector.bbox_head(self.detector.extract_feat(inputs))
        losses, count = self._own_losses(outputs, data_samples, lesson)
        if self.distillation:
            losses |= self.distillation(self.family, outputs, lesson.targets, count)
        if lesson.fallbacks is not None:
            losses |= counted(fallbacks=lesson.fallbacks)
        return losses

    def _own_losses(
        self, outputs: Outputs, samples: SampleList, lesson: Lesson
    ) -> tuple[dict[str, Any], Tensor | int | None]:
        """The losses of the head, and how many positives they have."""
        if self.assignment is None:
            return {}, None
        if self.assignment == "own":
            return self.family.own_losses(outputs, samples)
        assert lesson.positives
        positives = self.family.select(lesson.positives, samples)
        losses = self.family.losses(outputs, samples, positives)
        if positives is not lesson.positives:
            losses |= counted(left_out=positives.left_out)
        return losses, len(positives.pos_inds)

    def lesson(self, inputs: Tensor, samples: SampleList, grid: BatchGrid) -> Lesson:
        """What the teacher says of a batch.

        Args:
            inputs: (B, 3, H, W) normalised images.
            samples: B samples, as the preprocessor leaves them.
            grid: of the batch.
        """
        raise NotImplementedError


@MODELS.register_module()
class CachedDetector(TaughtDetector):
    """A detector that learns what its samples carry of a label store.

    Args:
        coding: of the store's class probabilities; None where they are not learnt.
        **kwargs: see `TaughtDetector`.
    """

    def __init__(self, coding: Coding | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.coding = coding

    def lesson(self, inputs: Tensor, samples: SampleList, grid: BatchGrid) -> Lesson:
        """What the samples carry; see `TaughtDetector.lesson`."""
        return Lesson(
            cached_positives(samples, grid) if self.assignment == "teacher" else None,
            cached_targets(samples, grid, self.coding) if self.coding else None,
        )


def detector_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the detector among those of a `TaughtDetector`, as mmdet names them."""
    prefix = "detector."
    return {key.removeprefix(prefix): value for key, value in state.items()}
