"""The settings in `params.yaml`: a section a room, put together and read."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import AfterValidator, ValidationError, model_validator

from pipeline.colearning.settings import CoLearning
from pipeline.evaluation.settings import Evaluation
from pipeline.ingest.settings import Data
from pipeline.online.settings import OnlineStudent
from pipeline.project.errors import UserError, did_you_mean
from pipeline.project.settings import Section, is_file_name
from pipeline.project.yaml_file import read_yaml
from pipeline.students.settings import Student
from pipeline.teacher.settings import TeacherSettings
from pipeline.teacher_pass.settings import Labels, TeacherPass
from pipeline.training.settings import Training
from pipeline.views.settings import Views

T = TypeVar("T")


def _student_name(name: str) -> str:
    if not is_file_name(name) or name == "teacher":
        raise ValueError(
            "a student's name is letters, digits, _ and (not first) -, and not 'teacher'"
        )
    return name


WRONG_FORM = ("list_type", "tuple_type", "too_long", "missing", "int_type", "int_parsing")
"""Pydantic's names of errors that the form of a list explains."""

StudentName = Annotated[str, AfterValidator(_student_name)]


class Params(Section):
    """Everything a user sets."""

    data: Data
    views: Views
    teacher: TeacherSettings
    labels: Labels = Labels()
    teacher_pass: TeacherPass = TeacherPass()
    training: Training = Training()
    students: dict[StudentName, Student] = {}
    online: dict[StudentName, OnlineStudent] = {}
    colearn: dict[StudentName, CoLearning] = {}
    evaluation: Evaluation

    @model_validator(mode="after")
    def _one_model_a_name(self) -> "Params":
        if twice := self.students.keys() & self.online.keys():
            raise ValueError(f"students and online both have a student {sorted(twice)[0]!r}")
        return self


def entry(section: str, entries: Mapping[str, T], name: str) -> T:
    """The entry `name` of a section that has some.

    Raises:
        UserError: there is none.
    """
    if name not in entries:
        raise UserError(
            f"no {name!r} in the section {section} of params.yaml{did_you_mean(name, entries)}; "
            f"there are: {', '.join(entries) or 'none'}"
        )
    return entries[name]


def load_params(file: Path) -> Params:
    """Read and check `params.yaml`.

    Raises:
        UserError: the file is missing or no YAML, a setting is unknown or has a wrong value; the
            message has a line for each, with the place.
    """
    try:
        content = read_yaml(file)
    except FileNotFoundError:
        raise UserError(
            f"no {file} here; run the command in the project's folder or give --params"
        ) from None
    try:
        return Params.model_validate(content)
    except ValidationError as errors:
        lines = [f"{file}: {_describe(error)}" for error in errors.errors()]
        raise UserError("\n".join(lines)) from None


def _describe(error: Any) -> str:
    """One line on an error that pydantic found."""
    location = tuple(part for part in error["loc"] if part != "[key]")
    where = ".".join(map(str, location)) or "the file"
    if error["type"] == "extra_forbidden":
        if location[0] == "students" and location[2:] == ("labels",):
            return f"{where}: students with online labels stand in the section `online` now"
        if location[0] == "labels" and location[-1] in TeacherPass.model_fields:
            return f"{where}: stands in the section `teacher_pass` now"
        hint = did_you_mean(str(location[-1]), _section(location[:-1]).model_fields)
        return f"{where}: there is no such setting{hint}"
    if error["type"] == "missing" and isinstance(location[-1], str):
        return f"{where}: is missing"
    if error["type"] in ("model_type", "dict_type"):
        return f"{where}: should hold settings as `name: value`, got {error['input']!r}"
    what = error["msg"].removeprefix("Value error, ")
    if error["type"] in WRONG_FORM:
        what += _form(location)
    # Of an error between sections, the whole file would be what was got.
    return f"{where}: {what}, got {error['input']!r}" if location else f"{where}: {what}"


def _form(location: tuple[int | str, ...]) -> str:
    """The form that a setting has, or the list that an entry stands in; nothing for plain ones."""
    *sections, name = (part for part in location if isinstance(part, str))
    field = getattr(_section(tuple(sections)), "model_fields", {}).get(name)
    if not field or not field.examples:
        return ""
    return f"; expected the form `{name}: {json.dumps(field.examples[0])}`"


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
