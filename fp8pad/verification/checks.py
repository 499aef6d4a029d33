"""Compare a converted checkpoint with what it should be: texts and headers first, then every file byte by byte.

What a file should be is known from the source, if it is given, from the record, and from the rules of padding.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.compare import (
    MAX_MISMATCHES,
    Mismatch,
    check_padding,
    compare_data,
    compare_files,
    header_differences,
    text_differences,
)
from fp8pad.checkpoint.files import Advance, file_sha256, open_file
from fp8pad.checkpoint.headers import LENGTH_BYTES
from fp8pad.checkpoint.layout import ShardLayout
from fp8pad.checkpoint.moving import Sums, shard_hashes
from fp8pad.checkpoint.options import Workers
from fp8pad.checkpoint.progress import Progress
from fp8pad.hub import SentCheckpoint
from fp8pad.parallel import run_on_workers
from fp8pad.verification.original import Original


@dataclass(frozen=True, slots=True)
class FileCheck:
    """What is known of a file: the `layout` of a shard, recorded hashes, and whether it must equal the source's.

    The check reports `num_bytes` to `advance`.
    """

    file: str
    layout: ShardLayout | None
    sha256: str | None
    source_sha256: str | None
    is_copy: bool
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Checker:
    """Checks files of `out_dir`, against those of the `source` if there is one."""

    source: SentCheckpoint | None
    out_dir: str

    def __call__(self, check: FileCheck, advance: Advance) -> tuple[Mismatch, ...]:
        """Return the first differences of a file; empty if there are none."""
        told = 0

        def tell(num_bytes: int) -> None:
            nonlocal told
            told += num_bytes
            advance(num_bytes)

        if self.source is None:
            found = tuple(self._without_source(check, tell))
        else:
            with self.source.opened() as source, source.fetched(check.file, tell):
                found = tuple(self._with_source(check, source, tell))
        advance(max(0, check.num_bytes - told))
        return found

    def _without_source(self, check: FileCheck, advance: Advance) -> Iterator[Mismatch]:
        """Check padding and the recorded hashes: that of the source's shard too, which unpadding would give."""
        path = Path(self.out_dir, check.file)
        if check.layout:
            yield from check_padding(check.layout, Path(self.out_dir), advance)
        if check.layout and check.sha256:
            with open_file(path, check.file) as shard:
                back = shard_hashes(check.layout.transfer(), shard)
            if back:
                yield from _hash_differences(check, back.source_sha256, back.sha256)
        elif check.sha256:
            yield from _hash_differences(check, file_sha256(path, check.file))

    def _with_source(self, check: FileCheck, source: Checkpoint, advance: Advance) -> Iterator[Mismatch]:
        """Compare all bytes with the source's; shards are hashed in the same pass, if hashes are recorded."""
        before, after = source.root / check.file, Path(self.out_dir, check.file)
        if check.layout:
            sums = Sums("none", hashed=check.sha256 is not None)
            with open_file(before, check.file) as original, open_file(after, check.file) as padded:
                differences = compare_data(check.layout.transfer(back=True), original, padded, advance, sums)
                found = list(islice(differences, MAX_MISMATCHES))
            yield from found
            if not found and (hashes := sums.hashes):
                yield from _hash_differences(check, hashes.sha256, hashes.source_sha256)
        elif check.is_copy and (found := list(compare_files(check.file, before, after))):
            yield from found
        elif check.sha256:
            digest = file_sha256(after, check.file)
            own_digest = file_sha256(before, check.file) if check.source_sha256 and not check.is_copy else None
            yield from _hash_differences(check, digest, digest if check.is_copy else own_digest)


def byte_differences(
    original: Original, source: Checkpoint | None, workers: Workers, progress: Progress
) -> tuple[list[Mismatch], int]:
    """Return where files differ from what the source or the record says, and how many match their recorded hash.

    `original` is the source as the record describes it, `source` the real one, if it is given. A shard whose header
    differs is not compared further.
    """
    found: list[Mismatch] = []
    layouts = {layout.file: layout for layout in original.layouts}
    if source:
        found += _text_differences(original, source)
        for layout in original.layouts:
            if differences := _header_differences(layout, original.converted, source):
                found += differences
                del layouts[layout.file]
    checks = list(_checks(original, source, layouts))
    progress.start("verifying", sum(check.num_bytes for check in checks))
    checker = Checker(SentCheckpoint.of(source) if source else None, str(original.converted.root.absolute()))
    results = run_on_workers(checker, checks, workers, progress)
    num_hashed = sum(check.sha256 is not None and not result for check, result in zip(checks, results, strict=True))
    return [*found, *chain.from_iterable(results)], num_hashed


def _checks(original: Original, source: Checkpoint | None, layouts: Mapping[str, ShardLayout]) -> Iterator[FileCheck]:
    """Yield the check of each file; shards come first, since they are large."""
    converted, record = original.converted, original.record
    copies = set(source.other_files) - (record.restored if record else set()) if source else set()
    for file in (*sorted(layouts), *sorted(converted.identities.keys() - converted.shard_files)):
        layout, size = layouts.get(file), converted.identities[file].size
        entry = record.files.get(file) if record else None
        sha256, source_sha256 = (entry.sha256, entry.source_sha256) if entry and entry.size == size else (None, None)
        if source and file not in source.identities:  # a model card may have been added
            source_sha256 = None
        num_bytes = size + (source.fetched_bytes(file) if source else 0)
        if layout and not source and not sha256:  # only what was padded is read
            num_bytes = sum(tensor.num_bytes for tensor in layout.header.tensors if tensor.name in layout.tensors)
        if layout or sha256 or file in copies:
            yield FileCheck(file, layout, sha256, source_sha256, file in copies, num_bytes)


def _text_differences(original: Original, source: Checkpoint) -> Iterator[Mismatch]:
    """Compare index and config.json of the source with what unpadding would give."""
    before, after = source.text_files, original.converted.text_files
    for file in sorted({*before, *after}):
        if file not in before or file not in after:
            expected, got = ("a file" if file in there else "no such file" for there in (before, after))
            yield Mismatch(file, "file", f"{expected}, as in {source}", got)
        elif not source.has_text(file, found := original.text(file)):
            yield from text_differences(file, source.text(file), found)


def _header_differences(layout: ShardLayout, converted: Checkpoint, source: Checkpoint) -> list[Mismatch]:
    """Compare the header of a shard of the source with the one that unpadding would give."""
    shard = next((shard for shard in source.shards if shard.file == layout.file), None)
    if shard is None:
        return [Mismatch(layout.file, "file", f"no such file, as in {source}", "a shard")]
    logical, prefix = layout.other()
    found = list(header_differences(shard, logical))
    text = converted.header_text(layout.file) if layout.is_untouched else prefix[LENGTH_BYTES:]
    if not found and text != source.header_text(layout.file):
        return [Mismatch(layout.file, "header", f"the bytes of {source}", "another spelling of the same header")]
    return found


def _hash_differences(check: FileCheck, sha256: str, source_sha256: str | None = None) -> Iterator[Mismatch]:
    """Compare hashes with the recorded ones, that of the source, if it is known, only if the other is right."""
    if sha256 != check.sha256:
        yield Mismatch(check.file, "sha256", str(check.sha256), sha256)
    elif source_sha256 not in (None, check.source_sha256):
        yield Mismatch(check.file, "source_sha256", str(check.source_sha256), str(source_sha256))
