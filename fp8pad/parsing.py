"""Parse JSON that may be malicious: the size of its text bounds the memory it takes, and it can be written again."""

import json
from collections.abc import Callable, Iterable
from math import isfinite
from typing import Any

from fp8pad.errors import shown

MAX_SHARED = 16  # entries of an object that may be shared, or of a list in it; objects for one tensor have six
_CONTAINERS = frozenset({list, dict})
MAX_NESTING = 100  # levels of objects and lists, far below the recursion limit of what copies and writes them

# A list or object takes up to 90 bytes of memory, but only two characters of text: beyond the first 100,000, each needs
# some text of its own. In headers and records of the shortest names, each has 13 characters; in real ones, 28 or more.
_FREE_CONTAINERS, _CONTAINER_CHARACTERS = 100_000, 12


def parsed(text: str, shares: bool = False) -> Any:
    """Parse JSON text; with `shares`, small equal objects become one object.

    Raises `ValueError` for what `check_density` refuses, and for JSON that could not be written again: nesting deeper
    than `MAX_NESTING`, the escape of a lone surrogate, which UTF-8 cannot encode, or a number such as 1e999.
    """
    check_density((text,))
    try:
        document = json.loads(text, object_hook=_sharing() if shares else None, parse_float=_float)
    except RecursionError as error:
        raise ValueError(f"expected at most {MAX_NESTING} levels") from error
    _check_nesting(document)
    if "\\u" in text:
        json.dumps(document, ensure_ascii=False).encode()
    return document


def check_density(parts: Iterable[str]) -> None:
    """Raise `ValueError` if JSON has so many lists and objects that the size of its text does not bound its memory."""
    length = count = 0
    for part in parts:
        length += len(part)
        count += part.count("[") + part.count("{")
    if (count - _FREE_CONTAINERS) * _CONTAINER_CHARACTERS > length:
        raise ValueError(f"expected fewer lists and objects than {count} in {length} characters")


def _float(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"expected a number that a double can hold, got {shown(text)}")
    return value


def _sharing() -> Callable[[dict[str, Any]], Any]:
    """Return an object hook that replaces an object with an equal earlier one; inner objects were replaced before."""
    known: dict[object, dict[str, Any]] = {}

    def share(found: dict[str, Any]) -> dict[str, Any]:
        if len(found) > MAX_SHARED or any(_is_deep(value) for value in found.values() if type(value) is list):
            return found
        values = (id(value) if type(value) is dict else repr(value) for value in found.values())
        return known.setdefault((*found, *values), found)

    return share


def _is_deep(values: list[Any]) -> bool:
    """Return whether a list is long or has containers in it: each enclosing object would read all of it again."""
    return len(values) > MAX_SHARED or not _CONTAINERS.isdisjoint(map(type, values))


def _check_nesting(document: object) -> None:
    level = [document]
    for _ in range(MAX_NESTING):
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return
    raise ValueError(f"expected at most {MAX_NESTING} levels")


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
