"""The settings in `params.yaml`, checked: one class a section, one line of text a setting."""

import re
from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from pipeline.project.errors import UserError, did_you_mean

BUILT_IN_DATA = "pipeline/ingest/digits.py"
"""The value of `data.source` that stands for the built-in data set."""


def _student_name(name: str) -> str:
    # The name is a file name, a DVC stage and an argument of `lad`.
    if not re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_-]*", name) or name == "teacher":
        raise ValueError(
            "a student's name is letters, digits, _ and (not first) -, and not 'teacher'"
        )
    return name


def _network_name(name: str) -> str:
    # mmengine adds up all that a detector logs with "loss" in its name.
    if not re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_-]*", name) or "loss" in name:
        raise ValueError("a network's name is letters, digits, _ and (not first) -, without 'loss'")
    return name


PositiveInt = Annotated[int, Field(gt=0)]
Size = tuple[PositiveInt, PositiveInt]
Share = Annotated[float, Field(gt=0, le=1)]
StudentName = Annotated[str, AfterValidator(_student_name)]
NetworkName = Annotated[str, AfterValidator(_network_name)]


class Section(BaseModel):
    """A section of the settings: unknown names are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Split(Section):
    """Where a split of a COCO-format data set lies, inside `data.source`."""

    annotations: str = Field(description="the annotation file")
    images: str = Field(description="the folder that the annotations' file names start from")


class Digits(Section):
    """The built-in data set: scenes of handwritten digits."""

    train_images: PositiveInt = 480
    val_images: PositiveInt = 120
    sizes: list[Size] = Field([(256, 192)], min_length=1, description="(width, height) in pixels")
    seed: int = 0


class Data(Section):
    """The data set."""

    source: str = Field(description=f"{BUILT_IN_DATA}, or the folder of a COCO-format data set")
    train: Split = Split(annotations="train.json", images="images")
    val: Split = Split(annotations="val.json", images="images")
    problems: Literal["fail", "drop"] = Field(
        "fail", description="what a bad image or annotation does: fail the stage, or drop out"
    )
    digits: Digits = Digits()


def _exactly_one(section: Section, *names: str) -> None:
    given = [name for name in names if getattr(section, name) is not None]
    if len(given) != 1:
        raise ValueError(
            f"give exactly one of {', '.join(names)}; there is {' and '.join(given) or 'none'}"
        )


class ScaleRange(Section):
    """Scales with one bound of the long side and evenly spaced ones of the short side."""

    long: PositiveInt
    short: tuple[PositiveInt, PositiveInt] = Field(description="the first and the last")
    step: PositiveInt = 32

    @model_validator(mode="after")
    def _whole_steps(self) -> "ScaleRange":
        first, last = self.short
        if first > last or (last - first) % self.step:
            raise ValueError(f"short must lead from {first} to {last} in steps of {self.step}")
        return self

    def scales(self) -> list[Size]:
        """All of them, from small to large."""
        first, last = self.short
        return [(self.long, short) for short in range(first, last + 1, self.step)]


class Scales(Section):
    """Resize scales: a list, or a range."""

    scales: list[Size] | None = Field(
        None, min_length=1, description="mmdet's resize scale: bounds of the long and short side"
    )
    range: ScaleRange | None = None

    @field_validator("scales", "flips", check_fields=False)
    @classmethod
    def _distinct(cls, values: list[Any]) -> list[Any]:
        if values and len(set(values)) < len(values):
            raise ValueError("an entry stands twice")
        return values

    def all_scales(self) -> list[Size]:
        """Those of the list or the range."""
        return self.range.scales() if self.range else self.scales or []


class Crop(Section):
    """A random window of the resized image."""

    size: Size | None = Field(None, description="(width, height) pixels, at most the image's")
    relative: tuple[Share, Share] | None = Field(
        None, description="least and greatest share of each side, drawn evenly"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> "Crop":
        _exactly_one(self, "size", "relative")
        if self.relative and self.relative[0] > self.relative[1]:
            raise ValueError("relative must be the least and the greatest share, in this order")
        return self


class Sampled(Scales):
    """A view plan that draws views of its own for every image, once and for all."""

    count: PositiveInt = Field(le=2**15 - 1, description="views of an image")
    seed: int = 0
    flip: float = Field(0.5, ge=0, le=1, description="how probable a flip is")
    crop: Crop | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "Sampled":
        _exactly_one(self, "scales", "range")
        return self


class Views(Scales):
    """The view plan: every scale with every flip, or sampled views."""

    flips: list[Literal["none", "horizontal"]] = Field(["none", "horizontal"], min_length=1)
    sampled: Sampled | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> "Views":
        _exactly_one(self, "scales", "range", "sampled")
        if self.sampled and "flips" in self.model_fields_set:
            raise ValueError("flips go with scales or range; sampled views have sampled.flip")
        return self


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
    workers: int = Field(2, ge=0, description="processes that load images")
    seed: int = 0
    checkpoint_every: PositiveInt = Field(1, description="epochs between checkpoints")


class Teacher(Section):
    """The network whose decisions are written to the store."""

    config: str = Field(description="an mmdet config whose model is a PAA")
    checkpoint: str | None = Field(None, description="one that you have; null trains the teacher")
    trust_checkpoint: bool = Field(
        False, description="load a checkpoint that holds more than tensors: it can run any code"
    )
    training: Training = Training()


class Scores(Section):
    """How soft class scores are coded; see `pipeline.store.coding.Coding`."""

    cut: float = Field(0.012, gt=0, lt=1)
    levels: int = Field(63, ge=2, le=254)
    power: float = Field(1.5, gt=0)


class Cluster(Section):
    """How the processes of a teacher pass share a machine."""

    workers: PositiveInt | None = Field(None, description="null: one per GPU, else one per core")
    threads: PositiveInt | None = Field(
        None, description="of each; null: an equal part of the cores, or 1 at a scheduler's address"
    )


class Labels(Section):
    """The teacher pass."""

    soft: bool = Field(True, description="store the teacher's soft scores, too")
    min_iou: float = Field(
        0.1, ge=0, lt=1, description="boxes are stored where they overlap an object by more"
    )
    scores: Scores = Scores()
    batch_size: PositiveInt = 16
    bucket_batch_sizes: dict[str, PositiveInt] = Field(
        {}, description="other batch sizes for some padded sizes, as 800x1344: 4"
    )
    shard_rows: PositiveInt = Field(64, description="views in a shard, the unit of work")
    workers: int = Field(2, ge=0, description="processes that load images")
    autocast: Literal["bfloat16", "float16"] | None = Field(
        None, description="what the teacher's network computes in; null is float32"
    )
    channels_last: bool = Field(False, description="the memory format of the network")
    scheduler: str = Field(
        "local",
        pattern=r"^(local|cluster|(tcp|tls|ws|wss)://\S+)$",
        description="local: this process; cluster: Dask on this machine; or a Dask address",
    )
    cluster: Cluster = Cluster()


class Student(Section):
    """A network trained from the store, with the teacher in memory, or on its own (`paa`)."""

    config: str = Field(description="an mmdet config whose model is a PAA")
    method: Literal["paa", "lad", "soft", "solad"]
    labels: Literal["cached", "online"] = Field(
        "cached", description="from the store, or from the teacher in each step"
    )
    assigner: Literal["batched", "mmdet"] = Field(
        "batched", description="of paa and online lad: ours, or mmdet's, object by object"
    )
    min_iou: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="soft, solad: the teacher's boxes count where they overlap an object by more; "
        "null is the method's own, 0.1 and 0.5",
    )
    training: Training = Field(
        Training(), description="what differs from the section `training`; the rest has no effect"
    )

    @property
    def labels_from(self) -> str:
        """Where its labels come from: `cached`, `online`, or `own` for a paa."""
        return "own" if self.method == "paa" else self.labels

    @model_validator(mode="after")
    def _labels_are_possible(self) -> "Student":
        if self.method == "paa" and self.labels == "online":
            raise ValueError("labels: online needs a teacher, and paa has none; leave labels out")
        own_rule = self.method == "paa" or (self.method == "lad" and self.labels == "online")
        if self.assigner == "mmdet" and not own_rule:
            raise ValueError(
                "assigner: mmdet is for the method paa, and for lad with labels: online; "
                "leave it out"
            )
        return self


class Network(Section):
    """One of two networks that learn together."""

    name: NetworkName
    config: str = Field(description="an mmdet config whose model is a PAA")
    checkpoint: str | None = Field(
        None, description="what it starts from: a model folder or a file; null: as its config says"
    )
    trust_checkpoint: bool = Field(
        False, description="load a checkpoint that holds more than tensors: it can run any code"
    )


class CoLearning(Section):
    """Two networks that learn from one assignment, which both decide."""

    networks: tuple[Network, Network]
    criterion: Literal["std_mean", "fisher"] = Field(
        "std_mean", description="who teaches an object; see pipeline/assignment/criterion.py"
    )
    per: Literal["level", "object"] = Field(
        "level", description="whether each level of an object has a teacher of its own"
    )
    training: Training = Field(
        Training(), description="what differs from the section `training`; the rest has no effect"
    )

    @field_validator("networks")
    @classmethod
    def _two_names(cls, networks: tuple[Network, Network]) -> tuple[Network, Network]:
        if networks[0].name == networks[1].name:
            raise ValueError("the networks must have different names")
        return networks


class Evaluation(Section):
    """How detectors are measured."""

    scale: Size = Field(description="mmdet's resize scale of the validation images")
    batch_size: PositiveInt = 16
    workers: int = Field(2, ge=0)


class Params(Section):
    """Everything a user sets."""

    data: Data
    views: Views
    teacher: Teacher
    labels: Labels = Labels()
    training: Training = Training()
    students: dict[StudentName, Student] = {}
    colearn: dict[StudentName, CoLearning] = {}
    evaluation: Evaluation

    def student(self, name: str) -> Student:
        """The student `name`.

        Raises:
            UserError: there is no such student.
        """
        _require_known("student", name, self.students)
        return self.students[name]

    def student_training(self, name: str) -> Training:
        """How the student `name` is trained: its own settings over the common ones."""
        return self._over_common(self.student(name).training)

    def colearning(self, name: str) -> CoLearning:
        """The co-learning `name`.

        Raises:
            UserError: there is none.
        """
        _require_known("co-learning", name, self.colearn)
        return self.colearn[name]

    def colearning_training(self, name: str) -> Training:
        """How the networks of the co-learning `name` are trained."""
        return self._over_common(self.colearning(name).training)

    def colearners(self) -> list[str]:
        """The networks that learn together, each as NAME.NETWORK."""
        return [
            f"{name}.{net.name}" for name, pair in self.colearn.items() for net in pair.networks
        ]

    def require_model(self, name: str) -> None:
        """Refuse a name that is neither `teacher`, nor a student, nor one of `colearners`.

        Raises:
            UserError: there is no such model.
        """
        _require_known("model", name, ["teacher", *self.students, *self.colearners()])

    def _over_common(self, own: Training) -> Training:
        return self.training.model_copy(update={n: getattr(own, n) for n in own.model_fields_set})


def _require_known(what: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise UserError(
            f"no {what} {name!r} in params.yaml{did_you_mean(name, known)}; "
            f"there are: {', '.join(known) or 'none'}"
        )
