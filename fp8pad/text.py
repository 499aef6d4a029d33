"""Words for people: text from a checkpoint made safe to print, counts and sizes; names that match patterns."""

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

# No name that is meant for people is longer, and hardly any path.
_LONG_WORD = re.compile(r"\S{1001,}")


def printable(text: str) -> str:
    """Return `text` with control characters and line breaks escaped and long words cut."""
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return _LONG_WORD.sub(lambda word: f"{word[0][:700]}...{word[0][-200:]}", shown)


def matches(names: Iterable[str], patterns: Iterable[str]) -> bool:
    """Return whether any of the names matches any of the patterns, in which `*` matches anything."""
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def counted(count: int, noun: str) -> str:
    """Return a count with its noun: `1 tensor` or `2 tensors`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def size(num_bytes: int) -> str:
    """Return a size in readable units: `5.4 GB`."""
    if num_bytes < 1000:
        return counted(num_bytes, "byte")
    power = min((len(str(num_bytes)) - 1) // 3, 6)
    return f"{num_bytes / 1000**power:,.1f} {'kMGTPE'[power - 1]}B"
