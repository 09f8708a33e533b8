"""Reading `params.yaml`: what is wrong in it is said in one line each, with the place."""

from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError

from pipeline.project.errors import UserError, did_you_mean
from pipeline.project.params import Params, Section


def _section(location: tuple[int | str, ...]) -> type[Section]:
    """The class of the section at `location`."""
    section: Any = Params
    for part in location:
        if get_origin(section) in (dict, tuple):
            section = get_args(section)[1]
        else:
            section = section.model_fields[part].annotation
        if get_origin(section) is UnionType:  # a section that may be absent
            section = get_args(section)[0]
    return section


def _describe(error: Any) -> str:
    """One line on an error that pydantic found."""
    location = tuple(part for part in error["loc"] if part != "[key]")
    where = ".".join(map(str, location)) or "the file"
    if error["type"] == "extra_forbidden":
        hint = did_you_mean(str(location[-1]), _section(location[:-1]).model_fields)
        return f"{where}: there is no such setting{hint}"
    if error["type"] == "missing":
        return f"{where}: is missing"
    if error["type"] == "model_type":
        return f"{where}: should hold settings as `name: value`, got {error['input']!r}"
    return f"{where}: {error['msg'].removeprefix('Value error, ')}, got {error['input']!r}"


def load_params(file: Path) -> Params:
    """Read and check `params.yaml`.

    Raises:
        UserError: the file is missing or no YAML, a setting is unknown or has a wrong value.
    """
    try:
        content = yaml.safe_load(file.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"no {file} here; run the command in the project's folder or give --params"
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"{file} is not valid YAML: {error}") from None
    try:
        return Params.model_validate(content)
    except ValidationError as errors:
        lines = [f"{file}: {_describe(error)}" for error in errors.errors()]
        raise UserError("\n".join(lines)) from None
