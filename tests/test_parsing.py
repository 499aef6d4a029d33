"""JSON that may be malicious: what is refused, what is limited, and which objects are shared."""

import json

import pytest

from fp8pad.parsing import MAX_NESTING, MAX_SHARED, check_density, parsed


@pytest.mark.parametrize("text", ["", "{", '{"a": "\\ud800"}', "[" * 101 + "]" * 101, "[" * 100_000, "-1e999"])
def test_json_that_is_none_or_could_not_be_written_again_is_refused(text: str) -> None:
    """Nesting is limited, however deep it goes."""
    with pytest.raises(ValueError, match=r"."):
        parsed(text)
    assert parsed("[" * MAX_NESTING + "]" * MAX_NESTING)


@pytest.mark.parametrize("container", ["[],", "{},", '{"a":0},', "[[[]]],"])
def test_json_of_lists_and_objects_alone_is_refused(container: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They take far more memory than text: some are allowed, or more if the text is longer."""
    monkeypatch.setattr("fp8pad.parsing._FREE_CONTAINERS", 1000)
    some = 900 // (container.count("[") + container.count("{"))
    assert parsed(f"[{container * some}0]")
    with pytest.raises(ValueError, match=r"^expected fewer lists and objects than \d+ in \d+ characters"):
        parsed(f"[{container * some * 6}0]")
    with_text = container + '"a name as long as that of a tensor",'
    assert parsed(f"[{with_text * some * 6}0]")


def test_a_hundred_thousand_lists_need_no_other_text() -> None:
    """Beyond them, each needs 12 characters of the text: 240,000 are enough for 20,000 more."""
    check_density(["[]" * 100_000])
    check_density(["[]" * 120_000])
    with pytest.raises(ValueError, match="expected fewer lists and objects than 120001 in 240002 characters"):
        check_density(["[]" * 120_000, "{}"])


def test_objects_that_say_the_same_are_one_object() -> None:
    """A record may have a hundred thousand entries; objects that differ in type or order stay separate."""
    text = '{"a": {"x": [1], "y": {}}, "b": {"x": [1], "y": {}}, "c": {"x": [true], "y": {}}, "d": {"y": {}, "x": [1]}}'
    document = parsed(text, shares=True)
    assert document == json.loads(text)
    assert document["a"] is document["b"]
    assert document["a"]["y"] is document["c"]["y"]
    assert len({id(document[name]) for name in "abcd"}) == 3


@pytest.mark.parametrize("values", [[[1]], [{}], [1] * (MAX_SHARED + 1)])
def test_objects_of_lists_that_hold_much_are_not_compared(values: list[object]) -> None:
    """Otherwise each enclosing object would compare all of it once more."""
    document = parsed(json.dumps({"a": {"x": values}, "b": {"x": values}}), shares=True)
    assert document["a"] == document["b"]
    assert document["a"] is not document["b"]
