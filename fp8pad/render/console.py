"""How results get to stdout: nothing that comes from a checkpoint is read as markup, and no usual name is cut.

On a terminal, lines fit its width; otherwise they are as long as they need to be.
"""

import json
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.filesize import decimal

from fp8pad.record import ConfigEdit
from fp8pad.text import printable

WIDE = 100_000  # columns, where nobody counts them
MOST_FILES = 8

Fact = tuple[str, str]


def stdout_console() -> Console:
    """Return the console of results."""
    width = None if sys.stdout.isatty() else WIDE
    plain = bool(os.environ.get("NO_COLOR"))
    return Console(width=width, color_system=None if plain else "auto", markup=False, highlight=False, emoji=False)


def print_json(document: dict[str, Any]) -> None:
    """Print a document, in ASCII, so that it arrives whatever the encoding."""
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")


def command(name: str, *arguments: object) -> str:
    """Return a command of fp8pad that can be pasted into a shell."""
    return shell_command("fp8pad", name, *arguments)


def shell_command(*arguments: object) -> str:
    """Join arguments for a shell; bytes that are no printable text are written as bash and zsh read them."""
    return " ".join(map(_quoted, map(str, arguments)))


def _quoted(argument: str) -> str:
    if argument.isprintable():
        return shlex.quote(argument)
    return f"$'{''.join(map(_escaped, argument))}'"


def _escaped(char: str) -> str:
    if char.isprintable() and char not in "'\\":
        return char
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))


def size(num_bytes: int) -> str:
    """Write a size as people read it: `5.4 GB`."""
    return decimal(num_bytes)


def growth(bytes_before: int, bytes_after: int) -> str:
    """Write two sizes in bytes and what lies between them."""
    more = bytes_after - bytes_before
    return f"{size(bytes_before)} -> {size(bytes_after)} (+{size(more)}, {share_of(more, bytes_before):+.2%})"


def added(num_bytes: int, bytes_before: int) -> str:
    """Write how many bytes come to others."""
    return f"+{size(num_bytes)} ({share_of(num_bytes, bytes_before):+.1%})"


def share_of(part: int, whole: int) -> float:
    """Return the share that a part is of the whole, 0 of nothing."""
    return part / whole if whole else 0.0


def edit_facts(edits: Iterable[ConfigEdit]) -> Iterator[Fact]:
    """Yield a row for each size that absorbing changes."""
    for edit in edits:
        yield "config", printable(f"{edit.file}: {edit.key}: {edit.old} -> {edit.new}")


def shortened(names: Sequence[str]) -> str:
    """List file names, the first few of many."""
    shown = ", ".join(map(printable, names[:MOST_FILES]))
    return f"{shown} and {len(names) - MOST_FILES} more" if len(names) > MOST_FILES else shown
