"""Text from a checkpoint, made safe to print."""

import re

# No name that is meant for people is longer, and hardly a path.
_LONG_WORD = re.compile(r"\S{1001,}")


def printable(text: str) -> str:
    """Return `text` with everything that could steer a terminal or break a line as an escape, and long words cut."""
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return _LONG_WORD.sub(lambda word: f"{word[0][:700]}...{word[0][-200:]}", shown)
