"""Who imports whom: stages depend on the code that they import, layers import downward."""

import ast
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

from pipeline.project.params import BUILT_IN_DATA
from pipeline.teacher_pass.labelling import DECIDING_CODE

ROOT = Path(__file__).parents[2]
CLI = Path("stages/cli.py")

# The file in stages/ of each stage in dvc.yaml.
STAGE_FILES = {
    "data": "data",
    "teacher": "teacher",
    "labels": "labels",
    "verify": "verify",
    "student": "student",
    "evaluate": "evaluate",
    "colearn": "colearn",
    "evaluate_colearn": "evaluate",
    "evaluate_teacher": "evaluate",
    "compare": "compare",
}

# From top to bottom: a module imports from its own layer and from those below.
LAYERS = [
    {"stages"},
    {"coding_study"},
    {
        "train_teacher",
        "train_student",
        "train_colearn",
        "bench.assignment",
        "bench.cluster",
        "bench.growth",
        "bench.loader",
        "bench.memory",
        "bench.mixture",
        "bench.reads",
        "bench.steps",
        "bench.suite",
        "bench.synthetic",
        "bench.teacher_pass",
        "estimate",
        "probe",
        "study_students",
    },
    {
        "prepare",
        "training",
        "evaluation",
        "report",
        "precompute",
        "verification",
        "labelling",
        "shard_tasks",
        "cluster",
        "ranks",
        "random_teacher",
    },
    {"methods", "colearning"},
    {"online_students", "batched_paa"},
    {"soft_students", "online"},
    {
        "batch_grid",
        "batches",
        "teacher",
        "students",
        "replay",
        "detector",
        "checkpoint",
        "losses",
        "mmcv_ops",
        "lad_head",
        "objectness",
        "preprocessor",
    },
    {
        "assignment.iou",
        "assignment.paa",
        "assignment.mixture",
        "assignment.criterion",
        "store.schema",
        "store.shard",
        "store.writer",
        "store.reader",
        "store.fingerprint",
        "store.verify",
        "store.summary",
        "store.read_times",
        "trial_codings",
        "bench.measure",
    },
    {
        "views",
        "priors",
        "coco",
        "coco_check",
        "image_files",
        "dataset",
        "digits",
        "quantise",
        "plots",
        "results",
    },
    {"params_file"},
    {"params", "paths", "errors", "overlap", "machine", "memory", "arrays", "pooling"},
]

MMDET_MODULES = {
    "pipeline.detector.mmcv_ops",
    "pipeline.training.batch_grid",
    "pipeline.loading.collate",
    "pipeline.training.online_assignment",
    "pipeline.online.students",
    "pipeline.training.batched_paa",
    "pipeline.teacher_pass.teacher",
    "pipeline.students.assignment",
    "pipeline.students.soft_scores",
    "pipeline.students.methods",
    "pipeline.students.losses",
    "pipeline.loading.replay",
    "pipeline.training.run",
    "pipeline.teacher.make",
    "pipeline.students.train",
    "pipeline.colearning.train",
    "pipeline.colearning.network",
    "pipeline.evaluation.evaluate",
    "pipeline.teacher_pass.run",
    "pipeline.teacher_pass.labelling",
    "pipeline.teacher_pass.shard_labeller",
    "pipeline.training.distributed",
    "pipeline.teacher_pass.cluster",
    "pipeline.verification.verify",
    "pipeline.detector.model_folder",
    "pipeline.detector.build",
    "pipeline.heads.lad",
    "pipeline.heads.objectness",
    "pipeline.detector.preprocessor",
    "benchmarks.assignment",
    "benchmarks.loader",
    "benchmarks.mixture",
    "benchmarks.steps",
    "benchmarks.synthetic",
    "benchmarks.teacher_pass",
    "pipeline.project.machine",
    "benchmarks.random_teacher",
    "pipeline.inspection.probe",
    "studies.coding_study",
    "studies.students",
}


def source_files(root: Path) -> list[Path]:
    """The Python files of the library and the stages, relative to `root`."""
    files = [*root.glob("pipeline/**/*.py"), *root.glob("stages/**/*.py")]
    return sorted(file.relative_to(root) for file in files)


def module_name(file: Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


def imported_names(file: Path) -> set[str]:
    """What `file` imports, inside functions too; `from a import b` gives `a` and `a.b`."""
    names = set()
    for node in ast.walk(ast.parse(file.read_bytes(), str(file))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}:{node.lineno}: write the import with its full name"
            assert node.module
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def imported_packages(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imported_names(file)}


def import_graph(root: Path) -> dict[Path, set[Path]]:
    """The files that each file imports; empty ones (`__init__.py`) do not count."""
    files = {module_name(f): f for f in source_files(root) if (root / f).stat().st_size}
    return {
        file: {files[name] for name in imported_names(root / file) if name in files}
        for file in files.values()
    }


def closure(root: Path, starts: Iterable[Path]) -> set[Path]:
    """All files that the files `starts` import, and these files."""
    graph = import_graph(root)
    found: set[Path] = set()
    todo = list(starts)
    while todo:
        file = todo.pop()
        if file not in found:
            found.add(file)
            todo += graph[file]
    return found


def wrong_deps(root: Path, stage_file: Path, deps: Iterable[str]) -> list[str]:
    """How the code among `deps` differs from what `stage_file` imports."""
    needed = closure(root, [stage_file, CLI]) - {CLI}
    # Only the built-in data set's own code makes that data set.
    listed = {Path(dep.replace("${data.source}", BUILT_IN_DATA)) for dep in deps}
    # A whole `pipeline` does not count: then each change would rerun everything.
    code = {d for d in listed if d.parent.parts[:1] in {("pipeline",), ("stages",)} and d != CLI}
    missing = {f for f in needed if f not in code and not code.intersection(f.parents)}
    unused = {d for d in code if d not in needed and not any(d in f.parents for f in needed)}
    return [f"{f.as_posix()} is missing" for f in sorted(missing)] + [
        f"{f.as_posix()} is not imported" for f in sorted(unused)
    ]


def dvc_deps() -> dict[str, list[str]]:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_bytes())["stages"]
    return {name: stage.get("do", stage)["deps"] for name, stage in stages.items()}


def test_dvc_stages_are_known():
    assert set(dvc_deps()) == set(STAGE_FILES), "change STAGE_FILES in this test, too"


@pytest.mark.parametrize("stage", STAGE_FILES)
def test_stage_depends_on_the_code_it_imports(stage: str):
    problems = wrong_deps(ROOT, Path(f"stages/{STAGE_FILES[stage]}.py"), dvc_deps()[stage])
    assert not problems, f"deps of the stage {stage} in dvc.yaml"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A project whose stage imports a, b (by way of a, in a function) and store/c."""
    sources = {
        "stages/__init__.py": "",
        "stages/cli.py": "import pipeline.project.errors",
        "stages/work.py": "from pipeline import a\nfrom pipeline.store.c import x",
        "pipeline/__init__.py": "",
        "pipeline/project/errors.py": "import json",
        "pipeline/a.py": "def f():\n    import pipeline.b",
        "pipeline/b.py": "import pipeline.a",
        "pipeline/store/__init__.py": "",
        "pipeline/store/c.py": "import os",
        "pipeline/store/d.py": "import os",
        "pipeline/ingest/digits.py": "import os",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


NEEDED = ["stages/work.py", "pipeline/a.py", "pipeline/b.py", "pipeline/project/errors.py"]


@pytest.mark.parametrize(
    ("deps", "problems"),
    [
        ([*NEEDED, "pipeline/store/c.py", "configs", "out/data"], []),
        ([*NEEDED, "pipeline/store"], []),
        ([*NEEDED, "pipeline/store", "stages/cli.py"], []),
        (NEEDED, ["pipeline/store/c.py is missing"]),
        (["pipeline", *NEEDED], ["pipeline/store/c.py is missing"]),
        ([*NEEDED[:2], "pipeline/store", NEEDED[3]], ["pipeline/b.py is missing"]),
        (
            [*NEEDED, "pipeline/store", "pipeline/store/d.py"],
            ["pipeline/store/d.py is not imported"],
        ),
        ([*NEEDED, "pipeline/store", "pipeline/gone.py"], ["pipeline/gone.py is not imported"]),
        (
            [*NEEDED, "pipeline/store", "${data.source}"],
            ["pipeline/ingest/digits.py is not imported"],
        ),
    ],
)
def test_wrong_deps_are_found(tree: Path, deps: list[str], problems: list[str]):
    assert wrong_deps(tree, Path("stages/work.py"), deps) == problems


@pytest.mark.parametrize("file", source_files(ROOT), ids=str)
def test_file_is_small_and_named_for_what_it_does(file: Path):
    text = (ROOT / file).read_text()
    assert len(text.splitlines()) < 400, "split the file"
    assert file.name != "utils.py"
    if file.name == "__init__.py":
        assert not text


def importers(*packages: str) -> set[str]:
    """The modules that import one of `packages`."""
    return {
        module_name(file)
        for file in source_files(ROOT)
        if imported_packages(ROOT / file) & set(packages)
    }


def test_mmdet_stays_at_its_boundary():
    assert importers("mmdet", "mmcv", "mmengine") <= MMDET_MODULES


def test_zarr_and_dask_stay_in_the_store():
    outside = {
        name
        for name in importers("zarr", "dask", "distributed")
        if name != "pipeline.teacher_pass.cluster" and not name.startswith("pipeline.store.")
    }
    assert not outside


def test_click_stays_in_the_stages():
    assert all(name.startswith("stages.") for name in importers("click"))


def layer(file: Path) -> int:
    """The index in `LAYERS` of the layer that `file` belongs to."""
    name = "stages" if file.parts[0] == "stages" else module_name(file).removeprefix("pipeline.")
    layers = [i for i, names in enumerate(LAYERS) if name in names]
    assert len(layers) == 1, f"{file} is in {len(layers)} layers: put it in one of LAYERS"
    return layers[0]


def test_imports_go_downward():
    upward = [
        f"{file} imports {target}"
        for file, targets in import_graph(ROOT).items()
        for target in targets
        if layer(file) > layer(target)
    ]
    assert not upward


def test_labels_carry_the_digest_of_all_code_that_decides_them():
    """What labelling imports decides labels, but for what only reads, names or stores."""
    others = {
        "checkpoint.py",
        "coco.py",
        "dataset.py",
        "detector.py",
        "errors.py",
        "mmcv_ops.py",
        "params.py",
        "paths.py",
        "store/fingerprint.py",
        "store/schema.py",
    }
    reached = closure(ROOT, [Path("pipeline/teacher_pass/labelling.py")])
    found = {file.relative_to("pipeline").as_posix() for file in reached}
    assert found == others | set(DECIDING_CODE)


def test_every_module_has_a_layer():
    for file in import_graph(ROOT):
        layer(file)


def test_stages_do_not_import_each_other():
    for file, targets in import_graph(ROOT).items():
        if file.parts[0] == "stages":
            assert all(target.parts[0] != "stages" for target in targets), file
