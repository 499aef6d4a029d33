"""The files of a checkpoint that is to be written: their names, the room that they take, and whether they are there."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.destination import can_clone
from fp8pad.checkpoint.directory import open_directory
from fp8pad.checkpoint.files import text_bytes
from fp8pad.checkpoint.folder import read_text
from fp8pad.checkpoint.layout import ShardLayout
from fp8pad.checkpoint.options import WriteOptions
from fp8pad.errors import CheckpointError
from fp8pad.record import RECORD_FILE, CheckpointRecord, FileRecord, parse_record


@dataclass(frozen=True, slots=True)
class Contents:
    """The files of a checkpoint that is to be written from `source`, whose other files are copied as they are.

    `layouts` are its shards. `texts` work out its text files, when they are needed: an index can be as large as all
    headers; the one without which nothing can be loaded is the last. `files` are the sizes of all of these. A `record`
    is written too, once the hashes of all files are known: here it has none.
    """

    source: Checkpoint
    layouts: tuple[ShardLayout, ...]
    texts: Mapping[str, Callable[[], str]]
    files: Mapping[str, FileRecord]
    record: CheckpointRecord | None = None

    @property
    def names(self) -> set[str]:
        """The names of all files."""
        return {*self.files, RECORD_FILE} if self.record else {*self.files}

    @property
    def other_bytes(self) -> int:
        """The bytes of the files that are copied as they are, beside the shards."""
        return sum(self.source.identities[file].size for file in self.source.other_files)

    def _stored_bytes(self, layout: ShardLayout) -> int:
        """Return the bytes that a shard will take: holes of its source stay holes."""
        if self.source.remote:
            return layout.target_bytes
        status = (self.source.root / layout.file).stat()
        # Some file systems count no blocks.
        holes = max(0, status.st_size - status.st_blocks * 512) if status.st_blocks else 0
        return layout.target_bytes - holes

    def needed_bytes(self, target: Path, options: WriteOptions) -> int:
        """Return the bytes that are needed to write all files to `target`.

        Shards that share their data with a source on this disk take none. Files that are fetched and become no files of
        the output themselves are there for a while: as many as there are jobs.
        """
        untouched = [layout for layout in self.layouts if layout.is_untouched]
        is_linked = not self.source.remote and (
            options.link in {"hardlink", "reflink"}
            or (options.link == "auto" and untouched and can_clone(self.source.root / untouched[0].file, target))
        )
        stored = [layout for layout in self.layouts if not (is_linked and layout.is_untouched)]
        copied = [layout.file for layout in self.layouts if not layout.is_untouched] + list(self.source.other_files)
        fetched_bytes = sum(sorted(map(self.source.fetched_bytes, copied))[-options.jobs :])
        return sum(map(self._stored_bytes, stored)) + self.other_bytes + fetched_bytes

    def seems_written(self, target: Path, needs_hashes: bool) -> bool:
        """Return whether `target` has these files and no others, of the same sizes, texts and record.

        So a run leaves it that succeeds, or that is killed when only its own traces are left to remove.
        """
        with suppress(OSError, CheckpointError):
            with open_directory(target) as folder:
                if set(folder.files()) != self.names:
                    return False
            return (
                all((target / file).lstat().st_size == sizes.size for file, sizes in self.files.items())
                and all(read_text(target, file) == text() for file, text in self.texts.items())
                and (self.record is None or _is_recorded(self.record, target, needs_hashes))
            )
        return False


def contents_of(
    source: Checkpoint, layouts: tuple[ShardLayout, ...], texts: Mapping[str, Callable[[], str]]
) -> Contents:
    """Return what is made of `source`, without a record; a file that is new has no bytes in it."""
    before = source.identities
    sizes = {layout.file: layout.target_bytes for layout in layouts}
    sizes |= {file: text_bytes(text()) for file, text in texts.items()}
    sizes |= {file: before[file].size for file in source.other_files}
    files = {file: FileRecord(before[file].size if file in before else 0, size) for file, size in sorted(sizes.items())}
    return Contents(source, layouts, texts, files)


def _is_recorded(record: CheckpointRecord, target: Path, needs_hashes: bool) -> bool:
    """Return whether `target` has that record, with hashes of all files if it `needs_hashes`."""
    found = parse_record(read_text(target, RECORD_FILE))
    has_hashes = all(entry.sha256 for entry in found.files.values())
    files = {name: FileRecord(entry.source_size, entry.size) for name, entry in found.files.items()}
    return replace(found, files=files) == record and (has_hashes or not needs_hashes)
