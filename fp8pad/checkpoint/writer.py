"""Write the shards of one checkpoint from those of another into a staging folder, and read them back."""

import json
import os
import stat
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.compare import Mismatch, check_padding, compare_data
from fp8pad.checkpoint.copying import clone
from fp8pad.checkpoint.files import Advance, FileIdentity, file_sha256, open_file, writing
from fp8pad.checkpoint.layout import ShardLayout
from fp8pad.checkpoint.moving import Hashes, Sums, read_back, target_prefix, write_shard
from fp8pad.checkpoint.options import WriteOptions
from fp8pad.checkpoint.staging import Staging, key_of
from fp8pad.errors import AlteredPaddingError, OutputError, VerifyError


@dataclass(frozen=True, slots=True)
class Written:
    """A complete file: its hashes, if they were requested, and whether an earlier run had finished it."""

    hashes: Hashes | None
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes shards of `source` into a staging folder, and reads them back, as the options say.

    `is_slice` says that other processes may write other shards, and that a last run will publish all of them.
    """

    source: Checkpoint
    staging: Staging
    options: WriteOptions
    is_slice: bool = False

    @property
    def group(self) -> int | None:
        """The id of the group that new files belong to; None for a model of the hub, whose files have no group yet."""
        return None if self.source.remote else self.staging.group

    def work_bytes(self, layout: ShardLayout) -> int:
        """Return the number of bytes that `write_shard` reports to `advance`: those to fetch, write and read back."""
        depth = self.options.verify
        read_back = 0 if depth == "none" else layout.data_bytes(only_resized=depth == "padded")
        return self.source.fetched_bytes(layout.file) + layout.target_bytes + read_back

    def key(self, layout: ShardLayout) -> str:
        """Return the key of a shard in the staging folder, a digest of what it is made from."""
        return key_of(layout.file, self.source.identities[layout.file], layout.digest)

    def is_finished(self, layout: ShardLayout) -> bool:
        """Return whether an earlier run left a shard that could be this one; its bytes are not compared here.

        A file with several hard links does not count: writing to the output must never change another file. The
        exception is a hard link to the source, if hard links are requested.
        """
        status = self.staging.finished(self.key(layout))
        if status is None:
            return False
        is_link = status.st_nlink > 1
        if is_link and layout.is_untouched and self.options.link == "hardlink":
            is_link = not os.path.samestat(status, (self.source.root / layout.file).stat())
        return status.st_size == layout.target_bytes and not is_link

    def write_shard(self, layout: ShardLayout, advance: Advance) -> Written:
        """Write a shard and read it back; one that an earlier run finished is compared with its source instead.

        Raises `OutputError` if it cannot be written, `CheckpointError` if the source cannot be read, and `VerifyError`
        if what was read back differs from what was written.
        """
        key = self.key(layout)
        if self.is_finished(layout) and (noted := self._noted(layout)):
            advance(self.work_bytes(layout))
            self._restrict(layout)
            return noted
        self.check_dropped(layout, advance)
        with self.source.fetched(layout.file, advance) as is_ours:
            if self.is_finished(layout):
                sums = self._sums()
                if not self.first_mismatch(layout, self.staging.finished_path(key), sums, advance):
                    told = self.source.fetched_bytes(layout.file) + layout.data_bytes()
                    advance(self.work_bytes(layout) - told)
                    self._restrict(layout)
                    return Written(sums.hashes, resumed=True)
            hashes = self._write(layout, key, advance, is_ours)
            self.staging.complete(key, layout.file, is_resumable=True)
        if self._takes_notes:
            self.staging.note(key, json.dumps(self._note(key, hashes)))
        return Written(hashes)

    def _restrict(self, layout: ShardLayout) -> None:
        """Remove permissions that the source no longer has from a reused shard, unless it is a hard link."""
        path = self.staging.finished_path(self.key(layout))
        status = path.stat()
        if status.st_nlink == 1 and not self.source.remote:
            beyond = status.st_mode & 0o077 & ~self.source.copied_mode(layout.file, status.st_gid)
            if beyond:
                with writing(layout.file), suppress(PermissionError):  # some file systems have no permissions
                    path.chmod(stat.S_IMODE(status.st_mode) & ~beyond)

    def check_dropped(self, layout: ShardLayout, advance: Advance) -> None:
        """Raise `AlteredPaddingError` if what is cut off is not what padding added, unless nothing is to be verified.

        `advance` gets no bytes; it is called because it raises if the work is to stop. The data is read again later,
        from the disk if the shard does not stay in memory.
        """
        if layout.unpads and self.options.verify != "none":
            expected = self.source.identities[layout.file]
            for mismatch in check_padding(layout, self.source.root, lambda _: advance(0), expected):
                raise AlteredPaddingError(
                    f"{mismatch}: its padding was altered, and unpadding would discard it; --verify none allows that"
                )

    @property
    def _takes_notes(self) -> bool:
        """Whether a later run needs notes of this one: to finish the checkpoint, or not to fetch files again."""
        return self.options.finishes or self.is_slice or self.source.remote is not None

    def _note(self, key: str, hashes: Hashes | None) -> dict[str, Any]:
        status = self.staging.finished(key)
        identity = asdict(FileIdentity.of(status)) if status else None
        return {"identity": identity, "verify": self.options.verify, "hashes": asdict(hashes) if hashes else None}

    def _noted(self, layout: ShardLayout) -> Written | None:
        """Return what was noted of a finished shard, if the file is the same and was verified and hashed as requested.

        Files from the hub were hashed: for them, the hash decides.
        """
        key = self.key(layout)
        try:
            note = json.loads((self.staging.noted(key) if self._takes_notes else None) or "null")
            hashes = Hashes(**note["hashes"]) if note["hashes"] else None
            is_same = note == self._note(key, hashes)
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        if self.source.remote:
            path = self.staging.finished_path(key)
            is_same = hashes is not None and file_sha256(path, layout.file) == hashes.sha256
        if not is_same or (self.is_hashed and hashes is None):
            return None
        return Written(hashes if self.is_hashed else None, resumed=True)

    @property
    def is_hashed(self) -> bool:
        """Whether every file is hashed."""
        return is_hashed(self.source, self.options)

    def _sums(self) -> Sums:
        return Sums(self.options.verify, hashed=self.is_hashed)

    def _write(self, layout: ShardLayout, key: str, advance: Advance, is_ours: bool) -> Hashes | None:
        """Write a shard and read it back; `is_ours` says that the source is a temporary copy."""
        sums, origin, path = self._sums(), self.source.root / layout.file, self.staging.unfinished_path(key)
        if layout.is_untouched and self._share(layout, origin, key, is_ours):
            advance(layout.target_bytes)
            if self.is_hashed and (mismatch := self.first_mismatch(layout, path, sums, advance)):
                raise VerifyError(str(mismatch))
            return sums.hashes
        transfer, expected = layout.transfer(), self.source.identities[layout.file]
        with open_file(origin, layout.file, expected) as source:
            prefix = target_prefix(transfer, source)
            with self.staging.create(key, layout.file, source.copied_mode(self.group)) as target:
                write_shard(transfer, source, target, sums, advance)
        if self.options.verify != "none":
            with open_file(path, layout.file) as target:
                for place in read_back(transfer, target, prefix, sums, advance):
                    raise VerifyError(f"{layout.file}: {place}: what was read back differs from what was written")
        return sums.hashes

    def first_mismatch(self, layout: ShardLayout, path: Path, sums: Sums, advance: Advance) -> Mismatch | None:
        """Compare every byte of a shard at `path` with what its source gives; return the first difference."""
        file, origin, expected = layout.file, self.source.root / layout.file, self.source.identities[layout.file]
        with open_file(origin, file, expected) as source, open_file(path, file) as target:
            return next(compare_data(layout.transfer(), source, target, advance, sums), None)

    def _share(self, layout: ShardLayout, origin: Path, key: str, is_ours: bool) -> bool:
        """Let an untouched shard share the source's data, by a hard link or a clone; False if it has to be copied."""
        link, folder, expected = self.options.link, self.staging.out_dir.parent, self.source.identities[layout.file]
        if (is_ours or link == "hardlink") and self.staging.link_from(Path(os.path.realpath(origin)), key, layout.file):
            with open_file(self.staging.unfinished_path(key), layout.file, expected):
                return True
        if link == "hardlink":
            raise OutputError(f"{layout.file}: cannot be hard-linked to {folder}; use --link auto")
        if link == "copy":
            return False
        with (
            open_file(origin, layout.file, expected) as source,
            self.staging.create(key, layout.file, source.copied_mode(self.group)) as target,
        ):
            is_shared = clone(source, target)
        if link == "reflink" and not is_shared:
            raise OutputError(f"{layout.file}: cannot be reflinked to {folder}; use --link auto")
        return is_shared


def is_hashed(source: Checkpoint, options: WriteOptions) -> bool:
    """Return whether every file is hashed: on request, for full verification, and if its bytes come from the hub."""
    return options.hash or options.verify == "full" or source.remote is not None
