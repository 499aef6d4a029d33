"""From JSON to frozen dataclasses, by their type hints, strictly."""

import json
import sys
from base64 import b64decode
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, cast, get_args, get_origin, get_type_hints

from fp8pad.errors import Fp8padError, shown

T = TypeVar("T")

Size = Annotated[int, range(2**63), "a size"]
PositiveSize = Annotated[int, range(1, 2**63), "a positive size"]

# Of a field that is in every file although it has a default: a file without it is damaged.
ALWAYS_WRITTEN = {"always written": True}

MAX_SHARED = 16  # entries of an object that may be shared: those for one tensor have six
MAX_NESTING = 100  # levels of objects and lists; recursion, which copies and writes them, stays far from its limit


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads one kind of file; what is malformed raises `error`, naming the place, what was expected and what found.

    In files that are written by hand, a key that is not known is an error.
    """

    error: type[Fp8padError]
    is_by_hand: bool = False

    def parse_json(self, text: str, where: str, shares: bool = False) -> Any:
        """Return what JSON text says; if it `shares`, small objects that say the same are one object.

        What could not be written again is refused, too: what nests deeper than `MAX_NESTING`, or has an escape of half
        a surrogate pair, which no UTF-8 stands for.
        """
        try:
            return _parsed(text, _sharing() if shares else None)
        except ValueError as error:
            raise self.error(f"{where}: not JSON: {error}") from error

    def read_versioned(self, kind: type[T], value: Any, version: int, where: str) -> T:
        """Read `kind` from an object whose `format_version` is the one that is known."""
        found = value.get("format_version") if isinstance(value, dict) else version
        if type(found) is not int or found != version:
            raise self.error(f"{where}: format_version: expected {version}, got {shown(found)}")
        return self.read(kind, value, where)

    def read(self, kind: type[T], value: Any, where: str) -> T:
        """Turn parsed JSON into `kind`, however nested: a dataclass, a mapping from strings, a tuple, `X | None`, a
        `Literal`, an `int` annotated with its range and a name for it, another scalar, bytes in base 64, or `Any`.

        Every field must be there and of its type, unless it may be None or has a default and is not `ALWAYS_WRITTEN`.
        A bool is no int, and floats must be finite. Other keys are ignored, so that later versions may add some. A
        `ValueError` of the dataclass itself is an error of the file.
        """
        try:
            return cast("T", _read_as(cast("Hashable", kind), self.is_by_hand)(value))
        except _MalformedError as error:
            raise self.error(f"{where}{error.place}: {error}") from None


def check_fields(found: object, error: type[Fp8padError]) -> None:
    """Raise `error` where a field of a dataclass is not what `Reader.read` would take for it; a tuple is a list."""
    for name, read, _ in _field_readers(cast("Any", type(found)), False):
        value = getattr(found, name)
        try:
            _at(name, read, list(value) if type(value) is tuple else value)
        except _MalformedError as malformed:
            raise error(f"{malformed.place.removeprefix(': ')}: {malformed}") from None


Read: TypeAlias = Callable[[Any], Any]


class _MalformedError(Exception):
    """What is wrong with a value; `path` leads to it, from the inside out."""

    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.path: list[str | int] = []

    @property
    def place(self) -> str:
        """Where in what is read the value is."""
        return "".join(f"[{part}]" if isinstance(part, int) else f": {part}" for part in reversed(self.path))


# A record holds a value for each of a hundred thousand tensors: what reads a type is worked out once.
@cache
def _read_as(kind: Any, is_by_hand: bool) -> Read:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda value: value
    if is_dataclass(kind):
        return _read_object(cast("type", kind), is_by_hand)
    if NoneType not in arguments and origin not in (Mapping, tuple):
        return _read_scalar(kind, is_by_hand)
    readers = [_read_as(argument, is_by_hand) for argument in arguments if argument not in (Ellipsis, NoneType)]
    if NoneType in arguments:
        return lambda value: None if value is None else readers[0](value)
    if origin is Mapping:
        return _read_mapping(readers[1])
    return _read_list(readers[0]) if Ellipsis in arguments else _read_tuple(readers)


def _read_object(kind: type, is_by_hand: bool) -> Read:
    def read(value: Any) -> object:
        document = _expect(isinstance(value, dict), "an object", value)
        readers = _field_readers(kind, is_by_hand)  # not before it is needed, since a type may hold its own kind
        if is_by_hand and (unknown := sorted(document.keys() - {name for name, _, _ in readers})):
            raise _MalformedError(f"unknown entries: {', '.join(unknown)}")
        found: dict[str, Any] = {}
        for name, inner, is_optional in readers:
            if name in document or not is_optional:
                found[name] = _at(name, inner, document.get(name))
        try:
            return kind(**found)
        except ValueError as error:
            raise _MalformedError(str(error)) from error

    return read


@cache
def _field_readers(kind: type, is_by_hand: bool) -> tuple[tuple[str, Read, bool], ...]:
    """Return each field of a dataclass, what reads it, and whether it may be absent."""
    hints = get_type_hints(kind, include_extras=True)
    return tuple(
        (
            found.name,
            _read_as(hints[found.name], is_by_hand),
            _is_optional(found),
        )
        for found in fields(cast("Any", kind))
    )


def _is_optional(found: "Field[Any]") -> bool:
    has_default = found.default is not MISSING or found.default_factory is not MISSING
    return has_default and not ALWAYS_WRITTEN.items() <= found.metadata.items()


def _read_mapping(inner: Read) -> Read:
    def read(value: Any) -> dict[str, Any]:
        document = _expect(isinstance(value, dict), "an object", value)
        found: dict[int, Any] = {}
        for key, item in document.items():
            if id(item) not in found:  # what is shared is read once
                found[id(item)] = _at(key, inner, item)
        return {key: found[id(item)] for key, item in document.items()}

    return read


def _read_list(inner: Read) -> Read:
    def read(value: Any) -> tuple[Any, ...]:
        items = _expect(isinstance(value, list), "a list", value)
        return tuple([_at(index, inner, item) for index, item in enumerate(items)])

    return read


def _read_tuple(readers: Sequence[Read]) -> Read:
    def read(value: Any) -> tuple[Any, ...]:
        fits = isinstance(value, list) and len(value) == len(readers)
        items = enumerate(zip(readers, _expect(fits, f"a list of {len(readers)}", value), strict=True))
        return tuple([_at(index, inner, item) for index, (inner, item) in items])

    return read


def _read_scalar(kind: Any, is_by_hand: bool) -> Read:
    if get_origin(kind) is Annotated:
        base, allowed, name = get_args(kind)
        inner = _read_as(base, is_by_hand)
        return lambda value: _expect(inner(value) in allowed, name, value)
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        wanted = f"one of {list(choices)}"
        return lambda value: _expect(any(type(value) is type(c) and value == c for c in choices), wanted, value)
    if kind is bytes:
        return lambda value: b64decode(_expect(isinstance(value, str), "a text", value))
    if kind is float:
        return lambda value: float(_expect(_is_finite(value), "a finite number", value))
    return lambda value: _expect(type(value) is kind, kind.__name__, value)


def _at(part: str | int, read: Read, value: Any) -> Any:
    try:
        return read(value)
    except _MalformedError as error:
        error.path.append(part)
        raise


def _expect(holds: bool, wanted: str, value: Any) -> Any:
    if not holds:
        raise _MalformedError(f"expected {wanted}, got {shown(value)}")
    return value


def _parsed(text: str, object_hook: Callable[[dict[str, Any]], Any] | None) -> Any:
    try:
        document = json.loads(text, object_hook=object_hook)
    except RecursionError as error:
        raise ValueError(f"expected at most {MAX_NESTING} levels") from error
    _check_nesting(document)
    if "\\u" in text:
        json.dumps(document, ensure_ascii=False).encode()
    return document


def _sharing() -> Callable[[dict[str, Any]], Any]:
    """Return what replaces an object by an equal one that was there before; inner ones have been replaced by then."""
    known: dict[object, dict[str, Any]] = {}

    def share(found: dict[str, Any]) -> dict[str, Any]:
        if len(found) > MAX_SHARED:
            return found
        values = (id(value) if type(value) is dict else repr(value) for value in found.values())
        return known.setdefault((*found, *values), found)

    return share


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


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and abs(cast("float", value)) <= sys.float_info.max
