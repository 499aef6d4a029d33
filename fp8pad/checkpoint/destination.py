"""Check, before anything is created, whether a checkpoint can be written to a folder, and what it may replace there.

`--overwrite` replaces files that fp8pad wrote, and files whose names the new folder has too.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Collection, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.copying import clone
from fp8pad.checkpoint.directory import Directory, is_file, open_directory
from fp8pad.checkpoint.files import OpenFile, open_file, writing
from fp8pad.checkpoint.folder import SHARD_SUFFIX, max_text_bytes
from fp8pad.checkpoint.staging import KEPT, REPLACED, staging_path
from fp8pad.errors import OutputError, RecordError
from fp8pad.record import RECORD_FILE, CheckpointRecord, parse_record
from fp8pad.text import size

_NAMED = 3
_MOUNTS = Path("/proc/self/mountinfo")  # proc_pid_mountinfo(5)


def check_destination(source: Checkpoint, out_dir: Path) -> Path:
    """Resolve the links in `out_dir`; raise an `OutputError` that says why if a checkpoint cannot be written there."""
    try:
        target = out_dir.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise OutputError(f"{out_dir}: cannot be resolved: {error}") from error
    if any(path.is_symlink() for path in (target, *target.parents)):
        raise OutputError(f"{out_dir}: cannot be resolved: a loop of symbolic links")
    try:
        _check_usable(source, target, out_dir)
    except OutputError as error:
        for name in (REPLACED, f"{KEPT}.*"):  # a run was killed, and something else took the place of what it replaced
            for folder in staging_path(target).glob(name) if target.name else ():
                error.add_note(f"{folder} was at {out_dir} before")
        raise
    return target


def _check_usable(source: Checkpoint, target: Path, out_dir: Path) -> None:
    if target.exists() and not target.is_dir():
        raise OutputError(f"{out_dir}: expected a folder")
    _check_apart(source, target, out_dir)
    for place, name in _places():
        if _is_within(place, target):
            raise OutputError(f"{out_dir}: is {name}, or contains it; choose another folder")
    parent = existing_parent(target)
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{out_dir}: {parent} is not writable")
    if target.is_dir() and (target.stat().st_dev != parent.stat().st_dev or target.is_mount()):
        raise OutputError(f"{out_dir}: is a mount point, which cannot be replaced; choose a folder inside it")
    for mount in _mount_points():
        if mount.is_relative_to(target):
            raise OutputError(f"{out_dir}: something is mounted in it, at {mount}; choose another folder")


def check_replaceable(target: Path, out_dir: Path, new_files: Set[str], overwrite: bool) -> None:
    """Raise `OutputError` if a folder with `new_files` must not replace what is at `target`."""
    with writing(out_dir):
        if not target.exists() or not any(target.iterdir()):
            return
        with open_directory(target) as old:
            check_replaced(old, new_files, out_dir)
        if not overwrite:
            raise OutputError(f"{out_dir}: is not empty; use --overwrite to replace it")
        if not os.access(target, os.W_OK):  # moving a folder needs write permission
            raise OutputError(f"{out_dir}: is read-only and cannot be replaced; run `chmod u+w` on it first")


def check_space(target: Path, needed_bytes: int, reclaimed_bytes: int) -> None:
    """Raise `OutputError` if the disk of `target` has too little room, even with an earlier run's `reclaimed_bytes`."""
    free_bytes = shutil.disk_usage(existing_parent(target)).free + reclaimed_bytes
    if needed_bytes > free_bytes:
        raise OutputError(f"{target}: not enough disk space: {size(needed_bytes)} needed, {size(free_bytes)} free")


def can_clone(file: Path, target: Path) -> bool:
    """Return whether `file` can be cloned to the file system of `target`; tried with an unnamed temporary file."""
    try:
        descriptor = os.open(existing_parent(target), os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        with open_file(file, file.name) as source:
            return clone(source, OpenFile(descriptor, file.name))
    finally:
        os.close(descriptor)


def existing_parent(target: Path) -> Path:
    """Return the nearest existing folder above `target`; for the root, the root itself."""
    return next((parent for parent in target.parents if parent.is_dir()), target)


def _places() -> Iterator[tuple[Path, str]]:
    """Yield folders that must never be replaced, with a description of each."""
    yield Path("/"), "the root of the file system"
    with suppress(RuntimeError, OSError):  # no such user, or a loop of links
        yield Path.home().resolve(), "the home folder"
    with suppress(FileNotFoundError):  # the current folder may have been removed
        yield Path.cwd(), "the current folder"


def _mount_points() -> Iterator[Path]:
    with suppress(OSError):  # not on Linux
        for line in _MOUNTS.read_bytes().splitlines():
            point = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), line.split(b" ")[4])
            yield Path(os.fsdecode(point))


def _check_apart(source: Checkpoint, target: Path, out_dir: Path) -> None:
    model = source.root.resolve()
    if _is_same(target, model):
        raise OutputError(f"{out_dir}: is the model folder itself")
    if _is_within(target, model):
        raise OutputError(f"{out_dir}: is inside the model folder {source.root}")
    if holder := next((parent for parent in target.parents if (parent / RECORD_FILE).exists()), None):
        raise OutputError(f"{out_dir}: is inside {holder}, which fp8pad wrote; verify would report it there")
    files = (path for file in (*source.identities, *source.excluded) for path in _led_to(model / file))
    for path in (model, *(path for path in files if not path.is_relative_to(model))):
        if _is_within(path, target):
            raise OutputError(f"{out_dir}: contains the model, or a file that it links to: {path}")
        if _is_within(path, staging := staging_path(target)):
            raise OutputError(f"{out_dir}: the model, or a file that it links to, is in the staging folder {staging}")


def _led_to(path: Path) -> Iterator[Path]:
    """Yield every file and folder that a chain of links leads to: a link in it may be replaced, too."""
    seen = set[Path]()
    while path.is_symlink() and path not in seen:
        seen.add(path)
        path = Path(os.path.realpath(path.parent), path.readlink())
        path = Path(os.path.realpath(path.parent), path.name)
        yield path


def _is_within(path: Path, folder: Path) -> bool:
    return any(_is_same(above, folder) for above in (path, *path.parents))


def _is_same(path: Path, other: Path) -> bool:
    """Return whether two paths lead to one file; through a bind mount, or in another case, one has several paths."""
    with suppress(OSError):
        return path == other or path.samefile(other)
    return False


@dataclass(frozen=True, slots=True)
class Replaced:
    """A folder that was replaced: its files, and the `edited` ones, which did not match its fp8pad.json."""

    files: tuple[str, ...]
    edited: tuple[str, ...]

    def to_json(self) -> dict[str, list[str]]:
        """Return what a report adds if a folder was replaced."""
        return {"files_replaced": list(self.files), "files_edited": list(self.edited)}


def check_replaced(old: Directory, new_files: Set[str], out_dir: Path) -> Replaced:
    """Return what is lost when a folder with `new_files` replaces `old`, the current or former `out_dir`.

    Raises `OutputError` if `old` holds files that are neither among them nor named in its own fp8pad.json, which is
    ignored if the shards that it describes are not there.
    """
    with writing(out_dir):
        files = sorted(old.files())
        record = _record_of(old, files)
        known = new_files | ({RECORD_FILE, *record.files} if record else set())
        if foreign := [file for file in files if file not in known]:
            named = ", ".join(foreign[:_NAMED]) + (", ..." if len(foreign) > _NAMED else "")
            count = f"{len(foreign)} file{'s' if len(foreign) > 1 else ''}"
            hint = "choose another folder"
            raise OutputError(f"{out_dir}: is not empty: holds {count} that fp8pad did not write: {named}; {hint}")
        edited = [file for file in files if record and not _is_recorded(old, file, record)]
    return Replaced(tuple(files), tuple(edited))


def _record_of(folder: Directory, files: Collection[str]) -> CheckpointRecord | None:
    """Return a folder's record; None if there is none or it describes other shards, as anybody can write a record."""
    try:
        text = folder.read(RECORD_FILE, max_text_bytes(RECORD_FILE))
        record = parse_record(text.decode()) if text else None
    except (RecordError, UnicodeDecodeError):
        return None
    shards = [file for file in record.files if file.endswith(SHARD_SUFFIX)] if record else []
    fits = record and all(file in files and _has_recorded_size(folder, file, record) for file in shards)
    return record if shards and fits else None


def _has_recorded_size(folder: Directory, file: str, record: CheckpointRecord) -> bool:
    status = folder.status(file)
    return status is not None and is_file(status) and status.st_size == record.files[file].size


def _is_recorded(folder: Directory, file: str, record: CheckpointRecord) -> bool:
    """Return whether a file is what the record says; of shards and other large files only the size is compared."""
    if file == RECORD_FILE:
        return True
    if file not in record.files or not _has_recorded_size(folder, file, record):
        return False
    expected = record.files[file].sha256
    if expected is None or file.endswith(SHARD_SUFFIX):
        return True
    content = folder.read(file, max_text_bytes(file))
    return content is None or hashlib.sha256(content).hexdigest() == expected
