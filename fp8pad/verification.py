"""Verify a converted checkpoint: its records, every padded byte, and, beside its source, every other byte.

What is right is what the records say. What fp8pad would do with the source today is a note at most: a checkpoint that
was published does not become wrong when a later version pads otherwise.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeAlias

from fp8pad.changed_files import changed_files, is_dangerous, notes_on_files
from fp8pad.checkpoint.checkpoint import Checkpoint, padding_mark, read_checkpoint, read_record
from fp8pad.checkpoint.compare import (
    MAX_MISMATCHES,
    Mismatch,
    check_padding,
    compare_files,
    compare_shard,
    compare_texts,
    header_differences,
)
from fp8pad.checkpoint.files import Advance, file_sha256
from fp8pad.checkpoint.layout import ShardLayout
from fp8pad.checkpoint.options import Workers
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.transfer import Hashes, Sums
from fp8pad.disagreements import disagreements, quantization_of
from fp8pad.errors import AlreadyPaddedError, CheckpointError, RecordError
from fp8pad.hub import opened
from fp8pad.original import Original, original_of
from fp8pad.parallel import work_on_all
from fp8pad.planning import plan_checkpoint
from fp8pad.record import FORMAT_VERSION, RECORD_FILE, CheckpointRecord, FileRecord, Policy

LOCAL_WORKERS = Workers()

# What is run for a file, and its bytes.
Check: TypeAlias = tuple[Callable[[Advance], list[Mismatch]], int]


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was checked, the first differences that were found, and what is worth knowing but not wrong.

    `model` is None where there was no source to compare with. `is_complete` is False where more differences may follow
    those in `mismatches`. `has_records` is False for an equal copy, and `files_hashed` counts files whose SHA-256 held.
    """

    out_dir: Path
    model: str | None
    tensors_checked: int
    files_hashed: int
    has_records: bool
    mismatches: tuple[Mismatch, ...] = ()
    notes: tuple[str, ...] = ()
    is_complete: bool = True

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return not self.mismatches

    def to_json(self) -> dict[str, Any]:
        """Return what `fp8pad verify --json` prints."""
        return {
            "format_version": FORMAT_VERSION,
            "out_dir": str(self.out_dir),
            "model": self.model,
            "ok": self.ok,
            "tensors_checked": self.tensors_checked,
            "files_hashed": self.files_hashed,
            "has_records": self.has_records,
            "mismatches": [asdict(mismatch) for mismatch in self.mismatches],
            "is_complete": self.is_complete,
            "notes": list(self.notes),
        }


def verify(
    model: str | os.PathLike[str] | None,
    out_dir: Path,
    progress: Progress,
    use_cache: bool = False,
    workers: Workers = LOCAL_WORKERS,
) -> VerifyReport:
    """Check `out_dir` against its own records and, if `model` is given, compare every logical byte with it.

    A model of the hub is fetched file by file; see `hub.opened`. A checkpoint without records is compared as a copy.
    Raises `CheckpointError` if either folder cannot be read as a checkpoint, `RecordError` if fp8pad.json is missing or
    malformed, or if there is nothing to compare with.
    """
    if model is None:
        return _verified(None, out_dir, workers, progress)
    with opened(model, read_checkpoint, use_cache=use_cache, progress=progress) as source:
        return _verified(source, out_dir, workers, progress)


def _verified(source: Checkpoint | None, out_dir: Path, workers: Workers, progress: Progress) -> VerifyReport:
    converted = read_checkpoint(out_dir)
    _check_source(source, converted)
    if source and not source.remote and set(source.excluded) & set(converted.other_files):  # --follow-links, perhaps
        source = replace(read_checkpoint(source.root, follow_links=True), name=source.name)
    record = read_record(converted)
    if record is None and source is None:
        raise RecordError(f"{out_dir}: has no {RECORD_FILE}; name the checkpoint that it has to equal as well")
    notes: list[str] = [*notes_on_files(converted), *_notes_on_plan(converted, record, source)]
    mismatches = chain(
        chain(disagreements(converted, record), _missing_hashes(record)) if record else (),
        _partition(changed_files(converted, _recorded_files(record, source)), notes),
        _partition(_differing_other_files(converted, source, record) if source else (), notes),
        _byte_differences(converted, record, source, notes, workers=workers, progress=progress),
    )
    found = tuple(islice(mismatches, MAX_MISMATCHES))
    return VerifyReport(
        out_dir=out_dir,
        model=None if source is None else str(source),
        tensors_checked=sum(len(shard.tensors) for shard in converted.shards),
        files_hashed=0 if found or record is None else sum(entry.sha256 is not None for entry in record.files.values()),
        has_records=record is not None,
        mismatches=found,
        notes=tuple(dict.fromkeys(notes)),
        is_complete=len(found) < MAX_MISMATCHES,
    )


def _check_source(source: Checkpoint | None, converted: Checkpoint) -> None:
    if source is None or (mark := padding_mark(source)) is None:
        return
    if padding_mark(converted):
        hint = f"name the checkpoint that {converted.root} was converted from, or {converted.root} alone"
    else:
        hint = f"the arguments are swapped: fp8pad verify {converted.root} {source}"
    raise AlreadyPaddedError(f"{source}: was padded by fp8pad itself ({mark}); {hint}")


def _recorded_files(record: CheckpointRecord | None, source: Checkpoint | None) -> Mapping[str, FileRecord]:
    """Return what there should be: by the record, or in an equal copy, which has none, by its source."""
    if record:
        return record.files
    sizes = {file: source.identities[file].size for file in source.other_files} if source else {}
    return {file: FileRecord(size, size) for file, size in sizes.items()}


def _partition(found: Iterable[Mismatch], notes: list[str], own_files: Collection[str] = ()) -> Iterator[Mismatch]:
    """Yield what an engine would load, run or obey, `own_files` among it; put the rest among the notes."""
    for mismatch in found:
        if mismatch.file in own_files or is_dangerous(mismatch.file):
            yield mismatch
        else:
            notes.append(str(mismatch))


def _differing_other_files(
    converted: Checkpoint, source: Checkpoint, record: CheckpointRecord | None
) -> Iterator[Mismatch]:
    rewritten = record.originals.keys() if record else set()
    for file in sorted((set(source.other_files) & set(converted.other_files)) - rewritten):
        with source.fetched(file):
            yield from compare_files(file, source.root / file, converted.root / file)


def _byte_differences(
    converted: Checkpoint,
    record: CheckpointRecord | None,
    source: Checkpoint | None,
    notes: list[str],
    *,
    workers: Workers,
    progress: Progress,
) -> Iterator[Mismatch]:
    try:
        original = original_of(converted, record)
    except CheckpointError:  # is among the disagreements already
        notes.append("no bytes were compared, since the records do not say how")
        return
    layouts = [layout.inverse(converted.prefixes[layout.file]) for layout in original.layouts]
    if source:
        yield from _text_differences(original, source)
        differing = [_header_differences(layout, source) for layout in original.layouts]
        yield from chain.from_iterable(differing)
        layouts = [layout for layout, found in zip(layouts, differing, strict=True) if not found]
    files = dict(record.files) if record else {}
    checks = [_shard_check(layout, converted, source, files.get(layout.file)) for layout in layouts]
    if source:  # shards are hashed while they are compared
        files = {file: entry for file, entry in files.items() if file not in {layout.file for layout in layouts}}
    checks += _hash_checks(converted, source, files)
    if record and not any(entry.sha256 for entry in record.files.values()):
        notes.append(f"{RECORD_FILE} holds no hashes: without the source, padded bytes alone can be checked")
    progress.start("verifying", sum(num_bytes for _, num_bytes in checks))
    if source and source.remote and workers.executor != "local":
        raise CheckpointError(f"{source}: a cluster works on folders that all its nodes see, not on the hub")
    for found in work_on_all(_run_check, checks, workers, progress):
        yield from _partition(found, notes, own_files=original.sizes)


def _shard_check(
    layout: ShardLayout, converted: Checkpoint, source: Checkpoint | None, entry: FileRecord | None
) -> Check:
    if source is None:
        return partial(check_padding, layout, converted.root.absolute()), layout.resized_bytes
    files = source.for_writing(), converted.root.absolute()
    return partial(_compare_shard, layout, *files, entry), layout.target.file_bytes - layout.target.data_start


def _compare_shard(
    layout: ShardLayout, source: Checkpoint, out_dir: Path, entry: FileRecord | None, advance: Advance
) -> list[Mismatch]:
    sums = Sums("none", hashed=entry is not None and entry.sha256 is not None)
    with source.fetched(layout.file):
        found = compare_shard(layout, source.root, out_dir, advance, sums)
    return found or list(_hash_differences(layout.file, entry, sums.hashes))


def _run_check(check: Check, advance: Advance) -> list[Mismatch]:
    return check[0](advance)


def _hash_differences(file: str, entry: FileRecord | None, found: Hashes | None) -> Iterator[Mismatch]:
    if entry and found:
        recorded = ("sha256", entry.sha256, found.sha256), ("source_sha256", entry.source_sha256, found.source_sha256)
        yield from (Mismatch(file, key, str(expected), got) for key, expected, got in recorded if expected != got)


def _text_differences(original: Original, source: Checkpoint) -> Iterator[Mismatch]:
    """Compare index and config.json of the source with what unpadding would give."""
    for file in sorted(original.texts.keys() | source.texts.keys()):
        if file not in original.texts or file not in source.texts:
            expected, got = ("a file" if file in texts else "no such file" for texts in (source.texts, original.texts))
            yield Mismatch(file, "file", f"{expected}, as in {source}", got)
        else:
            yield from compare_texts(file, source.texts[file], original.texts[file])


def _header_differences(layout: ShardLayout, source: Checkpoint) -> list[Mismatch]:
    """Compare a shard of the source with what unpadding would give, by its header."""
    shard = next((shard for shard in source.shards if shard.file == layout.file), None)
    if shard is None:
        return [Mismatch(layout.file, "file", f"no such file, as in {source}", "a shard")]
    found = list(header_differences(shard, layout.target))
    if not found and layout.prefix != source.prefixes[layout.file]:
        return [Mismatch(layout.file, "header", f"the bytes of {source}", "another spelling of the same header")]
    return found


def _missing_hashes(record: CheckpointRecord) -> Iterator[Mismatch]:
    """Yield files without the hashes that others have: all files of a checkpoint are hashed, or none is."""
    if any(entry.sha256 or entry.source_sha256 for entry in record.files.values()):
        for file, entry in record.files.items():
            if not (entry.sha256 and entry.source_sha256):
                yield Mismatch(RECORD_FILE, f"files: {file}", "both hashes, as other files have", "not both")


def _hash_checks(converted: Checkpoint, source: Checkpoint | None, files: Mapping[str, FileRecord]) -> Iterator[Check]:
    for file, entry in files.items():
        if file in converted.identities and entry.sha256 and entry.size == converted.identities[file].size:
            yield _hash_check(converted, file, "sha256", entry.sha256)
        if source and file in source.identities and entry.source_sha256:
            yield _hash_check(source, file, "source_sha256", entry.source_sha256)


def _hash_check(checkpoint: Checkpoint, file: str, key: str, recorded: str) -> Check:
    num_bytes = checkpoint.identities[file].size
    return partial(_compare_hash, checkpoint.for_writing(), Mismatch(file, key, recorded, ""), num_bytes), num_bytes


def _compare_hash(checkpoint: Checkpoint, expected: Mismatch, num_bytes: int, advance: Advance) -> list[Mismatch]:
    with checkpoint.fetched(expected.file):
        found = file_sha256(checkpoint.root / expected.file, expected.file)
    advance(num_bytes)
    return [] if found == expected.expected else [replace(expected, got=found)]


def _notes_on_plan(converted: Checkpoint, record: CheckpointRecord | None, source: Checkpoint | None) -> Iterator[str]:
    """Yield how converting the source would differ today."""
    if source is None:
        return
    try:
        plan = plan_checkpoint(source.shards, source.configs, record.policy if record else Policy())
        quantization = quantization_of(converted)
    except CheckpointError as error:
        yield f"{source}: cannot be planned today: {error}"
        return
    if record is None:
        if not plan.changes_nothing:
            yield f"{converted.root}: was not converted; converting would pad {len(plan.tensors)} tensors"
    elif (plan.tensors, plan.modules) != (record.tensors, quantization.modules if quantization else {}):
        yield f"{converted.root}: fp8pad {record.fp8pad_version} padded it in another way than this version would"
