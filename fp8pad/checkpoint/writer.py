"""Writing the files of one checkpoint from those of another into a staging folder, and reading them back."""

import hashlib
import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.compare import compare_data, compare_header, sha256
from fp8pad.checkpoint.files import Advance, clone, copy_range, create_file, open_file, writing
from fp8pad.checkpoint.layout import ShardLayout
from fp8pad.checkpoint.options import Link, VerifyDepth
from fp8pad.checkpoint.staging import Staging
from fp8pad.checkpoint.transfer import write_logical, write_padded
from fp8pad.errors import OutputError, VerifyError
from fp8pad.tensors import ShardHeader


@dataclass(frozen=True, slots=True)
class Hashes:
    """The SHA-256, in hexadecimal, of a file and of the source's file of that name."""

    sha256: str
    source_sha256: str


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes files of `source` into a staging folder: shards padded, or logical again where it `unpads`."""

    source: Checkpoint
    staging: Staging
    link: Link
    verify: VerifyDepth
    unpads: bool = False

    def target(self, layout: ShardLayout) -> ShardHeader:
        """Return the header of the shard that is to be written."""
        return layout.logical if self.unpads else layout.padded

    def staged(self, layout: ShardLayout) -> Path:
        """Return where the finished shard lies; the name tells what it was made from."""
        file = layout.logical.file
        made_from = repr((self.unpads, self.source.identities[file], self._prefix(layout), layout.steps))
        return self.staging.staged(file, hashlib.sha256(made_from.encode()).hexdigest()[:16])

    def is_finished(self, layout: ShardLayout) -> bool:
        """Return whether an earlier run finished this very shard."""
        staged = self.staged(layout)
        return staged.is_file() and staged.stat().st_size == self.target(layout).file_bytes

    def write_shard(self, layout: ShardLayout, advance: Advance) -> Hashes | None:
        """Write a shard unless it is finished, and read it back as deep as `verify` says; "full" returns hashes.

        Raises `OutputError` if it cannot be written, `CheckpointError` if the source cannot be read, and `VerifyError`
        if what was read back is not what it should be.
        """
        file, staged = layout.logical.file, self.staged(layout)
        origin = self.source.root / file
        if self.is_finished(layout):
            advance(self.target(layout).file_bytes)
        else:
            unfinished = self.staging.unfinished(file)
            self._write(layout, origin, unfinished, advance)
            with writing(file):
                unfinished.rename(staged)
        if self.verify != "none":
            self._check(layout, origin, staged, advance)
        return self._hashes(origin, staged, file)

    def copy_other_file(self, file: str, advance: Advance) -> Hashes | None:
        """Copy a file as it is; only the permission to execute it comes along. Raises as `write_shard` does."""
        origin, path = self.source.root / file, self.staging.files / file
        with writing(file):
            path.parent.mkdir(parents=True, exist_ok=True)
            mode = origin.stat().st_mode & 0o111 | 0o666
        expected = self.source.identities[file]
        with open_file(origin, file, expected) as source, create_file(path, file, mode) as target:
            copy_range(source, target, (0, 0), self.source.identities[file].size, advance)
        return self._hashes(origin, path, file)

    def write_text(self, file: str, text: str) -> None:
        """Write a text file, under its staged name, and read it back. Raises as `write_shard` does."""
        path = self.staging.staged(file)
        data = text.encode()
        with create_file(path, file) as target:
            target.write(0, data)
        with open_file(path, file) as written:
            is_equal = written.read(0, len(data)).tobytes() == data
        if not is_equal:
            raise VerifyError(f"{file}: what was read back is not what was written")

    def _prefix(self, layout: ShardLayout) -> bytes:
        return layout.logical_prefix if self.unpads else layout.padded_prefix

    def _write(self, layout: ShardLayout, origin: Path, path: Path, advance: Advance) -> None:
        file = layout.logical.file
        if layout.is_untouched and self.link == "hardlink":
            with writing(file):
                os.link(origin.resolve(), path)
            advance(layout.logical.file_bytes)
            return
        expected = self.source.identities[file]
        with open_file(origin, file, expected) as source, create_file(path, file) as target:
            if layout.is_untouched and self.link in {"auto", "reflink"} and clone(source, target):
                advance(layout.logical.file_bytes)
            elif layout.is_untouched and self.link == "reflink":
                raise OutputError(f"{file}: cannot be reflinked to {self.staging.out_dir.parent}; use --link auto")
            else:
                (write_logical if self.unpads else write_padded)(layout, source, target, advance)

    def _check(self, layout: ShardLayout, origin: Path, staged: Path, advance: Advance) -> None:
        mismatches = compare_header(self.target(layout), self._prefix(layout), staged)
        if not mismatches:
            logical, padded = (staged, origin) if self.unpads else (origin, staged)
            with open_file(logical, layout.logical.file) as before, open_file(padded, layout.padded.file) as after:
                mismatches = list(islice(compare_data(layout, before, after, self.verify == "full", advance), 1))
        if mismatches:
            raise VerifyError(str(mismatches[0]))

    def _hashes(self, origin: Path, path: Path, file: str) -> Hashes | None:
        return Hashes(sha256(path, file), sha256(origin, file)) if self.verify == "full" else None
