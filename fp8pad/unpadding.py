"""Unpad a checkpoint: the exact inverse of converting, according to fp8pad.json."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.compare import Mismatch
from fp8pad.checkpoint.contents import Contents, Text, contents_of
from fp8pad.checkpoint.destination import Replaced
from fp8pad.checkpoint.files import file_sha256
from fp8pad.checkpoint.moving import Hashes
from fp8pad.checkpoint.options import WriteOptions
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.read import read_checkpoint
from fp8pad.converted import check_folders
from fp8pad.errors import RecordError, VerifyError
from fp8pad.record import RECORD_FILE, REPORT_VERSION, CheckpointRecord
from fp8pad.staged import staged
from fp8pad.verification import NO_HASHES
from fp8pad.verification.changed_files import changed_files, is_dangerous
from fp8pad.verification.disagreements import examine
from fp8pad.verification.original import Original


@dataclass(frozen=True, slots=True)
class UnpadReport:
    """What was restored: the folder, the number of tensors that were cut, and the files that were not copied.

    `resumed` are shards that an earlier run finished, `replaced` is what was at `restored_dir` before. `notes` are
    sentences about what was added, edited or removed since the conversion and what happens to it, about what could not
    be checked, and about what is left next to `restored_dir`. If `was_complete`, nothing was written.
    """

    restored_dir: Path
    tensors_unpadded: int
    excluded: tuple[str, ...]
    resumed: tuple[str, ...]
    replaced: Replaced | None = None
    notes: tuple[str, ...] = ()
    was_complete: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return what `fp8pad unpad --json` prints."""
        return {
            "format_version": REPORT_VERSION,
            "restored_dir": str(self.restored_dir),
            "tensors_unpadded": self.tensors_unpadded,
            "files_left_out": list(self.excluded),
            "files_resumed": list(self.resumed),
            "notes": list(self.notes),
            **({"was_complete": True} if self.was_complete else {}),
            **(self.replaced.to_json() if self.replaced else {}),
        }


def unpad(out_dir: Path, restored_dir: Path, options: WriteOptions, progress: Progress) -> UnpadReport:
    """Write the checkpoint that `out_dir` was converted from to `restored_dir`.

    Shards, index and config.json are those of the source byte for byte; if fp8pad.json has hashes of the source,
    every byte is read back and hashed unless `options` ask for no verification. Raises `RecordError` if fp8pad.json is
    missing, malformed or does not fit the files; see `convert` for other errors.
    """
    converted = read_checkpoint(out_dir)
    record = converted.read_record()
    if record is None:
        raise RecordError(f"{out_dir}: has no {RECORD_FILE}; a checkpoint that fp8pad did not change is the original")
    faults, original = examine(converted, record)
    if faults or original is None:
        raise RecordError(f"{out_dir}: {faults[0]}")
    contents, shards = _contents(original, record), converted.shard_files
    changed = [found for found in changed_files(converted, record.files) if found.file not in record.restored]
    for found in changed:
        if found.file in record.files and found.file not in converted.identities and is_dangerous(found.file):
            raise RecordError(f"{out_dir}: {found}")
    is_hashed = record.has_hashes and options.verify == "padded"
    with staged(contents, restored_dir, replace(options, verify="full") if is_hashed else options) as out:
        hashes = out.write_files(progress)
        # Other files may have been edited since: they are compared only on request.
        known = {file: each.sha256 for file, each in hashes.items() if file in shards or options.verify == "full"}
        known |= {file: text.sha256 for file, text in contents.texts.items()}
        _check_hashes(out_dir, record, known)
        out.write_texts()
        replaced = out.publish()
    changed += _edited(record, contents.source.other_files, hashes)
    unchecked = () if record.has_hashes else (NO_HASHES,)
    notes = (*_notes_on_changed(changed, converted, record), *_notes_on_card(converted, record), *unchecked, *out.notes)
    return UnpadReport(
        restored_dir=restored_dir,
        tensors_unpadded=len(record.tensors),
        excluded=converted.excluded,
        resumed=out.resumed,
        replaced=replaced,
        notes=notes,
        was_complete=out.was_complete,
    )


def _contents(original: Original, record: CheckpointRecord) -> Contents:
    """Return the files to write: the original model card, if there was one, and the other files as they are."""
    without = {RECORD_FILE, *record.restored}
    other_files = tuple(file for file in original.converted.other_files if file not in without)
    texts = {file: Text.of(text) for file in record.restored if (text := record.originals[file])}
    texts |= {file: Text.of(original.text(file)) for file in original.converted.text_files}
    source = replace(original.converted, other_files=other_files)
    check_folders(source, texts)
    return contents_of(source, original.layouts, texts)


def _edited(record: CheckpointRecord, files: Iterable[str], hashes: Mapping[str, Hashes]) -> Iterator[Mismatch]:
    """Yield a mismatch for each other file whose hash, if it is in `hashes`, is not the recorded one."""
    for file in files:
        expected = record.files[file].sha256 if file in record.files and file in hashes else None
        if expected and hashes[file].sha256 != expected:
            yield Mismatch(file, "sha256", expected, hashes[file].sha256)


def _notes_on_changed(changed: Iterable[Mismatch], converted: Checkpoint, record: CheckpointRecord) -> Iterator[str]:
    """Yield one note per changed file; files that are excluded and not recorded are reported as excluded anyway."""
    for file, found in {found.file: found for found in changed}.items():
        if file in converted.other_files:
            yield f"{found}: it is copied unchanged"
        elif file in record.files:
            yield f"{found}: it is not restored"


def _notes_on_card(converted: Checkpoint, record: CheckpointRecord) -> Iterator[str]:
    """Yield a note if the model card was edited, since the old one is restored; without hashes, by its size alone."""
    for file in record.restored & converted.identities.keys() & record.files.keys():
        written = record.files[file]
        is_edited = converted.identities[file].size != written.size
        if not is_edited and written.sha256:
            is_edited = file_sha256(converted.root / file, file) != written.sha256
        if is_edited:
            yield f"{file}: was edited since it was converted; the card from before converting was restored"


def _check_hashes(out_dir: Path, record: CheckpointRecord, restored: Mapping[str, str]) -> None:
    for file, sha256 in restored.items():
        expected = record.files[file].source_sha256 if file in record.files else None
        if expected and sha256 != expected:
            raise VerifyError(f"{out_dir}: {file}: sha256: expected {expected}, got {sha256}")
