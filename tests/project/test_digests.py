"""Digests of plain values, and the lines that tell how two of them differ."""

import hashlib
from typing import Any

import pytest

from pipeline.project.digests import differences, digest, flatten
from tests.coco_builder import coco


def test_a_digest_is_that_of_the_content_alone() -> None:
    found = digest(coco())
    assert found == digest(dict(reversed(coco().items())))
    assert found != digest(coco(annotations=[]))
    assert len(found) == 64


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            {"b": [1, 2.5, None], "a": {"d": True, "c": "é"}},
            rb'{"a":{"c":"\u00e9","d":true},"b":[1,2.5,null]}',
        ),
        ((1, 2), b"[1,2]"),
        ("x", b'"x"'),
    ],
)
def test_a_digest_is_of_json_with_sorted_keys(values: Any, text: bytes) -> None:
    assert digest(values) == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({}, []),
        (3, [("", 3)]),
        ({"b": 1, "a": {"d": [1], "c": {"e": None}}}, [("a.c.e", None), ("a.d", [1]), ("b", 1)]),
        ({"a": {1: "x"}}, [("a.1", "x")]),
    ],
)
def test_flatten(value: Any, expected: list[tuple[str, Any]]) -> None:
    assert list(flatten(value)) == expected


@pytest.mark.parametrize(
    ("expected", "found", "lines"),
    [
        pytest.param({"lr": 1}, {"lr": 1}, [], id="equal"),
        pytest.param({"lr": 1}, {"lr": 2}, ["lr: expected 1, found 2"], id="another value"),
        pytest.param({"size": (1, 2)}, {"size": [1, 2]}, [], id="a tuple is a list"),
        pytest.param(
            {"b": 1, "a": {"c": 2}},
            {"a": {"d": 2}},
            [
                "a.c: expected 2, found nothing",
                "a.d: expected nothing, found 2",
                "b: expected 1, found nothing",
            ],
            id="on one side only",
        ),
        pytest.param(
            {"a": [1, 2]},
            {"a": {"b": 1}},
            ["a: expected [1, 2], found nothing", "a.b: expected nothing, found 1"],
            id="another kind",
        ),
        pytest.param({"a": None}, {"a": 0}, ["a: expected None, found 0"], id="none and 0"),
    ],
)
def test_differences(expected: Any, found: Any, lines: list[str]) -> None:
    assert differences(expected, found) == lines
