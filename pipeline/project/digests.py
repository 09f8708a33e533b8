"""Digests of nested plain values, and how two of them differ."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any


def digest(values: Any) -> str:
    """sha256 of nested plain values as JSON with sorted keys: equal on every machine."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts with their dotted names; lists are leaves."""
    if isinstance(value, dict):
        for key in sorted(value):
            yield from flatten(value[key], f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def differences(expected: Any, found: Any) -> list[str]:
    """One line for each leaf in which two nested dicts differ, as `lr: expected 1, found 2`."""
    # JSON turns tuples into lists; compare what a file would hold.
    ours = dict(flatten(json.loads(json.dumps(expected))))
    theirs = dict(flatten(json.loads(json.dumps(found))))
    absent = "nothing"
    return [
        f"{name}: expected {ours.get(name, absent)}, found {theirs.get(name, absent)}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name, absent) != theirs.get(name, absent)
    ]
