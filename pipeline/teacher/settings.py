"""The section `teacher`: the network whose decisions are written to the store."""

from pydantic import Field

from pipeline.project.settings import Section
from pipeline.training.settings import Training


class TeacherSettings(Section):
    """The network whose decisions are written to the store."""

    config: str = Field(description="an mmdet config, with a head of docs/heads.md")
    checkpoint: str | None = Field(None, description="one that you have; null trains the teacher")
    trust_checkpoint: bool = Field(
        False, description="load a checkpoint that holds more than tensors: it can run any code"
    )
    training: Training = Training()
