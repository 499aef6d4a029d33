"""Files that a command writes besides its result: pages, golden files, JUnit files; written whole or not at all."""

import os
from pathlib import Path

from fp8pad.errors import OutputError


def check_writable(file: Path) -> None:
    """Raise `OutputError` where `file` cannot be written, before an engine is started for it."""
    if not file.parent.is_dir():
        raise OutputError(f"{file}: {file.parent} is no folder")
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise OutputError(f"{file}: cannot be written")


def write_text(file: Path, text: str) -> None:
    """Write `text` next to `file` and rename it; `OutputError` if that fails."""
    unfinished = file.with_name(f".{file.name}.unfinished")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(file)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise OutputError(f"{file}: {error.strerror}") from error
