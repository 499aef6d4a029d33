"""Lay out a screen for a terminal of any width: columns if they fit, otherwise paragraphs; and print it."""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, TypeVar, assert_never

from rich.cells import cell_len, chop_cells
from rich.console import Console
from rich.text import Text

from fp8pad.errors import OutputError
from fp8pad.render.console import print_json, stdout_console
from fp8pad.render.screen import Block, Cell, Command, Paragraph, Row, Rows, Screen, Section, Subsection

_LONG_ENOUGH = re.compile(r"\S{10,}")
# Where a line is not broken: between a number and its unit. While wrapping, a private-use character stands there.
_UNIT = re.compile(r"(?<=\d) (?=(?:[kMGTPE]?B|bytes?)\b)|(?<=\bTP) (?=\d)")
_NO_BREAK = "\ue000"

NARROWEST = 22  # columns for the last cell of a row
GAP = 2
LINES = 1000  # printed at a time: a laid-out line of a hundred characters takes kilobytes


class Report(Protocol):
    """The result of a command."""

    def to_json(self) -> dict[str, Any]:
        """Return what the command prints with `--json`."""


Found = TypeVar("Found", bound=Report)


def show(
    found: Found, screen_of: Callable[[Found], Screen], as_json: bool, quiet: bool = False, done: str = ""
) -> None:
    """Print a command's result as JSON or, unless `quiet`, as text; an `OSError` has stdout as its file name.

    If there is something `done` all the same, `OutputError` says so instead.
    """
    try:
        if as_json:
            print_json(found.to_json())
        elif not quiet:
            write(screen_of(found), stdout_console())
        sys.stdout.flush()
    except OSError as error:
        if done:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is buffered is not written at exit
            raise OutputError(f"stdout: {error.strerror}; {done}") from error
        error.filename = "stdout"
        raise


def write(screen: Screen, console: Console) -> None:
    """Write a screen to stdout, in the width of `console`."""
    lines = (line for block in screen for line in _lines(console, block))
    while some := list(islice(lines, LINES)):
        with console.capture() as capture:
            console.print(Text("\n").join(some), soft_wrap=True)
        sys.stdout.write("".join(line.rstrip() + "\n" for line in capture.get().splitlines()))


def _lines(console: Console, block: Block) -> Iterable[Text]:
    match block:
        case Paragraph(text, indent, hang):
            return _paragraph(console, text, indent, hang)
        case Section(title):
            return [Text(), *_paragraph(console, Text(title, style="bold"), 0)]
        case Subsection(title):
            return _paragraph(console, title, GAP)
        case Command(command):
            return [Text(f"  {command}", style="bold green")]
        case Rows(rows, header):
            return _rows(console, rows, header) if rows else ()
    assert_never(block)


def _paragraph(console: Console, text: Cell, indent: int, hang: int = 0) -> Iterator[Text]:
    first, *others = _wrapped(console, text, console.width - indent - hang)
    yield from _indented([first], indent)
    yield from _indented(others, indent + hang)


def _rows(console: Console, rows: Sequence[Row], header: Sequence[str]) -> Iterator[Text]:
    columns = zip(*rows, *([header] if header else []), strict=True)
    widths = [max(map(_length, column)) for column in columns]
    room = console.width - GAP - sum(width + GAP for width in widths[:-1])
    if room < min(NARROWEST, widths[-1]):
        for row in rows:
            yield from _stacked(console, row, header)
        return
    if header:
        yield from _columns(console, [Text(cell, style="dim") for cell in header], widths, room)
    for row in rows:
        yield from _columns(console, row, widths, room)


def _stacked(console: Console, row: Row, header: Sequence[str]) -> Iterator[Text]:
    """Lay out the first cell of a row, and below it the others with their labels, as many per line as fit."""
    head, *details = row
    yield from _paragraph(console, head, GAP)
    labels = [f"{label}: " for label in header[1:]] or [""] * len(details)
    line = Text()
    for label, cell in zip(labels, details, strict=True):
        labelled = Text.assemble((label, "dim"), _text(cell))
        if line and line.cell_len + GAP + labelled.cell_len > console.width - 2 * GAP:
            yield from _paragraph(console, line, 2 * GAP)
            line = Text()
        line = Text(" " * GAP).join([line, labelled]) if line else labelled
    yield from _paragraph(console, line, 2 * GAP)


def _columns(console: Console, row: Row, widths: Sequence[int], room: int) -> Iterator[Text]:
    *cells, last = row
    line = Text(" " * GAP)
    for cell, width in zip(cells, widths, strict=False):
        line.append_text(_text(cell)).append(" " * (width - _length(cell) + GAP))
    begin, *others = _wrapped(console, last, room)
    yield line.append_text(begin)
    yield from _indented(others, console.width - room)


def _wrapped(console: Console, text: Cell, width: int) -> list[Text]:
    """Break a text between words, and a name that is too long for a line between its parts."""
    width, whole = max(width, 1), _text(text).copy()
    whole.plain = _UNIT.sub(_NO_BREAK, whole.plain)
    pieces = whole.divide(_joints(whole.plain, width))
    lines = [line for piece in pieces for line in piece.wrap(console, width, overflow="fold")] or [Text()]
    for line in lines:
        line.plain = line.plain.replace(_NO_BREAK, " ")
    return lines


def _joints(text: str, width: int) -> Iterator[int]:
    """Yield where to break words that are longer than a line: after the last `.,/` that fits, else the last `_-`.

    A word without these is broken at the end of the line, or after one character if even that is too wide.
    """
    for word in _LONG_ENOUGH.finditer(text):
        begin, end = word.span()
        while cell_len(text[begin:end]) > width:
            fitting = chop_cells(text[begin:end], width)[0]
            length = max(map(fitting.rfind, ".,/")) + 1 or max(map(fitting.rfind, "_-")) + 1 or len(fitting)
            begin += max(length, 1)
            yield begin


def _indented(lines: Iterable[Text], indent: int) -> Iterator[Text]:
    return (Text(" " * indent).append_text(line) for line in lines)


def _text(cell: Cell) -> Text:
    return cell if isinstance(cell, Text) else Text(str(cell))


def _length(cell: Cell) -> int:
    return _text(cell).cell_len
