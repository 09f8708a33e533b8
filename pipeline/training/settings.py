"""The section `training`, which every network that is trained can have its own values of."""

from typing import Literal

from pydantic import Field

from pipeline.project.settings import WORKERS, PositiveInt, Section, Seed, Workers


class Training(Section):
    """How a network is trained."""

    epochs: PositiveInt = 8
    batch_size: PositiveInt = 16
    optimizer: Literal["AdamW", "SGD"] = "AdamW"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    schedule: Literal["cosine", "step"] = Field(
        "cosine", description="step: a tenth at 2/3 and at 11/12 of the epochs (mmdet's 1x, 2x)"
    )
    warmup_steps: int = Field(50, ge=0)
    clip_grad_norm: float | None = Field(None, gt=0)
    amp: bool = Field(False, description="mixed precision; needs a GPU")
    channels_last: bool | None = Field(
        None, description="memory format; null: on the CPU alone, where it is faster"
    )
    workers: Workers = WORKERS
    seed: Seed = 0
    checkpoint_every: PositiveInt = Field(1, description="epochs between checkpoints")

    def over(self, common: "Training") -> "Training":
        """The common settings, but for those that are given here."""
        own = {name: getattr(self, name) for name in self.model_fields_set}
        return common.model_copy(update=own)


OWN_TRAINING = Field(
    Training(), description="what differs from the section `training`; the rest has no effect"
)
"""The setting `training` of a network that takes the others from the section."""
