"""The section `colearn`: pairs of networks that learn together."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from pipeline.project.settings import Section, is_file_name
from pipeline.training.settings import OWN_TRAINING, Training


def _network_name(name: str) -> str:
    # mmengine adds up all that a detector logs with "loss" in its name.
    if not is_file_name(name) or "loss" in name:
        raise ValueError("a network's name is letters, digits, _ and (not first) -, without 'loss'")
    return name


class Network(Section):
    """One of two networks that learn together."""

    name: Annotated[str, AfterValidator(_network_name)]
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
    training: Training = OWN_TRAINING

    @field_validator("networks")
    @classmethod
    def _two_names(cls, networks: tuple[Network, Network]) -> tuple[Network, Network]:
        if networks[0].name == networks[1].name:
            raise ValueError("the networks must have different names")
        return networks
