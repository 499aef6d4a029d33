"""The source of a converted checkpoint, as its record describes it: `unpad` writes it, `verify` compares with it."""

from collections.abc import Mapping
from dataclasses import dataclass

from fp8pad.checkpoint.checkpoint import Checkpoint, parse_object
from fp8pad.checkpoint.compare import header_differences
from fp8pad.checkpoint.folder import INDEX_FILE
from fp8pad.checkpoint.headers import LENGTH_BYTES, parse_header
from fp8pad.checkpoint.layout import ShardLayout, logical_shard, shard_layout
from fp8pad.converted import restored_index
from fp8pad.errors import CheckpointError, RecordError
from fp8pad.record import CONFIG_FILE, RECORD_FILE, CheckpointRecord, Json
from fp8pad.tensors import ShardHeader


@dataclass(frozen=True, slots=True)
class Original:
    """Shards, index and config.json of the source: the layout of each shard, which leads back to it, and the texts."""

    layouts: tuple[ShardLayout, ...]
    texts: Mapping[str, str]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each of these files."""
        sizes = {layout.file: layout.target.file_bytes for layout in self.layouts}
        return sizes | {file: len(text.encode()) for file, text in self.texts.items()}


def original_of(converted: Checkpoint, record: CheckpointRecord | None) -> Original:
    """Work out the source of `converted`; without a record, which an equal copy has not, it is the same.

    The shapes of `record` must be those of the shards' tensors. Raises `CheckpointError` where it does not fit.
    """
    if record is None:
        layouts = tuple(shard_layout(shard, converted.prefixes[shard.file], {}) for shard in converted.shards)
        return Original(layouts, converted.texts)
    layouts = tuple(_layout(converted, shard, record) for shard in converted.shards)
    texts: dict[str, str] = {}
    if converted.index:
        texts[INDEX_FILE] = record.originals.get(INDEX_FILE) or restored_index(
            converted.index.text, [layout.target for layout in layouts]
        )
    original_json(record, INDEX_FILE)
    original_json(record, CONFIG_FILE)
    return Original(layouts, {**texts, CONFIG_FILE: record.originals[CONFIG_FILE]})


def original_json(record: CheckpointRecord, file: str) -> Json:
    """Parse a file's original text in fp8pad.json; config.json has to be there. Raises `CheckpointError`."""
    if file == CONFIG_FILE and file not in record.originals:
        raise RecordError(f"{RECORD_FILE}: originals: {file} is missing")
    return parse_object(f"{RECORD_FILE}: originals: {file}", record.originals.get(file, "{}"))


def _layout(converted: Checkpoint, padded: ShardHeader, record: CheckpointRecord) -> ShardLayout:
    """Work out the shard that `padded` was made from, and check that padding it again would give `padded`."""
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
        raise CheckpointError(f"{RECORD_FILE} does not fit its shards: {difference}")
    return layout.inverse(prefix)
