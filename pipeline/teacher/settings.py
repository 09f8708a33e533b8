"""The section `teacher`: the network whose decisions are written to the store."""

from pydantic import Field, model_validator

from pipeline.project.settings import Section
from pipeline.training.settings import Training


class TeacherSettings(Section):
    """The network whose decisions are written to the store."""

    config: str = Field(description="an mmdet config, with a head of docs/heads.md")
    checkpoint: str | None = Field(None, description="one that you have; null trains the teacher")
    load_from: str | None = Field(
        None, description="a checkpoint that its training begins with; what does not fit is new"
    )
    trust_checkpoint: bool = Field(
        False, description="load a checkpoint that holds more than tensors: it can run any code"
    )
    training: Training = Training()

    @model_validator(mode="after")
    def _one_beginning(self) -> "TeacherSettings":
        if self.checkpoint is not None and self.load_from is not None:
            raise ValueError(
                "checkpoint is a teacher that needs no training, load_from is where training "
                "begins: give one of them"
            )
        return self
