"""Reading by type hints: one value of each kind that is read, and every kind of value that is refused."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest

from fp8pad.errors import GoldenError
from fp8pad.reading import PositiveSize, Reader, Size

READER = Reader(GoldenError)


@dataclass(frozen=True)
class Inner:
    """The values of a mapping."""

    pair: tuple[PositiveSize, float]


@dataclass(frozen=True)
class Outer:
    """A class with a field of each kind."""

    name: str
    flag: bool
    choice: Literal["auto", 1]
    sizes: tuple[Size, ...]
    inner: Mapping[str, Inner]
    maybe: Inner | None
    anything: Any
    has_default: int = 7
    may_be_left_out: tuple[str, ...] = ()


DOCUMENT: dict[str, Any] = {
    "name": "n",
    "flag": True,
    "choice": 1,
    "sizes": [0, 2**63 - 1],
    "inner": {"a": {"pair": [1, 2]}},
    "maybe": None,
    "anything": [None, {}],
    "has_default": 8,
}
OUTER = Outer("n", True, 1, (0, 2**63 - 1), {"a": Inner((1, 2.0))}, None, [None, {}], 8)


def test_each_kind_is_read() -> None:
    """Unknown keys are ignored, and null counts as missing where a field is optional."""
    assert READER.read(Outer, DOCUMENT | {"later": 1}, "x") == OUTER
    assert READER.read(Outer, {key: DOCUMENT[key] for key in DOCUMENT if key != "maybe"}, "x") == OUTER
    assert READER.read(Outer, DOCUMENT | {"may_be_left_out": ["a"]}, "x") == replace(OUTER, may_be_left_out=("a",))
    assert READER.read(Outer, DOCUMENT | {"maybe": {"pair": [1, 2]}}, "x").maybe == Inner((1, 2.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "x: name: expected str, got null"),
        ({"flag": 1}, "x: flag: expected bool, got 1"),
        ({"choice": True}, "x: choice: expected one of ['auto', 1], got true"),
        ({"choice": ["auto"]}, "x: choice: expected one of ['auto', 1], got [\"auto\"]"),
        ({"sizes": None}, "x: sizes: expected a list, got null"),
        ({"sizes": [3, -1]}, "x: sizes[1]: expected a size, got -1"),
        ({"sizes": [2**63]}, "x: sizes[0]: expected a size, got 9223372036854775808"),
        ({"sizes": [True]}, "x: sizes[0]: expected int, got true"),
        ({"inner": []}, "x: inner: expected an object, got []"),
        ({"inner": {"a": 3}}, "x: inner: a: expected an object, got 3"),
        ({"inner": {"a": {"pair": [1]}}}, "x: inner: a: pair: expected a list of 2, got [1]"),
        ({"inner": {"a": {"pair": [0, 1.5]}}}, "x: inner: a: pair[0]: expected a positive size, got 0"),
        ({"inner": {"a": {"pair": [1, float("inf")]}}}, "x: inner: a: pair[1]: expected a finite number, got Infinity"),
        ({"maybe": {"pair": [1, 10**400]}}, f"x: maybe: pair[1]: expected a finite number, got 1{'0' * 56}..."),
        ({"may_be_left_out": None}, "x: may_be_left_out: expected a list, got null"),
        ({"has_default": None}, "x: has_default: expected int, got null"),
    ],
)
def test_what_is_of_another_type_is_refused(change: dict[str, Any], message: str) -> None:
    """One line names the place, what was expected and what was found."""
    with pytest.raises(GoldenError) as caught:
        READER.read(Outer, DOCUMENT | change, "x")
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["name", "flag", "choice", "sizes", "inner", "has_default"])
def test_what_is_missing_is_refused(name: str) -> None:
    """Even a field with a default, unless it is empty or the file is written by hand."""
    document = {key: DOCUMENT[key] for key in DOCUMENT if key != name}
    with pytest.raises(GoldenError, match=rf"^x: {name}: expected .*, got null$"):
        READER.read(Outer, document, "x")
    if name == "has_default":
        assert Reader(GoldenError, is_by_hand=True).read(Outer, document, "x") == replace(OUTER, has_default=7)


@pytest.mark.parametrize(
    ("text", "cause"), [("{", "Expecting property name"), ("[" * 101 + "]" * 101, "at most 100 levels")]
)
def test_what_is_no_json_is_an_error_of_the_file(text: str, cause: str) -> None:
    """Whether it is not JSON at all, or refused for its size or depth."""
    with pytest.raises(GoldenError, match=f"^x: not JSON: .*{cause}"):
        READER.parse_json(text, "x")
