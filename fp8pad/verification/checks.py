"""Comparing one file of a converted checkpoint with all that is known of it: source, padding and recorded hashes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.compare import Mismatch, check_padding, compare_files, compare_shard
from fp8pad.checkpoint.files import Advance, file_sha256
from fp8pad.checkpoint.layout import ShardLayout
from fp8pad.checkpoint.transfer import Hashes, Sums
from fp8pad.hub import SentCheckpoint


@dataclass(frozen=True, slots=True)
class FileCheck:
    """What is known of a file: the `layout` of a shard, recorded hashes, and whether the source's is to be equal.

    It tells `advance` of `num_bytes`.
    """

    file: str
    layout: ShardLayout | None
    sha256: str | None
    source_sha256: str | None
    is_copy: bool
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Checker:
    """Checks files of `out_dir`, against those of their `source` if there is one."""

    source: SentCheckpoint | None
    out_dir: str

    def __call__(self, check: FileCheck, advance: Advance) -> tuple[Mismatch, ...]:
        """Return the first differences of a file, and none if there is none."""
        told = 0

        def tell(num_bytes: int) -> None:
            nonlocal told
            told += num_bytes
            advance(num_bytes)

        if self.source is None:
            found = tuple(self._alone(check, tell))
        else:
            with self.source.opened() as source, source.fetched(check.file, tell):
                found = tuple(self._beside(check, source, tell))
        advance(max(0, check.num_bytes - told))
        return found

    def _alone(self, check: FileCheck, advance: Advance) -> Iterator[Mismatch]:
        """Check padding, and the recorded hash."""
        if check.layout:
            yield from check_padding(check.layout, Path(self.out_dir), advance)
        if check.sha256:
            yield from _hash_differences(check, Hashes(file_sha256(Path(self.out_dir, check.file), check.file), ""))

    def _beside(self, check: FileCheck, source: Checkpoint, advance: Advance) -> Iterator[Mismatch]:
        """Compare all bytes; those of shards are hashed in passing, if hashes are recorded."""
        before, after = source.root / check.file, Path(self.out_dir, check.file)
        if check.layout:
            sums = Sums("none", hashed=check.sha256 is not None)
            found = compare_shard(check.layout, source.root, Path(self.out_dir), advance, sums)
            yield from found or _hash_differences(check, sums.hashes)
        elif check.is_copy and (found := list(compare_files(check.file, before, after))):
            yield from found
        elif check.sha256:
            digest = file_sha256(after, check.file)
            source_digest = digest if check.is_copy else file_sha256(before, check.file) if check.source_sha256 else ""
            yield from _hash_differences(check, Hashes(digest, source_digest))


def _hash_differences(check: FileCheck, found: Hashes | None) -> Iterator[Mismatch]:
    """Compare hashes with those that are recorded; an empty one was not worked out."""
    if found and found.sha256 != check.sha256:
        yield Mismatch(check.file, "sha256", str(check.sha256), found.sha256)
    if found and found.source_sha256 not in ("", check.source_sha256):
        yield Mismatch(check.file, "source_sha256", str(check.source_sha256), found.source_sha256)
