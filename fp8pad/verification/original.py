"""The source of a converted checkpoint, as its record describes it: `unpad` writes it, `verify` compares with it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.compare import Mismatch, header_differences
from fp8pad.checkpoint.files import text_bytes, text_sha256
from fp8pad.checkpoint.folder import INDEX_FILE, max_text_bytes
from fp8pad.checkpoint.json_text import index_text, parse_object
from fp8pad.checkpoint.layout import ShardLayout, original_layout, shard_layout
from fp8pad.errors import CheckpointError, RecordError
from fp8pad.record import CONFIG_FILE, RECORD_FILE, CheckpointRecord, Json
from fp8pad.tensors import ShardHeader


@dataclass(frozen=True, slots=True)
class Original:
    """Shards, index and config.json of the source: the layout of each shard, which restores it, and the texts.

    `record` is that of the `converted` checkpoint; a plain copy has none. Both share headers and tensors with the
    layouts: in a large checkpoint, separate copies would take as much memory as all headers.
    """

    converted: Checkpoint
    record: CheckpointRecord | None
    layouts: tuple[ShardLayout, ...]

    def text(self, file: str) -> str:
        """Derive the text of the index or of config.json; `CheckpointError` if the file changed since it was read."""
        if self.record and file in self.record.originals:
            return self.record.originals[file]
        text = self.converted.text(file)
        return index_text(text, sum(layout.data_bytes() for layout in self.layouts)) if self.record else text

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each of these files, in bytes."""
        sizes = {layout.file: layout.target_bytes for layout in self.layouts}
        return sizes | {file: text_bytes(self.text(file)) for file in self.converted.text_files}


def original_of(converted: Checkpoint, record: CheckpointRecord | None) -> Original:
    """Derive the source of `converted`; without a record, `converted` is a plain copy of it.

    The shapes of `record` must be those of the shards' tensors. Raises `CheckpointError` if it does not fit.
    """
    if record is None:
        layouts = tuple(shard_layout(shard, {}) for shard in converted.shards)
        return Original(converted, None, layouts)
    layouts = tuple(_layout(shard, record) for shard in converted.shards)
    original_json(record, INDEX_FILE)
    original_json(record, CONFIG_FILE)
    converted = replace(converted, shards=tuple(layout.header for layout in layouts))
    record = replace(record, tensors={name: each for layout in layouts for name, each in layout.tensors.items()})
    return Original(converted, record, layouts)


def original_json(record: CheckpointRecord, file: str) -> Json:
    """Parse a file's original text in fp8pad.json; config.json's must be there. Raises `CheckpointError`."""
    if file == CONFIG_FILE and file not in record.originals:
        raise RecordError(f"{RECORD_FILE}: originals: {file} is missing")
    where, text = f"{RECORD_FILE}: originals: {file}", record.originals.get(file, "{}")
    if len(text) > max_text_bytes(file):
        raise RecordError(f"{where}: expected at most {max_text_bytes(file)} characters, got {len(text)}")
    return parse_object(where, text)


def _layout(padded: ShardHeader, record: CheckpointRecord) -> ShardLayout:
    """Derive the shard that `padded` was made from, and check that padding it again would give `padded`."""
    layout = original_layout(padded, record.tensors, record.originals.get(padded.file))
    for difference in header_differences(shard_layout(layout.other()[0], layout.tensors).other()[0], padded):
        raise CheckpointError(f"{RECORD_FILE} does not fit its shards: {difference}")
    return layout


def missing_hashes(record: CheckpointRecord) -> Iterator[Mismatch]:
    """Yield files without hashes in a record that has some: either all files of a checkpoint are hashed, or none."""
    for file, entry in record.files.items():
        if not (entry.sha256 and entry.source_sha256):
            yield Mismatch(RECORD_FILE, f"files: {file}", "both hashes, as other files have", "not both")


def wrong_hashes(record: CheckpointRecord, original: Original) -> Iterator[Mismatch]:
    """Yield hashes of the source that are not those of its texts, or of files that were copied."""
    rewritten, shards = {*original.converted.text_files, *record.restored}, original.converted.shard_files
    for file, entry in record.files.items():
        expected = text_sha256(original.text(file)) if file in rewritten else entry.sha256
        if file not in shards and entry.source_sha256 != expected:
            yield Mismatch(RECORD_FILE, f"files: {file}: source_sha256", str(expected), str(entry.source_sha256))
