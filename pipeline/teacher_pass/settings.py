"""The sections `labels` and `teacher_pass`: what a store holds, and the run that fills it."""

from typing import Literal

from pydantic import Field

from pipeline.project.settings import WORKERS, PositiveInt, Section, Workers
from pipeline.store.coding import Coding, SoftSettings


class Cluster(Section):
    """How the processes of a teacher pass share a machine."""

    workers: PositiveInt | None = Field(None, description="null: one per GPU, else one per core")
    threads: PositiveInt | None = Field(
        None, description="of each; null: an equal part of the cores, or 1 at a scheduler's address"
    )


class Labels(Section):
    """What is stored of what the teacher says, and how its network says it: all decides labels."""

    soft: bool = Field(True, description="store the teacher's soft scores, too")
    min_iou: float = Field(
        0.1, ge=0, lt=1, description="boxes are stored where they overlap an object by more"
    )
    min_score: float = Field(
        0.012, gt=0, le=1, description="and where a class has at least this probability, for bckd"
    )
    scores: Coding = Coding()
    autocast: Literal["bfloat16", "float16"] | None = Field(
        None, description="what the teacher's network computes in; null is float32"
    )
    channels_last: bool = Field(False, description="the memory format of the network")

    def soft_settings(self) -> SoftSettings | None:
        """How soft scores are stored; None where none are wanted."""
        if not self.soft:
            return None
        return SoftSettings(scores=self.scores, min_iou=self.min_iou, min_score=self.min_score)


class TeacherPass(Section):
    """The run that fills the store: nothing here is a reason to make labels again."""

    batch_size: PositiveInt = 16
    bucket_batch_sizes: dict[str, PositiveInt] = Field(
        {}, description="other batch sizes for some padded sizes, as 800x1344: 4"
    )
    shard_rows: PositiveInt = Field(512, description="views in a shard, the unit of work")
    workers: Workers = WORKERS
    scheduler: str = Field(
        "local",
        pattern=r"^(local|cluster|(tcp|tls|ws|wss)://\S+)$",
        description="local: this process; cluster: Dask on this machine; or a Dask address",
    )
    cluster: Cluster = Cluster()
