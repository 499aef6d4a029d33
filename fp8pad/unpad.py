"""Unpad a checkpoint: the exact inverse of converting, from what fp8pad.json says."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from fp8pad.checkpoint.checkpoint import CONFIG_FILE, Checkpoint, parse_object, read_checkpoint, read_record
from fp8pad.checkpoint.compare import header_differences
from fp8pad.checkpoint.folder import INDEX_FILE
from fp8pad.checkpoint.headers import LENGTH_BYTES, parse_header
from fp8pad.checkpoint.layout import ShardLayout, logical_shard, shard_layout
from fp8pad.checkpoint.options import WriteOptions
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.transfer import Hashes
from fp8pad.converted import restored_index
from fp8pad.errors import ConfigError, RecordError, VerifyError
from fp8pad.publication import Draft, publish
from fp8pad.record import METADATA_KEY, RECORD_FILE, CheckpointRecord, parse_shard_metadata
from fp8pad.tensors import ShardHeader


@dataclass(frozen=True, slots=True)
class UnpadReport:
    """What was restored: the folder, how many tensors are smaller again, the files that did not come along."""

    restored_dir: Path
    tensors_unpadded: int
    excluded: tuple[str, ...]
    resumed: tuple[str, ...]


def unpad(out_dir: Path, restored_dir: Path, options: WriteOptions, progress: Progress) -> UnpadReport:
    """Write the checkpoint that `out_dir` was converted from to `restored_dir`.

    Shards, index and config.json are those of the source byte for byte; where fp8pad.json has hashes of the source,
    every byte is read back and hashed unless `options` ask for no verification. Raises `RecordError` if fp8pad.json is
    missing, malformed or does not fit the files; see `publication.publish` for the rest.
    """
    converted = read_checkpoint(out_dir)
    record = read_record(converted)
    if record is None:
        raise RecordError(f"{out_dir}: has no {RECORD_FILE}; only a checkpoint that fp8pad padded can be unpadded")
    _check_complete(converted, record)
    layouts = tuple(_layout(converted, shard, record) for shard in converted.shards)
    texts = _texts(converted, record, [layout.target for layout in layouts])
    _check_sizes(record, layouts, texts)
    # Other files may have been edited since, such as a model card: only who asks for `full` wants them compared too.
    hashed = converted.identities.keys() if options.verify == "full" else {layout.file for layout in layouts}

    def checked_texts(hashes: Mapping[str, Hashes]) -> Mapping[str, str]:
        found = {file: entry.sha256 for file, entry in hashes.items() if file in hashed}
        _check_hashes(record, found | {file: sha256(text.encode()).hexdigest() for file, text in texts.items()})
        return texts

    other_files = tuple(file for file in converted.other_files if file != RECORD_FILE)
    draft = Draft(converted, layouts, other_files, checked_texts, unpads=True)
    published = publish(draft, restored_dir, _as_deep_as(record, layouts, options), progress)
    return UnpadReport(published.out_dir, len(record.tensors), converted.excluded, published.resumed)


def _check_complete(converted: Checkpoint, record: CheckpointRecord) -> None:
    names = {tensor.name for shard in converted.shards for tensor in shard.tensors}
    if missing := sorted(record.tensors.keys() - names):
        raise RecordError(f"{RECORD_FILE} does not fit its shards: {missing[0]} is in none of them")
    if absent := sorted(record.files.keys() - converted.identities.keys()):
        raise RecordError(f"{absent[0]}: is named in {RECORD_FILE}: expected a file, got no such file")


def _check_metadata(padded: ShardHeader, record: CheckpointRecord) -> None:
    """Check that a shard names the tensors that fp8pad.json names, with the same logical shapes."""
    recorded = {t.name: record.tensors[t.name].logical_shape for t in padded.tensors if t.name in record.tensors}
    text = (padded.metadata or {}).get(METADATA_KEY)
    named = {} if text is None else parse_shard_metadata(text, padded.file)
    where = f"{RECORD_FILE} does not fit its shards: {padded.file}: __metadata__.{METADATA_KEY}"
    for name in sorted(recorded.keys() | named.keys()):
        if recorded.get(name) != named.get(name):
            expected, got = (list(shapes[name]) if name in shapes else "no entry" for shapes in (recorded, named))
            raise RecordError(f"{where}: {name}: logical_shape: expected {expected}, got {got}")
    if text is not None and not recorded:
        raise RecordError(f"{where}: expected none, since no tensor of the shard is recorded as padded")


def _layout(converted: Checkpoint, padded: ShardHeader, record: CheckpointRecord) -> ShardLayout:
    """Work out the shard that `padded` was made from, and check that padding it again would give `padded`."""
    _check_metadata(padded, record)
    if not any(tensor.name in record.tensors for tensor in padded.tensors):
        return shard_layout(padded, converted.prefixes[padded.file], {})
    shapes = {name: tensor.logical_shape for name, tensor in record.tensors.items()}
    logical, prefix = logical_shard(padded, shapes)
    if text := record.originals.get(padded.file):
        data_bytes = logical.file_bytes - logical.data_start
        prefix = len(text.encode()).to_bytes(LENGTH_BYTES, "little") + text.encode()
        logical = parse_header(prefix, len(prefix) + data_bytes, padded.file)
    layout = shard_layout(logical, prefix, record.tensors)
    for difference in header_differences(layout.target, padded):
        raise RecordError(f"{RECORD_FILE} does not fit its shards: {difference}")
    return layout.inverse(prefix)


def _texts(converted: Checkpoint, record: CheckpointRecord, shards: list[ShardHeader]) -> dict[str, str]:
    if CONFIG_FILE not in record.originals:
        raise RecordError(f"{RECORD_FILE}: originals: {CONFIG_FILE} is missing")
    for file in (CONFIG_FILE, INDEX_FILE):
        _check_json(file, record.originals.get(file, "{}"))
    texts: dict[str, str] = {}
    if converted.index:
        restored = record.originals.get(INDEX_FILE) or restored_index(converted.index.text, shards)
        texts[INDEX_FILE] = restored
    return {**texts, CONFIG_FILE: record.originals[CONFIG_FILE]}


def _check_json(file: str, text: str) -> None:
    try:
        parse_object(f"{RECORD_FILE}: originals: {file}", text)
    except ConfigError as error:
        raise RecordError(str(error)) from error


def _check_sizes(record: CheckpointRecord, layouts: Iterable[ShardLayout], texts: Mapping[str, str]) -> None:
    sizes = {layout.file: layout.target.file_bytes for layout in layouts}
    sizes |= {file: len(text.encode()) for file, text in texts.items()}
    for file, size in sizes.items():
        if file in record.files and record.files[file].source_size != size:
            expected = record.files[file].source_size
            raise RecordError(f"{RECORD_FILE}: files: {file}: source_size: expected {expected} bytes, got {size}")


def _as_deep_as(record: CheckpointRecord, layouts: Iterable[ShardLayout], options: WriteOptions) -> WriteOptions:
    """Return options that hash every restored shard, if fp8pad.json has hashes to compare them with."""
    files = {layout.file for layout in layouts}
    has_hashes = any(entry.source_sha256 for file, entry in record.files.items() if file in files)
    return replace(options, verify="full") if has_hashes and options.verify == "padded" else options


def _check_hashes(record: CheckpointRecord, hashes: Mapping[str, str]) -> None:
    for file, entry in record.files.items():
        if file in hashes and entry.source_sha256 and hashes[file] != entry.source_sha256:
            raise VerifyError(f"{file}: sha256: expected {entry.source_sha256}, got {hashes[file]}")
