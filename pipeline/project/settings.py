"""The base class of settings, and the kinds of values that several rooms use.

Each room has its section of `params.yaml` in its own `settings.py`; `stages/params.py` puts the
sections together.
"""

import re
from typing import Annotated, Any, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(gt=0)]
Size = tuple[PositiveInt, PositiveInt]
Fraction = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What NumPy and torch both take."""
Workers = Annotated[int, Field(ge=0)] | None
WORKERS = Field(
    None, description="processes that load images; null: one per core, 16 at most; 0: this process"
)
"""The setting `workers`, of which `pipeline.project.machine.loader_processes` makes a number."""


class Section(BaseModel):
    """A section of the settings: unknown names are errors, values do not change.

    A section in it whose entries are all commented out is nothing in YAML, and empty here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {
            name: {} if value is None and cls._holds_settings(name) else value
            for name, value in values.items()
        }

    @classmethod
    def _holds_settings(cls, name: str) -> bool:
        field = cls.model_fields.get(name)
        kind = field and (get_origin(field.annotation) or field.annotation)
        return isinstance(kind, type) and issubclass(kind, Section | dict)


def require_exactly_one(section: Section, *names: str) -> None:
    """Refuse a section unless exactly one of these settings is given.

    Raises:
        ValueError: none is, or several are.
    """
    given = [name for name in names if getattr(section, name) is not None]
    if len(given) != 1:
        raise ValueError(
            f"give exactly one of {', '.join(names)}; there is {' and '.join(given) or 'none'}"
        )


def is_file_name(name: str) -> bool:
    """Whether a name can be a file's, a DVC stage's and an argument of `lad`."""
    return bool(re.fullmatch("[A-Za-z0-9_][A-Za-z0-9_-]*", name))
