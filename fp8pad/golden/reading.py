"""From JSON to frozen dataclasses and back, by their type hints, strictly."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from fp8pad.errors import GoldenError, shown

T = TypeVar("T")


def parse_json(text: str, where: str) -> Any:
    """Parse JSON; `GoldenError` naming `where` if it is not."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GoldenError(f"{where}: not JSON: {error}") from error


def read(kind: type[T], value: object, where: str) -> T:
    """Turn parsed JSON into `kind`: a dataclass, a `Literal`, a tuple, `X | None` or a scalar, however nested.

    Every field must be there and of its type; floats must be finite; other keys are ignored, so that later versions
    may add some. Raises `GoldenError` naming the place, what was expected and what was found.
    """
    if type(None) in get_args(kind):
        return cast("T", value if value is None else read(get_args(kind)[0], value, where))
    if is_dataclass(kind):
        return cast("T", _read_object(kind, value, where))
    if get_origin(kind) is tuple:
        return cast("T", _read_tuple(get_args(kind), value, where))
    if get_origin(kind) is Literal:
        return cast("T", _expect(value in get_args(kind), f"one of {list(get_args(kind))}", value, where))
    if kind is float:
        return cast("T", float(_expect(_is_finite(value), "a finite number", value, where)))
    return cast("T", _expect(type(value) is kind, kind.__name__, value, where))


def _read_object(kind: type, value: Any, where: str) -> object:
    document: Mapping[str, Any] = _expect(isinstance(value, dict), "an object", value, where)
    hints = get_type_hints(kind)
    return kind(**{key: read(hints[key], document.get(key), f"{where}: {key}") for key in _field_names(kind)})


def _read_tuple(kinds: tuple[Any, ...], value: Any, where: str) -> tuple[object, ...]:
    any_length = kinds[-1] is Ellipsis
    wanted = "a list" if any_length else f"a list of {len(kinds)}"
    items = _expect(isinstance(value, list) and (any_length or len(value) == len(kinds)), wanted, value, where)
    each = kinds[:1] * len(items) if any_length else kinds
    return tuple(read(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(each, items, strict=True)))


def _field_names(kind: Any) -> list[str]:
    return [field.name for field in fields(kind)]


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(cast("float", value))


def _expect(holds: bool, wanted: str, value: Any, where: str) -> Any:
    if not holds:
        raise GoldenError(f"{where}: expected {wanted}, got {shown(value)}")
    return value
