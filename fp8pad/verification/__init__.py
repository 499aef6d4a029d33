"""Verify a converted checkpoint: its records, every padded byte, and, if its source is given, every other byte.

The records say what is correct. If this version would pad the source differently, that is only a note: a published
checkpoint does not become wrong when a later version pads differently. But if this version edits config.json too, an
edit of a key that it would not edit is a mismatch: nothing else shows whether it is harmless.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.compare import MAX_MISMATCHES, Mismatch
from fp8pad.checkpoint.options import Workers
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.read import read_checkpoint
from fp8pad.errors import AlreadyPaddedError, CheckpointError, RecordError
from fp8pad.hub import opened
from fp8pad.planning import plan_checkpoint
from fp8pad.quantization_config import ModuleRecord
from fp8pad.record import CONFIG_FILE, RECORD_FILE, REPORT_VERSION, CheckpointRecord, FileRecord, Policy
from fp8pad.text import counted
from fp8pad.verification.changed_files import changed_files, is_dangerous, is_wrong, notes_on_files
from fp8pad.verification.checks import byte_differences
from fp8pad.verification.disagreements import examine, quantization_of
from fp8pad.verification.original import Original, missing_hashes, original_of, wrong_hashes

LOCAL_WORKERS = Workers()
NO_HASHES = f"{RECORD_FILE} holds no hashes (`convert --hash`): without the source, only padded bytes can be checked"


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was checked, the first differences that were found, and notes on what is not wrong but worth knowing.

    `model` is None if there was no source to compare with. `is_complete` is False if there may be more differences than
    `mismatches`. `has_records` is False for a plain copy. `files_hashed` counts the files that were hashed and match
    their recorded SHA-256.
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
            "format_version": REPORT_VERSION,
            "out_dir": str(self.out_dir),
            "model": self.model,
            "ok": self.ok,
            "tensors_checked": self.tensors_checked,
            "files_hashed": self.files_hashed,
            "has_records": self.has_records,
            "mismatches": [mismatch.to_json() for mismatch in self.mismatches],
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
    examined = _examined(out_dir)
    if model is None:
        return _report(examined, None, workers, progress)
    with opened(model, read_checkpoint, use_cache=use_cache, progress=progress) as source:
        report = _report(examined, source, workers, progress)
        record, modules = examined.record, examined.modules
        del examined  # frees all headers of `out_dir`: planning needs as much memory
        mismatches, notes = _plan_differences(source, out_dir, record, modules)
        found = (*report.mismatches, *mismatches)[:MAX_MISMATCHES]
        files_hashed = 0 if found else report.files_hashed
        return replace(report, mismatches=found, files_hashed=files_hashed, notes=(*report.notes, *notes))


@dataclass(frozen=True, slots=True)
class _Examined:
    """A converted checkpoint and what its records say; `original` is None if they do not say how to compare it."""

    converted: Checkpoint
    record: CheckpointRecord | None
    faults: tuple[Mismatch, ...]
    original: Original | None

    @property
    def modules(self) -> Mapping[str, ModuleRecord]:
        """The modules that config.json names to the runtime; empty if there are faults."""
        quantization = None if self.faults else quantization_of(self.converted)
        return quantization.modules if quantization else {}


def _examined(out_dir: Path) -> _Examined:
    converted = read_checkpoint(out_dir)
    record = converted.read_record()
    if record is None:
        return _Examined(converted, None, (), original_of(converted, None))
    faults, original = examine(converted, record)
    if record.has_hashes:
        faults += [*missing_hashes(record), *(wrong_hashes(record, original) if original else ())]
    if original:  # its versions take less memory
        converted, record = original.converted, original.record or record
    return _Examined(converted, record, tuple(faults), original)


def _report(examined: _Examined, source: Checkpoint | None, workers: Workers, progress: Progress) -> VerifyReport:
    converted, record, original = examined.converted, examined.record, examined.original
    files = record.files if record else {}
    if record is None and source is None:
        raise RecordError(f"{converted.root}: has no {RECORD_FILE}; to compare it with the original, name that first")
    _check_source(source, converted)
    if source and not source.remote and set(source.excluded) & set(converted.other_files):  # perhaps by --follow-links
        source = replace(read_checkpoint(source.root, follow_links=True), name=source.name)
    edits_config = record and (record.config_edits or examined.modules)
    copies = _sizes_of_copy(source.with_edited_config() if source and edits_config else source)
    unproven = {file for file in converted.identities if source and is_dangerous(file)}  # the source has to have it too
    expected = copies | {file: sizes for file, sizes in files.items() if file not in unproven}
    differences, files_hashed = list(changed_files(converted, expected)), 0
    notes = [*notes_on_files(converted)]
    if original is None:
        notes.append("no bytes were compared, since the records do not say how")
    elif len(examined.faults) < MAX_MISMATCHES:
        compared, files_hashed = byte_differences(original, source, workers, progress)
        differences += compared
    if record and not source and not record.has_hashes:
        notes.append(NO_HASHES)
    named = {*expected, *files, *converted.text_files, *converted.shard_files}
    found = [*examined.faults, *(each for each in differences if is_wrong(each.file, named))]
    notes += [str(each) for each in differences if not is_wrong(each.file, named)]
    return VerifyReport(
        out_dir=converted.root,
        model=None if source is None else str(source),
        tensors_checked=sum(len(shard.tensors) for shard in converted.shards),
        files_hashed=0 if found else files_hashed,
        has_records=record is not None,
        mismatches=tuple(found[:MAX_MISMATCHES]),
        notes=tuple(dict.fromkeys(notes)),
        is_complete=len(found) < MAX_MISMATCHES,
    )


def _check_source(source: Checkpoint | None, converted: Checkpoint) -> None:
    if source is None or (mark := source.padding_mark) is None:
        return
    if converted.padding_mark:
        hint = f"name the original of {converted.root} instead, or {converted.root} alone"
    else:
        hint = f"the arguments are swapped: fp8pad verify {converted.root} {source}"
    raise AlreadyPaddedError(f"{source}: is itself padded by fp8pad ({mark}); {hint}")


def _sizes_of_copy(source: Checkpoint | None) -> dict[str, FileRecord]:
    """Return the other files that must be there because the source has them, whatever the record says."""
    sizes = {file: source.identities[file].size for file in source.other_files} if source else {}
    return {file: FileRecord(size, size) for file, size in sizes.items()}


def _plan_differences(
    source: Checkpoint, out_dir: Path, record: CheckpointRecord | None, modules: Mapping[str, ModuleRecord]
) -> tuple[list[Mismatch], list[str]]:
    """Return recorded config edits that this version would not make, and notes on how else its plan differs.

    If this version would make no edits, as for a model that it cannot absorb, they are notes: it may know less of it.
    """
    edits, notes = set[str](), list[str]()
    try:
        plan = plan_checkpoint(source.shards, source.configs, record.policy if record else Policy())
    except CheckpointError as error:
        notes.append(f"{source}: cannot be planned by this version: {error}")
    else:
        edits = {edit.key for edit in plan.config_edits}
        if record is None and not plan.changes_nothing:
            notes.append(f"{out_dir}: was not converted; converting would pad {counted(len(plan.tensors), 'tensor')}")
        elif record and (plan.tensors, plan.modules) != (record.tensors, modules):
            notes.append(f"{out_dir}: fp8pad {record.fp8pad_version} padded it differently than this version would")
    strange = [edit for edit in (record.config_edits if record else ()) if edit.key not in edits]
    if edits:
        expected = "no edit, as this version would make none"
        return [Mismatch(CONFIG_FILE, edit.key, expected, f"{edit.old} to {edit.new}") for edit in strange], notes
    changed = (f"{edit.key} from {edit.old} to {edit.new}" for edit in strange)
    return [], [*notes, *(f"{out_dir}: config.json: this version would not change {change}" for change in changed)]
