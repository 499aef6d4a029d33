"""Edits of JSON documents, chosen by a fuzzer's bytes: what an attacker may make of real files."""

import copy
import json
from typing import Any, Protocol


class Choices(Protocol):
    """A source of choices: atheris' FuzzedDataProvider, or a stand-in."""

    def ConsumeIntInRange(self, low: int, high: int) -> int:  # noqa: N802
        """Return a number from `low` to `high`."""

    def ConsumeUnicode(self, count: int) -> str:  # noqa: N802
        """Return a text of at most `count` characters."""

    def ConsumeBytes(self, count: int) -> bytes:  # noqa: N802
        """Return at most `count` bytes."""


NUMBERS: list[Any] = [
    0,
    1,
    -1,
    2,
    7,
    16,
    128,
    255,
    2**31,
    2**50 + 1,
    2**53,
    2**63 - 1,
    2**63,
    2**64,
    10**400,
    -(10**30),
]
NUMBERS += [0.0, 1.5, -0.0, 1e308, 1e-300, float("nan"), float("inf")]
TEXTS = ["", "0", "config.json", "../config.json", "/etc/passwd", "\0", "\x1b[31m", "\ud800", "é" * 300, "x" * 5000]
TEXTS += [
    ".".join(["a"] * 3000),
    "model.layers." + "9" * 5000,
    "(a+)+$",
    "re:(a+)+$",
    "re:(",
    "fp8",
    "fp8pad",
    "modelopt",
]
TEXTS += ["F8_E4M3", "F8_E8M0", "BF16", "I64", "U8"]
LISTS: list[Any] = [
    [],
    [[]],
    [0],
    [1, 1],
    [0, 2**50 + 1],
    [2**50 + 1, 0],
    [128, 128],
    [128, 0],
    [10**400, 128],
    [-1, -1],
]
LISTS += [[1.5, 2], ["re:.*"], ["re:(.*)*$"]]
OBJECTS: list[Any] = [{}, {"": ""}, {"quant_method": "fp8pad"}, {"a": {"b": {"c": []}}}]
VALUES: list[Any] = [None, True, False, *NUMBERS, *TEXTS, *LISTS, *OBJECTS]


def edited(choices: Choices, document: Any, max_edits: int = 4) -> Any:
    """Return a copy of a document with a few edits."""
    document = copy.deepcopy(document)
    for _ in range(choices.ConsumeIntInRange(0, max_edits)):
        places = list(_places(document))
        if not places:
            return _value(choices, document)
        holder, key = places[choices.ConsumeIntInRange(0, len(places) - 1)]
        match choices.ConsumeIntInRange(0, 6):
            case 0 | 1 | 2:
                holder[key] = _value(choices, holder[key])
            case 3:
                del holder[key]
            case 4 if isinstance(holder, dict):
                holder[_name(choices, key)] = holder[key]
            case 5:
                other, other_key = places[choices.ConsumeIntInRange(0, len(places) - 1)]
                holder[key] = copy.deepcopy(other[other_key])
            case _:
                holder[key] = [copy.deepcopy(holder[key])] * choices.ConsumeIntInRange(0, 3)
    return document


def spelt(choices: Choices, document: Any) -> bytes:
    """Return a document as JSON text in one of several styles, sometimes cut or with foreign bytes in it."""
    style = choices.ConsumeIntInRange(0, 15)
    indents: dict[int, int | str] = {1: 2, 2: "\t", 3: 500}
    text = json.dumps(document, indent=indents.get(style), ensure_ascii=style != 4).encode(errors="surrogatepass")
    if style == 5 and text:
        at = choices.ConsumeIntInRange(0, len(text))
        return text[:at] + choices.ConsumeBytes(8) + text[at:]
    if style == 6 and text:
        return text[: choices.ConsumeIntInRange(0, len(text))]
    if style == 7:
        return b"[" * 5000 + text
    return b"\xef\xbb\xbf" + text if style == 8 else text


def _value(choices: Choices, old: Any) -> Any:
    kind = choices.ConsumeIntInRange(0, 9)
    if isinstance(old, int) and kind < 5:
        return old + [-1, 1, 16, -old, old][kind]
    if isinstance(old, str) and kind < 3:
        return old + choices.ConsumeUnicode(6)
    if kind == 5:
        return choices.ConsumeUnicode(12)
    return copy.deepcopy(VALUES[choices.ConsumeIntInRange(0, len(VALUES) - 1)])


def _name(choices: Choices, key: Any) -> str:
    match choices.ConsumeIntInRange(0, 3):
        case 0:
            return choices.ConsumeUnicode(10)
        case 1:
            return f"{key}{choices.ConsumeUnicode(3)}"
        case _:
            value = VALUES[choices.ConsumeIntInRange(0, len(VALUES) - 1)]
            return value if isinstance(value, str) else str(key)


def _places(document: Any) -> Any:
    pending = [document]
    while pending:
        holder = pending.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            yield holder, key
            pending.append(holder[key])
