"""What `--overwrite` may replace: files that fp8pad wrote, and those that the new folder holds by the same name."""

import hashlib
from collections.abc import Collection, Set
from dataclasses import dataclass
from pathlib import Path

from fp8pad.checkpoint.directory import Directory, is_file
from fp8pad.checkpoint.files import writing
from fp8pad.checkpoint.folder import SHARD_SUFFIX
from fp8pad.errors import OutputError, RecordError
from fp8pad.record import RECORD_FILE, CheckpointRecord, parse_record

MAX_RECORD_BYTES = 1 << 30  # 150,000 padded tensors are about 50 MB
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Replaced:
    """A folder that was replaced: its files, and those of them that were not what its fp8pad.json says of them."""

    files: tuple[str, ...]
    edited: tuple[str, ...]

    def to_json(self) -> dict[str, list[str]]:
        """Return what a report adds where something was replaced."""
        return {"files_replaced": list(self.files), "files_edited": list(self.edited)}


def check_replaced(old: Directory, new_files: Set[str], out_dir: Path) -> Replaced:
    """Return what is lost when a folder with `new_files` takes the place of `old`, which stands or stood at `out_dir`.

    Raises `OutputError` if `old` holds files that are neither among them nor named in its own fp8pad.json; that names
    none if the shards that it describes are not there.
    """
    with writing(out_dir):
        files = sorted(old.files())
        record = _record_of(old, files)
        known = new_files | ({RECORD_FILE, *record.files} if record else set())
        if foreign := [file for file in files if file not in known]:
            named = ", ".join(foreign[:_NAMED]) + (", ..." if len(foreign) > _NAMED else "")
            count = f"{len(foreign)} file{'s' if len(foreign) > 1 else ''}"
            raise OutputError(f"{out_dir}: holds {count} that fp8pad did not write: {named}; name another folder")
        edited = [file for file in files if record and not _is_recorded(old, file, record)]
    return Replaced(tuple(files), tuple(edited))


def _record_of(folder: Directory, files: Collection[str]) -> CheckpointRecord | None:
    """Return the record of a folder, None if there is none or it describes other shards: anybody can write a record."""
    try:
        text = folder.read(RECORD_FILE, MAX_RECORD_BYTES)
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
    """Return whether a file is what the record says; shards, which are large, are told by their size alone."""
    if file == RECORD_FILE:
        return True
    if file not in record.files or not _has_recorded_size(folder, file, record):
        return False
    expected = record.files[file].sha256
    if expected is None or file.endswith(SHARD_SUFFIX):
        return True
    content = folder.read(file, MAX_RECORD_BYTES)
    return content is not None and hashlib.sha256(content).hexdigest() == expected
