"""Rooms import downward, and stages depend on the rooms and sections that they use."""

import ast
from pathlib import Path

import pytest
import yaml

from pipeline.ingest.settings import BUILT_IN_DATA
from pipeline.project.code import imported_files, imported_names
from pipeline.store import fingerprint, schema
from tests.conftest import ROOT

# From the ground floor up: a room imports from itself and from those before it.
ROOMS = [
    *("project", "data", "ingest", "views", "assignment", "store", "heads", "detector", "loading"),
    *("training", "teacher", "teacher_pass", "verification", "students", "methods", "online"),
    *("colearning", "evaluation", "comparison", "inspection"),
]
MMDET_ROOMS = set(ROOMS[ROOMS.index("heads") :]) - {"comparison", "methods"}
LIBRARIES = {
    "mmdet": MMDET_ROOMS,
    "mmcv": MMDET_ROOMS,
    "mmengine": MMDET_ROOMS,
    "zarr": {"store"},
    "dask": {"teacher_pass"},
    "distributed": {"teacher_pass"},
    "click": {"stages"},
    "benchmarks": set[str](),
    "studies": set[str](),
}
FILES = sorted(
    file.relative_to(ROOT) for top in ("pipeline", "stages") for file in (ROOT / top).rglob("*.py")
)
PARAMS = Path("stages/params.py")  # knows all sections; what a stage reads of it is checked below
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_bytes())["stages"]
METHODS = sorted(file.stem for file in (ROOT / "pipeline/methods").glob("[!_]*.py"))


def room(file: Path) -> str:
    """The room of a file of the library, or `stages`; that of `pipeline/__init__.py` is ''."""
    return "stages" if file.parts[0] == "stages" else "/".join(file.parts[1:-1])


def test_each_folder_of_the_library_is_a_room() -> None:
    assert {room(file) for file in FILES} == {*ROOMS, "stages", ""}


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_file_is_small_and_in_its_place(file: Path) -> None:
    text = (ROOT / file).read_text()
    assert len(text.splitlines()) <= 320, "split it: two names would say it better"
    assert file.name != "utils.py"
    if file.name == "__init__.py" and file.parent != Path("pipeline"):
        assert not text
    packages = {name.split(".")[0] for name in imported_names(ROOT / file)}
    for library, rooms in LIBRARIES.items():
        assert library not in packages or room(file) in rooms, f"{library} in {room(file)}"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_imports_go_downward(file: Path) -> None:
    floors = [*ROOMS, "stages", ""]  # `pipeline/__init__.py` may import what mmcv asks for
    for target in imported_files([file], ROOT) - {file}:
        assert floors.index(room(target)) <= floors.index(room(file)), target
    if room(file) == "stages" and file.name != "cli.py":
        others = {name for name in imported_names(ROOT / file) if name.startswith("stages.")}
        assert {name.split(".")[1] for name in others} <= {"params"}


def closure(stage: str, method: str | None = None) -> set[Path]:
    """The library's files that a stage imports, with a method of students."""
    starts = [Path(f"stages/{stage}.py")]
    if method:
        starts.append(Path(f"pipeline/methods/{method}.py"))
    return {file for file in imported_files(starts, ROOT) if file.parts[0] == "pipeline"}


def stage_file(name: str) -> str:
    """The file in stages/ of a stage in dvc.yaml: `evaluate` of `evaluate_teacher`."""
    return name.partition("_")[0]


@pytest.mark.parametrize("name", [name for name in STAGES if name != "labels"])
def test_a_stage_depends_on_the_rooms_that_it_imports(name: str) -> None:
    stage, deps = stage_file(name), STAGES[name].get("do", STAGES[name])["deps"]
    assert f"stages/{stage}.py" in deps
    rooms = {dep.removeprefix("pipeline/") for dep in deps if dep.startswith("pipeline/")}
    by_method = "methods/${item.method}.py" in rooms
    for method in METHODS if by_method else [None]:
        used = {room(file) for file in closure(stage, method)}
        listed = rooms - {"methods/${item.method}.py"} | ({"methods"} if by_method else set())
        assert listed == used, f"{name} with the method {method}"


def test_labels_depend_on_what_decides_them_alone() -> None:
    """An edited comment, or another batch size, is no reason for a teacher pass."""
    stage = STAGES["labels"]
    assert not [dep for dep in stage["deps"] if not dep.startswith("out/")]
    versions = [param for param in stage["params"] if isinstance(param, dict)]
    for file, name in ((fingerprint, "LABELS_VERSION"), (schema, "FORMAT_VERSION")):
        place = Path(file.__file__).relative_to(ROOT).as_posix()
        assert {place: [name]} in versions
        assert isinstance(getattr(file, name), int)
    assert len(versions) == 2
    assert "teacher_pass" not in stage["params"]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_names_the_sections_that_it_reads(name: str) -> None:
    listed = STAGES[name].get("do", STAGES[name]).get("params", [])
    tree = ast.parse((ROOT / f"stages/{stage_file(name)}.py").read_text())
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "params"
    }
    sections = {name.partition(".")[0] for name in listed if isinstance(name, str)}
    # How a pass runs decides no label.
    assert sections == read - {"teacher_pass"}


def test_a_method_imports_no_other() -> None:
    """A student depends on the file of its own method alone."""
    for method in METHODS:
        files = imported_files([Path(f"pipeline/methods/{method}.py")], ROOT)
        assert [file.stem for file in files if room(file) == "methods"] == [method]


def test_the_built_in_data_set_is_a_file() -> None:
    """Its path is a dependency of the stage `data`."""
    assert (ROOT / BUILT_IN_DATA).is_file()
