"""Strict reading of JSON into frozen dataclasses, by their type hints."""

import sys
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from fp8pad.errors import Fp8padError, shown
from fp8pad.parsing import parsed

T = TypeVar("T")

Size = Annotated[int, range(2**63), "a size"]
PositiveSize = Annotated[int, range(1, 2**63), "a positive size"]


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads one kind of file; malformed input raises `error`, with the place, what was expected and what was found.

    In files that are written by hand, an unknown key is an error.
    """

    error: type[Fp8padError]
    is_by_hand: bool = False

    def parse_json(self, text: str, where: str, shares: bool = False) -> Any:
        """Parse JSON text; see `parsing.parsed`."""
        try:
            return parsed(text, shares)
        except ValueError as error:
            raise self.error(f"{where}: not JSON: {error}") from error

    def read_versioned(self, kind: type[T], value: Any, version: int, where: str) -> T:
        """Read `kind` from an object whose `format_version` must be `version`."""
        found = value.get("format_version") if isinstance(value, dict) else version
        if type(found) is not int or found != version:
            raise self.error(f"{where}: format_version: expected {version}, got {shown(found)}")
        return self.read(kind, value, where)

    def read(self, kind: type[T], value: Any, where: str) -> T:
        """Turn parsed JSON into `kind`, however nested: a dataclass, a mapping from strings, a tuple, `X | None`, a
        `Literal`, an `int` annotated with its range and a name for it, another scalar, or `Any`.

        Every field must be present and of its type, unless it may be None or has a default: in files that are not
        written by hand, an empty one, None or `()`, since nothing else is left out of them. A bool is not an int, and
        floats must be finite. Other keys are ignored in files that are not written by hand, so that later versions may
        add some. A `ValueError` raised by the dataclass itself is an error in the file.
        """
        try:
            return cast("T", _read(kind, value, self.is_by_hand))
        except _MalformedError as error:
            raise self.error(f"{where}{error.place}: {error}") from None


def check_fields(found: object, error: type[Fp8padError]) -> None:
    """Raise `error` if a field of a dataclass has a value that `Reader.read` would refuse; tuples count as lists."""
    for name, kind, _ in _fields_of(cast("Any", type(found)), False):
        value = getattr(found, name)
        try:
            _at(name, kind, list(value) if type(value) is tuple else value, False)
        except _MalformedError as malformed:
            raise error(f"{malformed.place.removeprefix(': ')}: {malformed}") from None


def to_json(found: Any) -> dict[str, Any]:
    """Return a dataclass, and those in it, as JSON objects; fields that are None are omitted."""
    return asdict(found, dict_factory=lambda items: {name: value for name, value in items if value is not None})


class _MalformedError(Exception):
    """What is wrong with a value; `path` leads to it, innermost part first."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.path: list[str | int] = []

    @property
    def place(self) -> str:
        """Where in the document the value is."""
        return "".join(f"[{part}]" if isinstance(part, int) else f": {part}" for part in reversed(self.path))


def _read(kind: Any, value: Any, is_by_hand: bool) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _read_object(cast("type", kind), value, is_by_hand)
    if kind is Any or (value is None and NoneType in arguments):
        return value
    if NoneType in arguments:
        return _read(arguments[0], value, is_by_hand)
    if origin is Mapping:
        return _read_mapping(arguments[1], value, is_by_hand)
    if origin is tuple:
        return _read_tuple(arguments, value, is_by_hand)
    return _read_scalar(kind, value)


def _read_scalar(kind: Any, value: Any) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        inner, allowed, name = arguments
        return _expect(_read_scalar(inner, value) in allowed, name, value)
    if origin is Literal:
        is_choice = any(type(value) is type(choice) and value == choice for choice in arguments)
        return _expect(is_choice, f"one of {list(arguments)}", value)
    if kind is float:
        return float(_expect(_is_finite(value), "a finite number", value))
    return _expect(type(value) is kind, kind.__name__, value)


def _read_object(kind: type, value: Any, is_by_hand: bool) -> object:
    document, known = _expect(isinstance(value, dict), "an object", value), _fields_of(kind, is_by_hand)
    if is_by_hand and (unknown := sorted(document.keys() - {name for name, _, _ in known})):
        raise _MalformedError(f"unknown entries: {', '.join(unknown)}")
    found = {
        name: _at(name, inner, document.get(name), is_by_hand)
        for name, inner, is_optional in known
        if name in document or not is_optional
    }
    try:
        return kind(**found)
    except ValueError as error:
        raise _MalformedError(str(error)) from error


@cache
def _fields_of(kind: type, is_by_hand: bool) -> tuple[tuple[str, Any, bool], ...]:
    """Return each field of a dataclass, its type, and whether it may be absent."""
    hints = get_type_hints(kind, include_extras=True)
    own = fields(cast("Any", kind))
    return tuple((found.name, hints[found.name], _is_optional(found, is_by_hand)) for found in own)


def _is_optional(found: "Field[Any]", is_by_hand: bool) -> bool:
    if is_by_hand:
        return found.default is not MISSING or found.default_factory is not MISSING
    return found.default is None or found.default == ()


def _read_mapping(inner: Any, value: Any, is_by_hand: bool) -> dict[str, Any]:
    document = _expect(isinstance(value, dict), "an object", value)
    found: dict[int, Any] = {}
    for key, item in document.items():
        if id(item) not in found:  # an object that is shared, by the entries of many tensors for example, is read once
            found[id(item)] = _at(key, inner, item, is_by_hand)
    return {key: found[id(item)] for key, item in document.items()}


def _read_tuple(kinds: tuple[Any, ...], value: Any, is_by_hand: bool) -> tuple[Any, ...]:
    if Ellipsis in kinds:
        items = _expect(isinstance(value, list), "a list", value)
        kinds = kinds[:1] * len(items)
    else:
        fits = isinstance(value, list) and len(value) == len(kinds)
        items = _expect(fits, f"a list of {len(kinds)}", value)
    pairs = enumerate(zip(kinds, items, strict=True))
    return tuple([_at(index, kind, item, is_by_hand) for index, (kind, item) in pairs])


def _at(part: str | int, kind: Any, value: Any, is_by_hand: bool) -> Any:
    try:
        return _read(kind, value, is_by_hand)
    except _MalformedError as error:
        error.path.append(part)
        raise


def _expect(holds: bool, wanted: str, value: Any) -> Any:
    if not holds:
        raise _MalformedError(f"expected {wanted}, got {shown(value)}")
    return value


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and abs(cast("float", value)) <= sys.float_info.max
