"""Print results to stdout: nothing that comes from a checkpoint is parsed as markup.

On a terminal, lines fit its width; otherwise they are as long as they need to be.
"""

import inspect
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console

from fp8pad.record import ConfigEdit, Policy, by_key
from fp8pad.text import printable, size

WIDE = 100_000  # columns if stdout is not a terminal
MOST_FILES = 8

Fact = tuple[str, str]


def stdout_console() -> Console:
    """Return the console that prints results."""
    width = None if sys.stdout.isatty() else WIDE
    plain = bool(os.environ.get("NO_COLOR"))
    return Console(width=width, color_system=None if plain else "auto", markup=False, highlight=False, emoji=False)


def print_json(document: dict[str, Any]) -> None:
    """Print a document in ASCII, which works in any encoding."""
    json.dump(document, sys.stdout, indent=2)
    sys.stdout.write("\n")


def words_of(function: Callable[..., Any], options: Mapping[str, Any]) -> Iterator[str]:
    """Yield the command-line words for those options of `function` whose values are not the default."""
    for name, parameter in inspect.signature(function).parameters.items():
        value, option = options.get(name, parameter.default), f"--{name.replace('_', '-')}"
        if isinstance(value, list | tuple):  # an option that can be repeated; empty by default
            for one in value:
                yield from (option, str(one))
        elif isinstance(value, bool) and value != parameter.default:
            yield option if value else option.replace("--", "--no-", 1)
        elif value != parameter.default:
            yield from (option, str(value))


def convert_command(source: object, out_dir: object, policy: Policy, *options: str) -> str:
    """Return the command that converts a checkpoint with a policy."""
    return command("convert", source, out_dir, *words_of(Policy, asdict(policy)), *options)


def command(name: str, *arguments: object) -> str:
    """Return an fp8pad command that can be pasted into a shell."""
    return shell_command("fp8pad", name, *arguments)


def shell_command(*arguments: object) -> str:
    """Join arguments for a shell; unprintable ones are escaped as `$'...'`, which bash and zsh read."""
    return " ".join(map(_quoted, map(str, arguments)))


def _quoted(argument: str) -> str:
    if argument.isprintable():
        return shlex.quote(argument)
    return f"$'{''.join(map(_escaped, argument))}'"


def _escaped(char: str) -> str:
    if char.isprintable() and char not in "'\\":
        return char
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))


def growth(bytes_before: int, bytes_after: int) -> str:
    """Return two sizes in bytes and their difference as text."""
    more = bytes_after - bytes_before
    if not more:
        return f"{size(bytes_before)}, unchanged"
    return f"{size(bytes_before)} -> {size(bytes_after)} (+{size(more)}, {share_of(more, bytes_before):+.2%})"


def added(num_bytes: int, bytes_before: int) -> str:
    """Return how many bytes are added to `bytes_before`, as text."""
    return f"+{size(num_bytes)} ({share_of(num_bytes, bytes_before):+.1%})" if num_bytes else "nothing"


def share_of(part: int, whole: int) -> float:
    """Return `part / whole`, or 0 if `whole` is 0."""
    return part / whole if whole else 0.0


def edit_facts(edits: Iterable[ConfigEdit]) -> Iterator[Fact]:
    """Yield a row for each size that absorbing changes."""
    for edit in by_key(edits):
        yield "config", printable(f"{edit.file}: {edit.key}: {edit.old} -> {edit.new}")


def shortened(names: Sequence[str]) -> str:
    """List file names, only the first few if there are many."""
    shown = ", ".join(map(printable, names[:MOST_FILES]))
    return f"{shown} and {len(names) - MOST_FILES} more" if len(names) > MOST_FILES else shown
