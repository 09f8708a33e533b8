"""The digest of the code that a run depends on: which files, and what of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline.project.code
from pipeline.project.code import code_digest, imported_files
from tests.conftest import ROOT


def write_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.fixture
def digest_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The digest of `pipeline.a` in a library of these files, each time in a folder of its own."""
    count = 0

    def digest(**modules: str) -> str:
        nonlocal count
        count += 1
        files = {f"pipeline/{name}.py": text for name, text in modules.items()}
        monkeypatch.setattr(pipeline.project.code, "ROOT", write_tree(tmp_path / str(count), files))
        return code_digest("pipeline.a")

    return digest


BARE = "def f(x):\n    return x + 1"
FULL = '''"""What
it is for."""


def f(x):  # why
    """Add one."""
    # more
    return x + 1
'''
CLASS = "class C:\n    a = 1\n"


@pytest.mark.parametrize(
    ("text", "other", "same"),
    [
        pytest.param(FULL, BARE, True, id="comments and docstrings"),
        pytest.param(FULL, FULL.replace("Add one", "Count on"), True, id="another docstring"),
        pytest.param(FULL, FULL.replace("# why", "# because"), True, id="another comment"),
        pytest.param(FULL, FULL.replace("\n\n\n", "\n"), True, id="empty lines"),
        pytest.param(FULL, FULL.replace("x + 1", "x + 2"), False, id="another number"),
        pytest.param(FULL, BARE.replace("x + 1", "x + 2"), False, id="another number, bare"),
        pytest.param(FULL, FULL.replace("f(x)", "g(x)"), False, id="another name"),
        pytest.param(CLASS, 'class C:\n    """Why."""\n\n    a = 1\n', True, id="of a class"),
        pytest.param(CLASS, "class C:\n    a = 2\n", False, id="a class attribute"),
        pytest.param('a = "#"  # a hash', 'a = "#"', True, id="a comment after a hash in a text"),
        pytest.param('a = "# b"', 'a = "# c"', False, id="a hash in a text is no comment"),
        pytest.param('a = """\n# b\n"""', 'a = """\n# c\n"""', False, id="nor in a long one"),
        pytest.param('f("""b""")', 'f("""c""")', False, id="a long text that is no docstring"),
        pytest.param("if a:\n    b()\nc()", "if a:\n    b()\n    c()", False, id="indentation"),
    ],
)
def test_comments_and_docstrings_are_no_code(digest_of, text: str, other: str, same: bool) -> None:
    assert (digest_of(a=text) == digest_of(a=other)) == same


def test_what_a_module_imports_counts_and_nothing_else(digest_of) -> None:
    importing = "import pipeline.b\n"
    first = digest_of(a=importing, b="x = 1\n", c="x = 1\n")
    assert digest_of(a=importing, b="x = 1  # one\n", c="x = 2\n") == first
    assert digest_of(a=importing, b="x = 1\n") == first
    assert digest_of(a=importing, b="x = 2\n", c="x = 1\n") != first


def test_a_digest_is_of_all_modules_in_any_order() -> None:
    one, other = "pipeline.project.digests", "pipeline.project.text"
    assert code_digest(one, other) == code_digest(other, one) != code_digest(one)


def test_a_digest_is_the_same_in_every_process() -> None:
    name = "pipeline.store.reader"
    program = f"from pipeline.project.code import code_digest; print(code_digest({name!r}))"
    for seed in "123":  # of the order of sets
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == code_digest(name)


TREE = {
    "pipeline/__init__.py": "",
    "pipeline/start.py": """
import json
from pipeline.plain import anything

def f():
    from pipeline.inside_a_function import g
    class C:
        def method(self):
            import pipeline.inside_a_method as m
""",
    "pipeline/plain.py": "from pipeline.sub import module\n",
    "pipeline/sub/__init__.py": "",
    "pipeline/sub/module.py": "from pipeline import by_its_package\nimport pipeline.sub.other\n",
    "pipeline/sub/other.py": "import pipeline.start  # a circle\n",
    "pipeline/sub/not_imported.py": "import pipeline.alone\n",
    "pipeline/by_its_package.py": "import pipeline.is_no_file, elsewhere.alone, pipelines.alone\n",
    "pipeline/inside_a_function.py": "",
    "pipeline/inside_a_method.py": "",
    "pipeline/alone.py": "",
    "elsewhere/alone.py": "import pipeline.alone\n",
    "pipelines/alone.py": "",
}


@pytest.mark.parametrize(
    ("starts", "expected"),
    [
        pytest.param(
            ["pipeline/start.py"],
            {
                *("start", "plain", "sub/__init__", "sub/module", "sub/other"),
                *("by_its_package", "inside_a_function", "inside_a_method"),
            },
            id="transitively, and inside functions",
        ),
        pytest.param(["pipeline/alone.py"], {"alone"}, id="nothing"),
        pytest.param(
            ["pipeline/alone.py", "pipeline/inside_a_method.py"],
            {"alone", "inside_a_method"},
            id="two starts",
        ),
        pytest.param([], set(), id="no start"),
    ],
)
def test_imported_files(tmp_path: Path, starts: list[str], expected: set[str]) -> None:
    root = write_tree(tmp_path, TREE)
    found = imported_files(map(Path, starts), root)
    assert found == {Path(f"pipeline/{name}.py") for name in expected}


@pytest.mark.parametrize("text", ["from . import other", "from .sub import module"])
def test_a_relative_import_is_refused(tmp_path: Path, text: str) -> None:
    root = write_tree(tmp_path, TREE | {"pipeline/start.py": text})
    with pytest.raises(AssertionError, match="start.py:1: write the module's full name"):
        imported_files([Path("pipeline/start.py")], root)


def test_what_python_imports_is_among_them() -> None:
    start = "pipeline.store.reader"
    program = f"import sys, {start}; print(*(n for n in sys.modules if n.startswith('pipeline.')))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = {Path(*name.split(".")).with_suffix(".py") for name in done.stdout.split()}
    files = {file for file in loaded if (ROOT / file).is_file()}  # packages are folders
    assert len(files) > 10
    assert files <= imported_files([Path(*start.split(".")).with_suffix(".py")], ROOT)
