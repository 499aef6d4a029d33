"""From JSON to frozen dataclasses, by their type hints, strictly."""

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from fp8pad.errors import Fp8padError, shown

T = TypeVar("T")

Size = Annotated[int, range(2**63), "a size"]
PositiveSize = Annotated[int, range(1, 2**63), "a positive size"]

MAX_NESTING = 100  # levels of objects and lists; recursion, which copies and writes them, stays far from its limit


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads one kind of file; what is malformed raises `error`, naming the place, what was expected and what found.

    In files that are written by hand, a key that is not known is an error, and a field with a default may be absent.
    """

    error: type[Fp8padError]
    is_by_hand: bool = False

    def parse_json(self, text: str, where: str) -> Any:
        """Return what JSON text says.

        What could not be written again is refused, too: what nests deeper than `MAX_NESTING`, or has an escape of half
        a surrogate pair, which no UTF-8 stands for.
        """
        try:
            return _parsed(text)
        except ValueError as error:
            raise self.error(f"{where}: not JSON: {error}") from error

    def read_versioned(self, kind: type[T], value: Any, version: int, where: str) -> T:
        """Read `kind` from an object whose `format_version` is the one that is known."""
        found = self._expect(isinstance(value, dict), "an object", value, where).get("format_version")
        self._expect(type(found) is int and found == version, str(version), found, f"{where}: format_version")
        return self.read(kind, value, where)

    def read(self, kind: type[T], value: Any, where: str) -> T:
        """Turn parsed JSON into `kind`, however nested: a dataclass, a mapping from strings, a tuple, `X | None`, a
        `Literal`, an `int` annotated with its range and a name for it, another scalar, or `Any`.

        Every field must be there and of its type, unless it may be None or is `()` by default. A bool is no int, and
        floats must be finite. Other keys are ignored, so that later versions may add some. A `ValueError` of the
        dataclass itself is an error of the file.
        """
        return cast("T", self._read(kind, value, where))

    def _read(self, kind: Any, value: Any, where: str) -> Any:
        origin, arguments = get_origin(kind), get_args(kind)
        if kind is Any:
            return value
        if NoneType in arguments:
            return None if value is None else self._read(arguments[0], value, where)
        if is_dataclass(kind):
            return self._read_object(cast("type", kind), value, where)
        if origin is Mapping:
            document = self._expect(isinstance(value, dict), "an object", value, where)
            return {key: self._read(arguments[1], inner, f"{where}: {key}") for key, inner in document.items()}
        if origin is tuple:
            return self._read_tuple(arguments, value, where)
        return self._read_scalar(kind, value, where)

    def _read_object(self, kind: type, value: Any, where: str) -> object:
        document = self._expect(isinstance(value, dict), "an object", value, where)
        hints = _hints(kind)
        if self.is_by_hand and (unknown := sorted(document.keys() - hints.keys())):
            raise self.error(f"{where}: unknown entries: {', '.join(unknown)}")
        optional = {name for name, default in _defaults(kind).items() if self.is_by_hand or default == ()}
        known = {key: hint for key, hint in hints.items() if key in document or key not in optional}
        found = {key: self._read(hint, document.get(key), f"{where}: {key}") for key, hint in known.items()}
        try:
            return kind(**found)
        except ValueError as error:
            raise self.error(f"{where}: {error}") from error

    def _read_tuple(self, kinds: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(self._expect(isinstance(value, list), "a list", value, where))
        fits = isinstance(value, list) and len(value) == len(kinds)
        items = self._expect(fits, f"a list of {len(kinds)}", value, where)
        pairs = enumerate(zip(kinds, items, strict=True))
        return tuple(self._read(kind, item, f"{where}[{index}]") for index, (kind, item) in pairs)

    def _read_scalar(self, kind: Any, value: Any, where: str) -> Any:
        if get_origin(kind) is Annotated:
            base, allowed, name = get_args(kind)
            return self._expect(self._read(base, value, where) in allowed, name, value, where)
        if get_origin(kind) is Literal:
            choices = get_args(kind)
            same = any(type(value) is type(choice) and value == choice for choice in choices)
            return self._expect(same, f"one of {list(choices)}", value, where)
        if kind is float:
            return float(self._expect(_is_finite(value), "a finite number", value, where))
        return self._expect(type(value) is kind, kind.__name__, value, where)

    def _expect(self, holds: bool, wanted: str, value: Any, where: str) -> Any:
        if not holds:
            raise self.error(f"{where}: expected {wanted}, got {shown(value)}")
        return value


def _parsed(text: str) -> Any:
    try:
        document = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"expected at most {MAX_NESTING} levels") from error
    _check_nesting(document)
    if "\\u" in text:
        json.dumps(document, ensure_ascii=False).encode()
    return document


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


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


@cache
def _defaults(kind: type) -> dict[str, Any]:
    return {field.name: field.default for field in fields(kind) if field.default is not MISSING}


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and abs(cast("float", value)) <= sys.float_info.max
