"""Unpad a checkpoint: the exact inverse of converting, from what fp8pad.json says."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fp8pad.blueprint import restored_index
from fp8pad.checkpoint.comparison import header_differences
from fp8pad.checkpoint.folder import INDEX_FILE
from fp8pad.checkpoint.headers import LENGTH_BYTES, parse_header
from fp8pad.checkpoint.layout import ShardLayout, logical_shard, shard_layout
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.source import CONFIG_FILE, Source, read_checkpoint, read_record
from fp8pad.checkpoint.writing import Hashes
from fp8pad.errors import RecordError, VerifyError
from fp8pad.publication import Draft, WriteOptions, publish
from fp8pad.record import RECORD_FILE, CheckpointRecord
from fp8pad.tensors import ShardHeader


@dataclass(frozen=True, slots=True)
class UnpadReport:
    """What was restored: the folder, how many tensors are smaller again, the files that did not come along."""

    restored_dir: Path
    tensors_unpadded: int
    left_out: tuple[str, ...]
    resumed: tuple[str, ...]


def unpad(out_dir: Path, restored_dir: Path, options: WriteOptions, progress: Progress) -> UnpadReport:
    """Write the checkpoint that `out_dir` was converted from to `restored_dir`.

    Shards, index and config.json are those of the source byte for byte. Raises `RecordError` if fp8pad.json is missing,
    malformed or does not fit the shards; see `publication.publish` for the rest.
    """
    converted = read_checkpoint(out_dir)
    record = read_record(converted)
    if record is None:
        raise RecordError(f"{out_dir}: has no {RECORD_FILE}; only a checkpoint that fp8pad padded can be unpadded")
    _check_complete(converted, record)
    layouts = tuple(_layout(shard, record) for shard in converted.shards)
    texts = _texts(converted, record, [layout.logical for layout in layouts])

    def checked_texts(hashes: Mapping[str, Hashes]) -> Mapping[str, str]:
        _check_hashes(record, hashes)
        return texts

    side_files = tuple(file for file in converted.side_files if file != RECORD_FILE)
    draft = Draft(converted, layouts, side_files, checked_texts, unpads=True)
    published = publish(draft, restored_dir, options, progress)
    return UnpadReport(published.out_dir, len(record.tensors), converted.left_out, published.resumed)


def _check_complete(converted: Source, record: CheckpointRecord) -> None:
    names = {tensor.name for shard in converted.shards for tensor in shard.tensors}
    if missing := sorted(record.tensors.keys() - names):
        raise RecordError(f"{RECORD_FILE} does not fit its shards: {missing[0]} is in none of them")


def _layout(padded: ShardHeader, record: CheckpointRecord) -> ShardLayout:
    """Work out the shard that `padded` was made from, and check that padding it again would give `padded`."""
    if not any(tensor.name in record.tensors for tensor in padded.tensors):
        return shard_layout(padded, b"", {})
    shapes = {name: tensor.logical_shape for name, tensor in record.tensors.items()}
    logical, prefix = logical_shard(padded, shapes)
    if text := record.originals.get(padded.file):
        data_bytes = logical.file_bytes - logical.data_start
        prefix = len(text.encode()).to_bytes(LENGTH_BYTES, "little") + text.encode()
        logical = parse_header(prefix, len(prefix) + data_bytes, padded.file)
    layout = shard_layout(logical, prefix, record.tensors)
    for difference in header_differences(layout.padded, padded):
        raise RecordError(f"{RECORD_FILE} does not fit its shards: {difference}")
    return layout


def _texts(converted: Source, record: CheckpointRecord, shards: list[ShardHeader]) -> dict[str, str]:
    if CONFIG_FILE not in record.originals:
        raise RecordError(f"{RECORD_FILE}: originals: {CONFIG_FILE} is missing")
    texts: dict[str, str] = {}
    if converted.index:
        restored = record.originals.get(INDEX_FILE) or restored_index(converted.index.text, shards)
        texts[INDEX_FILE] = restored
    return {**texts, CONFIG_FILE: record.originals[CONFIG_FILE]}


def _check_hashes(record: CheckpointRecord, hashes: Mapping[str, Hashes]) -> None:
    for file, entry in record.files.items():
        if file in hashes and entry.source_sha256 and hashes[file].sha256 != entry.source_sha256:
            raise VerifyError(f"{file}: sha256: expected {entry.source_sha256}, got {hashes[file].sha256}")
