"""The files of a checkpoint to be written: their names, the disk space they need, and whether they exist already."""

import hashlib
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.destination import can_clone
from fp8pad.checkpoint.directory import open_directory
from fp8pad.checkpoint.files import encoded, file_sha256
from fp8pad.checkpoint.folder import read_text
from fp8pad.checkpoint.layout import ShardLayout
from fp8pad.checkpoint.options import WriteOptions
from fp8pad.errors import CheckpointError
from fp8pad.record import RECORD_FILE, CheckpointRecord, FileRecord, parse_record


@dataclass(frozen=True, slots=True)
class Text:
    """The text of a file to be written, with its size in bytes and its SHA-256.

    It is kept compressed, in parts: the text of an index can be as large as all headers, and takes time to derive.
    """

    compressed: tuple[bytes, ...]
    size: int
    sha256: str

    @classmethod
    def of(cls, text: str) -> "Text":
        """Compress a text."""
        compressed, size, digest = [], 0, hashlib.sha256()
        for part in encoded(text):
            compressed.append(zlib.compress(part, 1))
            size += len(part)
            digest.update(part)
        return cls(tuple(compressed), size, digest.hexdigest())

    def parts(self) -> Iterator[bytes]:
        """Yield the text in UTF-8, in parts."""
        return map(zlib.decompress, self.compressed)


@dataclass(frozen=True, slots=True)
class Contents:
    """The files of a checkpoint to be written from `source`, whose other files are copied unchanged.

    `layouts` are its shards, `texts` its text files; the last one is the file without which nothing can be loaded.
    `files` are the sizes of all of these. A `record` is written too, once all files are hashed; it has no hashes here.
    """

    source: Checkpoint
    layouts: tuple[ShardLayout, ...]
    texts: Mapping[str, Text]
    files: Mapping[str, FileRecord]
    record: CheckpointRecord | None = None

    @property
    def names(self) -> set[str]:
        """The names of all files."""
        return {*self.files, RECORD_FILE} if self.record else {*self.files}

    @property
    def other_bytes(self) -> int:
        """The bytes of the files that are copied unchanged, shards excluded."""
        return sum(self.source.identities[file].size for file in self.source.other_files)

    def _stored_bytes(self, layout: ShardLayout) -> int:
        """Return the bytes that a shard will take on disk: holes of its source stay holes."""
        if self.source.remote:
            return layout.target_bytes
        status = (self.source.root / layout.file).stat()
        # Some file systems do not report blocks.
        holes = max(0, status.st_size - status.st_blocks * 512) if status.st_blocks else 0
        return layout.target_bytes - holes

    def needed_bytes(self, target: Path, options: WriteOptions) -> int:
        """Return the disk space needed to write all files to `target`, in bytes.

        Shards that share their data with a source on this disk need none. Fetched files that do not become output files
        themselves need space for a while: as many at a time as there are jobs.
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

    def found_at(self, target: Path, needs_hashes: bool) -> "Contents | None":
        """Return this with the record in `target`, if `target` has these files alone, with these sizes and texts.

        Its record has to equal this one, apart from hashes, which it may have, or has to have if it `needs_hashes`.
        This is what a run leaves that succeeds, or that is killed when it only has to remove its staging files.
        """
        with suppress(OSError, CheckpointError):
            with open_directory(target) as folder:
                is_same = set(folder.files()) == self.names
            is_same = is_same and all((target / file).lstat().st_size == each.size for file, each in self.files.items())
            if not is_same or any(file_sha256(target / file, file) != text.sha256 for file, text in self.texts.items()):
                return None
            if self.record is None:
                return self
            found = parse_record(read_text(target, RECORD_FILE))
            all_hashed = all(entry.sha256 for entry in found.files.values())
            files = {name: FileRecord(entry.source_size, entry.size) for name, entry in found.files.items()}
            if replace(found, files=files) == self.record and (all_hashed or not needs_hashes):
                return replace(self, record=found)
        return None


def contents_of(source: Checkpoint, layouts: tuple[ShardLayout, ...], texts: Mapping[str, Text]) -> Contents:
    """Return what is made from `source`, without a record; a new file has a source size of 0."""
    before = source.identities
    sizes = {layout.file: layout.target_bytes for layout in layouts}
    sizes |= {file: text.size for file, text in texts.items()}
    sizes |= {file: before[file].size for file in source.other_files}
    files = {file: FileRecord(before[file].size if file in before else 0, size) for file, size in sorted(sizes.items())}
    return Contents(source, layouts, texts, files)
