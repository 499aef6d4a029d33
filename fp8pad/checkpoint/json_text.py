"""JSON files of a checkpoint as text, rewritten with their original formatting."""

import json
import re
from collections.abc import Mapping
from io import StringIO
from typing import Any, TypeAlias

from fp8pad.checkpoint.folder import INDEX_FILE, max_text_bytes
from fp8pad.errors import ConfigError, shown
from fp8pad.reading import Reader
from fp8pad.record import Json

Difference: TypeAlias = tuple[str, str, str]

MAX_INDENT = 16  # characters; a longer one, copied to each line, would multiply the size of the text


def parse_object(file: str, text: str) -> Json:
    """Parse `text` as a JSON object; `ConfigError` names it as `file` if it is not one."""
    document = Reader(ConfigError).parse_json(text, file, shares=True)
    if not isinstance(document, dict):
        raise ConfigError(f"{file}: expected a JSON object, got {type(document).__name__}")
    return document


def dumps_like(original: str, document: Mapping[str, Any], file: str) -> str:
    """Return `document` as JSON text with the indentation, separators, escapes and ending of the text `original`.

    `ConfigError` names it as `file` if it has more characters than bytes are read again, as indented lists can have.
    """
    indent = re.match(rf"\s*\{{\s*?\n([ \t]{{1,{MAX_INDENT}}})(?![ \t])", original)
    colon = re.match(r'^\s*\{\s*"(?:[^"\\]++|\\.)*+"(\s{0,16}:\s{0,16})(?!\s)', original)
    separator = colon[1] if colon else ": "
    encoder = json.JSONEncoder(
        indent=indent[1] if indent else None,
        separators=("," if indent or separator == ":" else ", ", separator),
        ensure_ascii=original.isascii(),
    )
    # Without indentation, C code does it. Else it is done in parts: a list of millions takes ten times as much memory.
    parts = encoder.iterencode(document) if indent else (encoder.encode(document),)
    text, limit = StringIO(), max_text_bytes(file)
    for part in parts:
        text.write(part)
        if text.tell() > limit:
            raise ConfigError(f"{file}: would have more than the {limit} bytes that fp8pad reads")
    text.write(original[len(original.rstrip()) :])
    return text.getvalue()


def index_text(original: str, total_bytes: int) -> str:
    """Return the index `original` with `total_bytes` as its `total_size`; everything else stays the same."""
    if place := _place_of_total(original):
        return f"{original[: place.start(1)]}{total_bytes}{original[place.end(1) :]}"
    document = json.loads(original)
    metadata = document.get("metadata")
    return dumps_like(
        original,
        {**document, "metadata": {**(metadata if isinstance(metadata, dict) else {}), "total_size": total_bytes}},
        INDEX_FILE,
    )


def states_total(text: str, total_bytes: int) -> bool:
    """Return whether an index has this `total_size`, in the only place where `index_text` would change it."""
    place = _place_of_total(text)
    return place is not None and place[1] == str(total_bytes)


def _place_of_total(text: str) -> re.Match[str] | None:
    """Return where `total_size` is in the text of an index, if exactly one number can be it."""
    places = list(re.finditer(r'"metadata"\s*:\s*\{[^{}]*"total_size"\s*:\s*(\d+)(?=\s*[,}])', text))
    return places[0] if len(places) == 1 else None


def first_difference(expected: str, found: str) -> Difference | None:
    """Return the key path at which two JSON texts first differ, what is expected there and what is found.

    If only their formatting differs, the place is a line; if they are equal, the result is None.
    """
    if expected == found:
        return None
    try:
        difference = _differing(json.loads(expected), json.loads(found), "")
    except (ValueError, RecursionError) as error:
        return "text", "JSON", str(error)
    lines = zip(expected.split("\n"), found.split("\n"), strict=False)
    line = next((number for number, (one, other) in enumerate(lines, 1) if one != other), 0)
    return difference or (f"line {line}", "the same spelling", "another")


def _differing(expected: Any, found: Any, path: str) -> Difference | None:
    if isinstance(expected, dict) and isinstance(found, dict):
        if list(expected) == list(found):
            inner = (_differing(expected[key], found[key], f"{path}.{key}".lstrip(".")) for key in expected)
            return next(filter(None, inner), None)
        for key in (*expected, *found):
            if key not in found or key not in expected:
                return (
                    f"{path}.{key}".lstrip("."),
                    "a key" if key in expected else "no key",
                    shown(found[key]) if key in found else "no key",
                )
        return path or "keys", "the same order of keys", shown(list(found))
    return None if expected == found else (path or "value", shown(expected), shown(found))
