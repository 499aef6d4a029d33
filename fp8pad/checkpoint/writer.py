"""Writing the files of one checkpoint from those of another into a staging folder, and reading them back."""

import hashlib
import os
import stat
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.compare import Mismatch, compare_data, read_back, sha256
from fp8pad.checkpoint.files import Advance, clone, copy_range, create_file, open_file, writing
from fp8pad.checkpoint.layout import ShardLayout
from fp8pad.checkpoint.options import Link, VerifyDepth
from fp8pad.checkpoint.staging import Staging
from fp8pad.checkpoint.transfer import Hashes, Sums, write_shard
from fp8pad.errors import OutputError, VerifyError


@dataclass(frozen=True, slots=True)
class Written:
    """A file that is complete: its hashes where they were asked for, and whether an earlier run had finished it."""

    hashes: Hashes | None
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes files of `source` into a staging folder, and reads them back as deep as `verify` says."""

    source: Checkpoint
    staging: Staging
    link: Link
    verify: VerifyDepth

    def work_bytes(self, layout: ShardLayout) -> int:
        """Return of how many bytes `write_shard` will tell `advance`: those to write and those to read back."""
        data_bytes = layout.target.file_bytes - layout.target.data_start
        return layout.target.file_bytes + {"none": 0, "padded": layout.resized_bytes, "full": data_bytes}[self.verify]

    def staged(self, layout: ShardLayout) -> Path:
        """Return where the finished shard lies; the name tells what it was made from."""
        made_from = repr((self.source.identities[layout.file], layout.prefix, layout.tensors, layout.unpads))
        return self.staging.staged(layout.file, hashlib.sha256(made_from.encode()).hexdigest()[:16])

    def is_finished(self, layout: ShardLayout) -> bool:
        """Return whether an earlier run left what could be this very shard; its bytes are not looked at here.

        A link is none: whoever has written it, writing to the output must never change another file. Only a hard link
        that is asked for is one.
        """
        try:
            status = self.staged(layout).lstat()
        except OSError:
            return False
        is_link = status.st_nlink > 1
        if is_link and layout.is_untouched and self.link == "hardlink":
            is_link = not os.path.samestat(status, (self.source.root / layout.file).stat())
        return stat.S_ISREG(status.st_mode) and status.st_size == layout.target.file_bytes and not is_link

    def write_shard(self, layout: ShardLayout, advance: Advance) -> Written:
        """Write a shard and read it back; one that an earlier run finished is compared with its source instead.

        Raises `OutputError` if it cannot be written, `CheckpointError` if the source cannot be read, and `VerifyError`
        if what was read back is not what was written.
        """
        staged, unfinished = self.staged(layout), self.staging.unfinished(layout.file)
        if self.is_finished(layout):
            sums = self._sums()
            if not self._mismatches(layout, staged, sums, advance):
                advance(self.work_bytes(layout) - layout.target.file_bytes + layout.target.data_start)
                return Written(sums.hashes, resumed=True)
        sums = self._write(layout, unfinished, advance)
        with writing(layout.file):
            unfinished.rename(staged)
        return Written(sums.hashes)

    def copy_other_file(self, file: str, advance: Advance) -> Written:
        """Copy a file as it is; only the permission to execute it comes along. Raises as `write_shard` does."""
        origin, path = self.source.root / file, self.staging.files / file
        with writing(file):
            for folder in reversed(path.relative_to(self.staging.files).parents):
                (self.staging.files / folder).mkdir(exist_ok=True)
            mode = origin.stat().st_mode & 0o111 | 0o666
        expected = self.source.identities[file]
        with open_file(origin, file, expected) as source, create_file(path, file, mode) as target:
            copy_range(source, target, (0, 0), expected.size, advance)
        if self.verify != "full":
            return Written(None)
        hashes = Hashes(sha256(path, file), sha256(origin, file))
        if hashes.sha256 != hashes.source_sha256:
            raise VerifyError(f"{file}: what was read back is not what was written")
        return Written(hashes)

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

    def _sums(self) -> Sums:
        return Sums(self.verify, hashed=self.verify == "full")

    def _write(self, layout: ShardLayout, path: Path, advance: Advance) -> Sums:
        """Write a shard to `path` and read it back."""
        sums, origin = self._sums(), self.source.root / layout.file
        if layout.is_untouched and self._share(layout, origin, path):
            advance(layout.target.file_bytes)
            mismatches = self._mismatches(layout, path, sums, advance) if self.verify == "full" else []
        else:
            expected = self.source.identities[layout.file]
            with open_file(origin, layout.file, expected) as source, create_file(path, layout.file) as target:
                write_shard(layout, source, target, sums, advance)
            with open_file(path, layout.file) as target:
                mismatches = list(islice(read_back(layout, target, sums, advance), 1)) if self.verify != "none" else []
        if mismatches:
            raise VerifyError(str(mismatches[0]))
        return sums

    def _mismatches(self, layout: ShardLayout, path: Path, sums: Sums, advance: Advance) -> list[Mismatch]:
        """Compare every byte of a shard at `path` with what its source gives, up to the first difference."""
        expected = self.source.identities[layout.file]
        origin = self.source.root / layout.file
        with open_file(origin, layout.file, expected) as source, open_file(path, layout.file) as target:
            if target.read(0, len(layout.prefix)) != layout.prefix:
                return [Mismatch(layout.file, "header", "what was planned", "another")]
            return list(islice(compare_data(layout, source, target, advance, sums), 1))

    def _share(self, layout: ShardLayout, origin: Path, path: Path) -> bool:
        """Let an untouched shard share the source's data, by a hard link or a clone; False if it is to be copied."""
        if self.link == "hardlink":
            with writing(layout.file):
                path.unlink(missing_ok=True)
                os.link(origin.resolve(), path)
            return True
        if self.link == "copy":
            return False
        expected = self.source.identities[layout.file]
        with open_file(origin, layout.file, expected) as source, create_file(path, layout.file) as target:
            is_shared = clone(source, target)
        if self.link == "reflink" and not is_shared:
            folder = self.staging.out_dir.parent
            raise OutputError(f"{layout.file}: cannot be reflinked to {folder}; use --link auto")
        return is_shared
