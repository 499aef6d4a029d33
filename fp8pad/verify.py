"""Verify a converted checkpoint against its source: derive every file anew and compare it with what lies on disk."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path

from fp8pad.checkpoint.checkpoint import Checkpoint, read_checkpoint, read_record, read_unconverted
from fp8pad.checkpoint.compare import MAX_MISMATCHES, Mismatch, compare_files, compare_shard, compare_texts, sha256
from fp8pad.checkpoint.folder import is_other_form, read_text
from fp8pad.checkpoint.progress import Progress
from fp8pad.converted import Converted, converted_files
from fp8pad.parallel import run_all
from fp8pad.planning import plan_checkpoint
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.record import RECORD_FILE, CheckpointRecord, FileRecord, Policy

JOBS = 2


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """How many tensors were compared, and the first differences that were found."""

    tensors_checked: int
    mismatches: tuple[Mismatch, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing differs."""
        return not self.mismatches


def verify(model_dir: Path, out_dir: Path, progress: Progress) -> VerifyReport:
    """Compare every byte of the checkpoint `out_dir` with what converting `model_dir` gives.

    The plan is made anew from the source and the policy in fp8pad.json, so that a record that lies is a mismatch. A
    checkpoint without records must equal its source, and there must have been nothing to convert. Raises
    `CheckpointError` if either folder cannot be read as a checkpoint, and `RecordError` if fp8pad.json is missing
    or malformed.
    """
    source, converted = read_unconverted(model_dir), read_checkpoint(out_dir)
    record = read_record(converted)
    plan = plan_checkpoint(source.shards, source.configs, record.policy if record else Policy())
    design = converted_files(
        source, plan if record else _nothing_of(plan), *([record.fp8pad_version] if record else [])
    )
    mismatches = chain(
        [] if record or plan.changes_nothing else [Mismatch(RECORD_FILE, "file", "a record", "no such file")],
        _compare_names(design, converted),
        _compare_texts(design, converted, record),
        _compare_other_files(design, converted),
        _compare_shards(design, converted, progress),
    )
    return VerifyReport(
        tensors_checked=sum(len(shard.tensors) for shard in source.shards),
        mismatches=tuple(islice(mismatches, MAX_MISMATCHES)),
    )


def _nothing_of(plan: CheckpointPlan) -> CheckpointPlan:
    return replace(plan, tensors={}, modules={}, config_edits=())


def _compare_names(design: Converted, converted: Checkpoint) -> Iterator[Mismatch]:
    found = converted.identities.keys()
    for file in sorted(design.files.keys() - found):
        yield Mismatch(file, "file", f"{design.files[file].size} bytes", "no such file")
    for file in sorted(converted.texts.keys() - design.texts.keys()):
        yield Mismatch(file, "file", "no such file, as in the source", "an index")
    for file in converted.excluded:
        if is_other_form(file):
            yield Mismatch(file, "file", "no such file", "weights that converting leaves out")


def _compare_texts(design: Converted, converted: Checkpoint, record: CheckpointRecord | None) -> Iterator[Mismatch]:
    for file, text in converted.texts.items():
        if file in design.texts:
            yield from compare_texts(file, design.texts[file], text)
    if record and design.record:
        files = {file: _hashed(design, converted, file, record.files) for file in design.files}
        expected = replace(design.record, files=files).to_text()
        yield from compare_texts(RECORD_FILE, expected, read_text(converted.root, RECORD_FILE))
    elif record:
        yield Mismatch(RECORD_FILE, "file", "no record, since nothing is padded", "a record")


def _hashed(design: Converted, converted: Checkpoint, file: str, recorded: Mapping[str, FileRecord]) -> FileRecord:
    """Return what fp8pad.json should say of a file, with hashes where it has any."""
    entry = recorded.get(file)
    if entry is None or file not in converted.identities:
        return design.files[file]
    return replace(
        design.files[file],
        sha256=sha256(converted.root / file, file) if entry.sha256 else None,
        source_sha256=sha256(design.source.root / file, file) if entry.source_sha256 else None,
    )


def _compare_other_files(design: Converted, converted: Checkpoint) -> Iterator[Mismatch]:
    for file in design.source.other_files:
        if file in converted.identities:
            yield from compare_files(file, design.source.root / file, converted.root / file)


def _compare_shards(design: Converted, converted: Checkpoint, progress: Progress) -> Iterator[Mismatch]:
    layouts = [layout for layout in design.layouts if layout.file in converted.identities]
    progress.start("verifying", sum(layout.target.file_bytes - layout.target.data_start for layout in layouts))
    for mismatches in run_all(
        lambda layout, advance: compare_shard(layout, design.source.root, converted.root, advance),
        layouts,
        JOBS,
        progress,
    ):
        yield from mismatches
