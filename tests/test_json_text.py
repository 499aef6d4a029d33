"""JSON files as text: written again in their original style, and compared key by key."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fp8pad.checkpoint.json_text import dumps_like, first_difference, index_text
from fp8pad.errors import ConfigError

DOCUMENT: dict[str, object] = {"b": [1, {"c": 1e-05}], "é": "ü", "a": {}, "n": None}


@pytest.mark.parametrize(
    ("style", "ending"),
    [
        ({"indent": 2}, "\n"),
        ({"indent": 4}, ""),
        ({"indent": "\t"}, "\n"),
        ({}, ""),
        ({"separators": (",", ":")}, "\n\n"),
        ({"indent": 1, "separators": (",", ":")}, "\n"),
        ({"indent": 2, "ensure_ascii": False}, "\n"),
        ({"ensure_ascii": False}, ""),
    ],
)
def test_documents_are_written_as_they_were_found(style: dict[str, Any], ending: str) -> None:
    """Indentation, separators, escapes and the end of the file are kept; keys are in the document's order."""
    original = json.dumps(DOCUMENT, **style) + ending
    assert dumps_like(original, DOCUMENT, "x") == original


def test_a_text_that_indentation_makes_too_long_is_not_made() -> None:
    """Each number in 90 nested lists would get a line of its own, with one and a half thousand characters."""
    nested: Any = list(range(100_000))
    for _ in range(90):
        nested = [nested]
    assert len(dumps_like('{"a": 1}', {"a": nested}, "x")) < 1_000_000
    with pytest.raises(ConfigError, match=r"^x: would have more than the 32000000 bytes that fp8pad reads"):
        dumps_like('{\n                "a": 1}', {"a": nested}, "x")


@pytest.mark.parametrize("part", ["a", '\\"'])
def test_a_long_first_key_costs_a_few_times_its_size(part: str) -> None:
    """A backtracking regular expression for the colon after it used 120 bytes per character."""
    original = f'{{"{part * 500_000}" : 1}}'
    tracemalloc.start()
    try:
        text = dumps_like(original, {"a": 1}, "x")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert text == '{"a" : 1}'
    assert peak < 8 * len(original)


SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=9)


@given(st.recursive(SCALARS, lambda x: st.dictionaries(st.text(max_size=9), x, max_size=4), max_leaves=12))
def test_whatever_the_style_the_document_is_the_same(value: Any) -> None:
    """Guessing the style wrongly never changes the content."""
    document = {"key": value}
    for original in ("{}", "{\n}", '{ "a" : 1 ,\r\n "b":2}\r\n', json.dumps(document, indent=3)):
        assert json.loads(dumps_like(original, document, "x")) == document


@pytest.mark.parametrize(
    ("original", "expected"),
    [
        ('{"metadata": {"total_size": 7}, "x": 1}', '{"metadata": {"total_size": 99}, "x": 1}'),
        ('{"metadata":\n{"total_size" : 0 ,"y":1e-6}}\n', '{"metadata":\n{"total_size" : 99 ,"y":1e-6}}\n'),
        ('{"x": 1, "metadata": {}}', '{"x": 1, "metadata": {"total_size": 99}}'),
        ('{"x": 1}', '{"x": 1, "metadata": {"total_size": 99}}'),
        ('{"x": 1, "metadata": null}', '{"x": 1, "metadata": {"total_size": 99}}'),
        ('{"metadata": {"total_size": 7.0}}', '{"metadata": {"total_size": 99}}'),
        ('{"metadata": {"total_size": "7"}}', '{"metadata": {"total_size": 99}}'),
    ],
)
def test_the_index_gets_its_true_size_and_nothing_else(original: str, expected: str) -> None:
    """Only an existing number changes; a missing or malformed one is inserted."""
    assert index_text(original, 99) == expected


def test_a_total_size_in_another_place_is_not_mistaken() -> None:
    """Any name is possible for a tensor."""
    original = '{"weight_map": {"total_size": "x"}, "total_size": 5, "metadata": {"total_size": 7}}'
    assert json.loads(index_text(original, 99)) == json.loads(original) | {"metadata": {"total_size": 99}}
    assert json.loads(index_text('{"total_size": 5, "metadata": {}}', 99))["metadata"] == {"total_size": 99}


@pytest.mark.parametrize(
    ("found", "difference"),
    [
        ('{"a": {"b": [1, 2]}, "c": 1}', None),
        ('{"a": {"b": [1, 3]}, "c": 1}', ("a.b", "[1, 2]", "[1, 3]")),
        ('{"a": {}, "c": 1}', ("a.b", "a key", "no key")),
        ('{"a": {"b": [1, 2]}, "c": 1, "d": 4}', ("d", "no key", "4")),
        ('{"c": 1, "a": {"b": [1, 2]}}', ("keys", "the same order of keys", '["c", "a"]')),
        ('{"a": {"b": [1, 2]}, "c":  1}', ("line 1", "the same spelling", "another")),
        ('{"a": {"b": [1, 2]}, "c": 1.0}', ("line 1", "the same spelling", "another")),
    ],
)
def test_texts_are_compared_down_to_the_key(found: str, difference: tuple[str, str, str] | None) -> None:
    """The first key at which they differ, or the line if only the formatting differs."""
    assert first_difference('{"a": {"b": [1, 2]}, "c": 1}', found) == difference


def test_what_is_no_json_differs_as_text() -> None:
    """The parser's message says where."""
    difference = first_difference("{}", "{")
    assert difference is not None
    assert difference[:2] == ("text", "JSON")


@pytest.mark.parametrize("original", ["{" + "\n" + " " * 10**6 + '"a": 1}', '{"a"' + " " * 10**6 + ":1}"])
def test_blanks_without_end_are_not_copied_to_every_line(original: str) -> None:
    """Otherwise a small file would become a very large one."""
    document = {str(number): number for number in range(300)}
    text = dumps_like(original, document, "x")
    assert json.loads(text) == document
    assert len(text) < 10_000
