"""What fp8pad did to a checkpoint, according to its records, headers and text files alone."""

import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.compare import Mismatch
from fp8pad.checkpoint.folder import read_text
from fp8pad.checkpoint.read import read_checkpoint
from fp8pad.errors import CheckpointError, RecordError
from fp8pad.planning import plan_checkpoint
from fp8pad.quantization_config import QuantizationRecord
from fp8pad.reading import to_json
from fp8pad.record import RECORD_FILE, REPORT_VERSION, CheckpointRecord, Policy, parse_record
from fp8pad.summary import headline
from fp8pad.verification.changed_files import changed_files, is_wrong, notes_on_files
from fp8pad.verification.disagreements import examine, quantization_of

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Inspection:
    """The records of a checkpoint, None if one is missing or cannot be read, and where they disagree.

    `record` is fp8pad.json, `quantization` is what config.json tells the runtime (None if the checkpoint is only
    absorbed, or if it cannot be read); `is_legible` is False if one of the two cannot be read. `size_bytes` counts all
    files that are not excluded, fp8pad.json included. `disagreements` and `notes` are sentences; a note is not a fault.
    """

    path: Path
    record: CheckpointRecord | None = field(repr=False)
    quantization: QuantizationRecord | None = field(repr=False)
    size_bytes: int
    disagreements: tuple[str, ...]
    notes: tuple[str, ...]
    is_legible: bool = True

    @property
    def source_bytes(self) -> int:
        """Bytes of the source's files, according to the record; 0 without one."""
        return sum(file.source_size for file in self.record.files.values()) if self.record else 0

    def to_json(self) -> dict[str, Any]:
        """Return what `fp8pad inspect --json` prints."""
        document: dict[str, Any] = {
            "format_version": REPORT_VERSION,
            "path": str(self.path),
            "ok": not self.disagreements,
            "disagreements": list(self.disagreements),
            "notes": list(self.notes),
            "needs_runtime": self.quantization is not None,
        }
        if self.record:
            document |= {
                "fp8pad_version": self.record.fp8pad_version,
                "policy": self.record.policy.to_json(),
                "source_bytes": self.source_bytes,
                "size_bytes": self.size_bytes,
                "tensors": {name: to_json(tensor) for name, tensor in self.record.tensors.items()},
                "config_edits": [asdict(edit) for edit in self.record.config_edits],
            }
        return document


def inspect_checkpoint(path: Path) -> Inspection:
    """Read the records of the checkpoint folder `path`.

    Raises `RecordError`, with what `plan` would find, if nothing marks it as written by fp8pad, and `CheckpointError`
    if it cannot be read as a checkpoint.
    """
    converted = read_checkpoint(path)
    if converted.padding_mark is None:
        raise RecordError(
            f"{path}: was not padded by fp8pad: {_planned(converted)}; see `fp8pad plan {shlex.quote(str(path))}`"
        )
    faults: list[str] = []
    record = _attempt(lambda: parse_record(read_text(path, RECORD_FILE)), faults)
    unread: list[str] = []
    quantization = _attempt(lambda: quantization_of(converted), unread)
    found: list[Mismatch] = []
    notes: list[str] = []
    if record:
        found, _ = examine(converted, record)
        for changed in changed_files(converted, record.files):
            if is_wrong(changed.file, record.files):
                found.append(changed)
            else:
                notes.append(str(changed))
    return Inspection(
        path=path,
        record=record,
        quantization=quantization,
        size_bytes=sum(identity.size for identity in converted.identities.values()),
        disagreements=(*faults, *([] if record else unread), *map(str, found)),
        notes=(*notes, *notes_on_files(converted)),
        is_legible=not (faults or unread),
    )


def _planned(source: Checkpoint) -> str:
    try:
        return f"converting would find {headline(plan_checkpoint(source.shards, source.configs, Policy()))}"
    except CheckpointError as error:
        return f"converting would refuse it: {error}"


def _attempt(parse: Callable[[], T], faults: list[str]) -> T | None:
    try:
        return parse()
    except CheckpointError as error:
        faults.append(str(error))
        return None
