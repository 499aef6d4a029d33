"""Files that a command writes in addition to its result: HTML, golden and JUnit files, written completely or not."""

import os
from pathlib import Path

from fp8pad.checkpoint.files import create_file, writing
from fp8pad.checkpoint.folder import SHARD_SUFFIX
from fp8pad.errors import OutputError, UsageError
from fp8pad.record import CONFIG_FILE


def check_writable(file: Path) -> None:
    """Raise `OutputError` if `file` cannot be written, before an engine is started; `UsageError` for `-`."""
    if str(file) == "-":
        raise UsageError("-: expected the name of a file")
    if file.exists() and not file.is_file():  # a pipe, or /dev/stdout: it would be replaced
        raise OutputError(f"{file}: cannot be written: expected a regular file")
    if not file.parent.is_dir():
        raise OutputError(f"{file}: {file.parent} is not a folder")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise OutputError(f"{file}: cannot be written")
    for path in (file.absolute(), file.resolve()) if file.exists() else ():
        for folder in path.parents:
            signs = (folder / CONFIG_FILE).exists(), any(folder.glob(f"*{SHARD_SUFFIX}"))
            if all(signs) or (any(signs) and folder == path.parent):  # a config.json above it can be anything
                raise OutputError(f"{file}: is a file of a checkpoint; choose another file name")


def write_text(file: Path, text: str) -> None:
    """Write `text` to `file`, or what it links to, through a new file and a rename; raises `OutputError` on failure."""
    with writing(file):
        target = file.resolve()
        unfinished = target.with_name(f".{target.name}.fp8pad-unfinished")
        unfinished.unlink(missing_ok=True)
        try:
            with create_file(unfinished, str(file)) as opened:  # a new file: somebody may have put a link there
                opened.write(0, text.encode())
            unfinished.replace(target)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
