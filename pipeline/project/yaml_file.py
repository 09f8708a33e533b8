"""Reads YAML in which every name is text and stands once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode

from pipeline.project.errors import UserError

MERGE = "tag:yaml.org,2002:merge"
TEXT = "tag:yaml.org,2002:str"


def read_yaml(file: Path) -> Any:
    """The content of a YAML file.

    Raises:
        UserError: it is no YAML, a name stands twice (YAML would silently take the last), or YAML
            makes a number or a truth value of a name.
        FileNotFoundError: it is not there.
    """
    content = file.read_bytes()
    try:
        loader = yaml.SafeLoader(content)
        try:
            root = loader.get_single_node()
            lines = [f"{file}: {line}" for line in _doubtful_names(root)] if root else []
            if lines:
                raise UserError("\n".join(lines))
            return loader.construct_document(root) if root else None
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} is not valid YAML: {error}") from None


def _doubtful_names(root: Node) -> list[str]:
    """A line for each name that stands twice or is no text."""
    lines = []
    for where, mapping in _mappings(root):
        first: dict[str, int] = {}
        for key, _ in mapping.value:
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode):
                lines.append(f"line {line}: a name in {where or 'the file'} must be text")
            elif key.tag == MERGE:
                continue
            elif key.tag != TEXT:
                made = yaml.SafeLoader("").construct_object(key)
                lines.append(
                    f"{where}{key.value} (line {line}): YAML makes {made!r} of this name; quote "
                    f"it: {key.value!r}"
                )
            elif key.value in first:
                lines.append(
                    f"{where}{key.value} stands twice (lines {first[key.value]} and {line}), and "
                    "YAML would take the last; remove or rename one"
                )
            else:
                first[key.value] = line
    return lines


def _mappings(
    node: Node, where: str = "", seen: set[int] | None = None
) -> Iterator[tuple[str, MappingNode]]:
    """All mappings of a document, each once, and the names that lead there."""
    seen = set() if seen is None else seen
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, MappingNode):
        yield where, node
        for key, value in node.value:
            name = key.value if isinstance(key, ScalarNode) else "?"
            yield from _mappings(value, f"{where}{name}.", seen)
    elif isinstance(node, SequenceNode):
        for number, value in enumerate(node.value):
            yield from _mappings(value, f"{where}{number}.", seen)
