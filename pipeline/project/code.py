"""What code a run depends on: the modules of this library that its own imports.

A digest over them says whether a run that was interrupted would go on with the same code. Comments
and docstrings do not count.
"""

import ast
import hashlib
import io
import tokenize
from collections.abc import Iterable
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
LIBRARY = "pipeline"


def code_digest(*modules: str) -> str:
    """The first 16 digits of the sha256 of modules and of all that they import from this library.

    Args:
        modules: by full name, as `pipeline.students.train`.
    """
    found = hashlib.sha256()
    for file in sorted(imported_files([_file(ROOT, module) for module in modules], ROOT)):
        state = (ROOT / file).stat()
        code = _bare_code(ROOT / file, (state.st_mtime_ns, state.st_size))
        found.update(f"{file}\n{code}\n".encode())
    return found.hexdigest()[:16]


def imported_files(starts: Iterable[Path], root: Path) -> set[Path]:
    """These files and all files of the library that they import, directly or not.

    Args:
        starts: relative to `root`.
        root: the folder that the library lies in.
    """
    found: set[Path] = set()
    todo = list(starts)
    while todo:
        file = todo.pop()
        if file not in found:
            found.add(file)
            names = (name for name in imported_names(root / file) if name.startswith(f"{LIBRARY}."))
            todo += [one for name in names if (root / (one := _file(root, name))).is_file()]
    return found


@cache
def imported_names(file: Path) -> frozenset[str]:
    """What a file imports, inside functions too: `from a import b` gives `a` and `a.b`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_bytes(), str(file))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = None if node.level else node.module
            assert module, f"{file}:{node.lineno}: write the module's full name"
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return frozenset(names)


def _file(root: Path, module: str) -> Path:
    """The file of a module, relative to the root; that of a package is its `__init__.py`."""
    file = Path(*module.split("."))
    return file / "__init__.py" if (root / file).is_dir() else file.with_suffix(".py")


@cache
def _bare_code(file: Path, version: tuple[int, int]) -> str:
    """A module without comments, docstrings and empty lines; the same for any Python.

    Args:
        file: of the module.
        version: time of its last change and its size; a process reads each version once.
    """
    text = file.read_text()
    lines = text.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (
            ast.get_docstring(node)
        ):
            docstring = node.body[0]
            for row in range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1):
                lines[row - 1] = ""
    return "\n".join(line.rstrip() for line in lines if line.strip())
