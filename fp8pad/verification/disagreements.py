"""Where the records of a converted checkpoint contradict each other, its headers, or its config.json.

Only headers and texts are read. `inspect` lists all that is found, `unpad` refuses at the first, `verify` begins with
this check.
"""

from collections.abc import Iterator

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.compare import Mismatch, text_differences
from fp8pad.checkpoint.files import text_bytes
from fp8pad.checkpoint.folder import INDEX_FILE
from fp8pad.checkpoint.json_text import dumps_like, index_text, states_total
from fp8pad.errors import CheckpointError
from fp8pad.geometry import as_matrices
from fp8pad.padded import PaddedTensor, Shape
from fp8pad.planning.config import edited_config
from fp8pad.planning.quantization import value_at
from fp8pad.quantization_config import QuantizationRecord, parse_quantization_config, plugin_config
from fp8pad.record import CONFIG_FILE, METADATA_KEY, RECORD_FILE, CheckpointRecord, Json, parse_shard_metadata
from fp8pad.tensors import ShardHeader
from fp8pad.verification.original import Original, original_json, original_of


def examine(converted: Checkpoint, record: CheckpointRecord) -> tuple[list[Mismatch], Original | None]:
    """Return contradictions, the most fundamental first, and the source as the record describes it, if it fits."""
    faults = [fault for shard in converted.shards for fault in _metadata_faults(shard, record)]
    faults += _shape_faults(converted, record)
    original: Original | None = None
    try:
        if not faults:  # shapes that differ from those of the headers could be of any size
            original = original_of(converted, record)
        faults += _config_faults(converted, record)
    except CheckpointError as error:
        return [*faults, Mismatch(RECORD_FILE, "record", "one that fits the checkpoint", str(error))], original
    if original:
        faults += [*_edit_faults(record), *_original_faults(converted, record)]
        faults += [*_index_faults(converted, record), *_size_faults(converted, record, original)]
    return faults, original


def quantization_of(converted: Checkpoint) -> QuantizationRecord | None:
    """Return the record for the runtime in config.json, None if there is none; `RecordError` if it is malformed."""
    document = plugin_config(converted.configs[CONFIG_FILE])
    return parse_quantization_config(document) if document else None


def _metadata_faults(shard: ShardHeader, record: CheckpointRecord) -> Iterator[Mismatch]:
    """Compare the padded tensors that a shard's metadata names with fp8pad.json."""
    place = f"__metadata__.{METADATA_KEY}"
    recorded = {t.name: record.tensors[t.name].logical_shape for t in shard.tensors if t.name in record.tensors}
    text = (shard.metadata or {}).get(METADATA_KEY)
    try:
        named = {} if text is None else parse_shard_metadata(text, shard.file)
    except CheckpointError as error:
        yield Mismatch(shard.file, place, f"what {RECORD_FILE} says", str(error))
        return
    for name in sorted(recorded.keys() | named.keys()):
        if recorded.get(name) != named.get(name):
            expected, got = (str(list(shapes[name])) if name in shapes else "no entry" for shapes in (recorded, named))
            yield Mismatch(shard.file, f"{place}: {name}: logical_shape", f"{expected}, as in {RECORD_FILE}", got)
    if text is not None and not (recorded or named):
        yield Mismatch(shard.file, place, "none, since no tensor of the shard is padded", "a record")


def _shape_faults(converted: Checkpoint, record: CheckpointRecord) -> Iterator[Mismatch]:
    shapes = _shapes(converted)
    for name, tensor in record.tensors.items():
        if shapes.get(name) != tensor.padded_shape:
            yield Mismatch(RECORD_FILE, f"{name}: padded_shape", _on_disk(shapes, name), str(list(tensor.padded_shape)))


def _shapes(converted: Checkpoint) -> dict[str, Shape]:
    return {tensor.name: tensor.shape for tensor in converted.tensors}


def _on_disk(shapes: dict[str, Shape], name: str) -> str:
    return f"{list(shapes[name])}, as on disk" if name in shapes else "a tensor of the shards"


def _config_faults(converted: Checkpoint, record: CheckpointRecord) -> Iterator[Mismatch]:
    """Compare config.json with the original after the recorded edits, and with the modules that it names."""
    quantization = quantization_of(converted)
    original, text = original_json(record, CONFIG_FILE), record.originals[CONFIG_FILE]
    for edit in record.config_edits:
        old = value_at(original, edit.key)
        if old is not None and old != edit.old:  # a missing size has its default value
            yield Mismatch(RECORD_FILE, f"config_edits: {edit.key}: old", f"{old}, as in originals", str(edit.old))
    if quantization:
        yield from _module_faults(converted, record, quantization)
        base = _original_base(converted, record, original)
        quantization = QuantizationRecord(quantization.modules, base, record.fp8pad_version)
    elif name := next((name for name, tensor in record.tensors.items() if tensor.axes.is_padded), None):
        yield Mismatch(CONFIG_FILE, "quantization_config", f"one of fp8pad, since {name} is padded", "another or none")
    if quantization or record.config_edits:
        edited = edited_config(original, record.config_edits, quantization, record.base_source)
        text = dumps_like(text, edited, CONFIG_FILE)
    if not converted.has_text(CONFIG_FILE, text):
        yield from text_differences(CONFIG_FILE, text, converted.text(CONFIG_FILE))


def _edit_faults(record: CheckpointRecord) -> Iterator[Mismatch]:
    """Yield edits that fit no absorbed axis; an axis may hold a size several times, as gate and up in one tensor do."""
    grown: set[tuple[int, int]] = set()
    if record.policy.absorb or record.policy.absorb_experts:
        for tensor in set(record.tensors.values()):
            sizes = zip(as_matrices(tensor.logical_shape)[1:], as_matrices(tensor.padded_shape)[1:], strict=True)
            grown |= {pair for axis, pair in zip(tensor.axes.both, sizes, strict=True) if axis == "absorb"}
    for edit in record.config_edits:
        if not any(logical * edit.new == padded * edit.old for logical, padded in grown):
            expected = "sizes that absorbed tensors grow with"
            yield Mismatch(RECORD_FILE, f"config_edits: {edit.key}", expected, f"{edit.old} to {edit.new}")


def _module_faults(
    converted: Checkpoint, record: CheckpointRecord, quantization: QuantizationRecord
) -> Iterator[Mismatch]:
    shapes = _shapes(converted)
    for name, module in quantization.modules.items():
        weight, place = f"{name}.weight", f"modules: {name}"
        if shapes.get(weight) != module.padded_shape:
            yield Mismatch(
                CONFIG_FILE, f"{place}: padded_shape", _on_disk(shapes, weight), str(list(module.padded_shape))
            )
        expected = _config_shape(record.tensors.get(weight), module.padded_shape)
        if expected != module.logical_shape:
            by_record = f"{list(expected)}, by {RECORD_FILE}"
            yield Mismatch(CONFIG_FILE, f"{place}: logical_shape", by_record, str(list(module.logical_shape)))
        if any(size % multiple for size, multiple in zip(module.padded_shape, module.alignment, strict=True)):
            divisors = f"divisors of {list(module.padded_shape)}"
            yield Mismatch(CONFIG_FILE, f"{place}: alignment", divisors, str(list(module.alignment)))
    for name, tensor in record.tensors.items():  # scales have various names, and follow their weights
        layer = name.removesuffix(".weight")
        if tensor.axes.is_padded and name.endswith(".weight") and layer not in quantization.modules:
            yield Mismatch(CONFIG_FILE, "modules", f"one for {name}, which is padded", "none")


def _config_shape(tensor: PaddedTensor | None, padded_shape: Shape) -> Shape:
    """Return the shape `[N, K]` that config.json implies: absorbed axes have the same size as on disk."""
    if tensor is None or len(tensor.logical_shape) != 2:
        return padded_shape
    axes = zip(tensor.axes.both, tensor.logical_shape, padded_shape, strict=True)
    return tuple(padded if axis == "absorb" else logical for axis, logical, padded in axes)


def _original_base(converted: Checkpoint, record: CheckpointRecord, original: Json) -> Json:
    """Return the quantization config of the source, empty if `base_source` leads to none."""
    if record.base_source is None:
        return {}
    file, key = record.base_source.file, record.base_source.key
    document = original if file == CONFIG_FILE else converted.configs.get(file, {})
    base = document if key is None else value_at(document, key)
    return base if isinstance(base, dict) else {}


def _original_faults(converted: Checkpoint, record: CheckpointRecord) -> Iterator[Mismatch]:
    rewritten = {CONFIG_FILE, INDEX_FILE, *record.restored, *converted.shard_files}
    for file in sorted(record.originals.keys() - rewritten):
        yield Mismatch(RECORD_FILE, f"originals: {file}", "no entry, since it is copied as it is", "a text")


def _index_faults(converted: Checkpoint, record: CheckpointRecord) -> Iterator[Mismatch]:
    if converted.has_index and record.tensors:
        found, total_bytes = converted.text(INDEX_FILE), converted.tensor_bytes
        if INDEX_FILE in record.originals or not states_total(found, total_bytes):
            expected = index_text(record.originals.get(INDEX_FILE, found), total_bytes)
            yield from text_differences(INDEX_FILE, expected, found)


def _size_faults(converted: Checkpoint, record: CheckpointRecord, original: Original) -> Iterator[Mismatch]:
    """Compare the recorded sizes of shards, index and config.json, before and after, with the actual ones.

    Other files are copied, so both sizes of each must be the same; the record has the model card as it was.
    """
    sizes = original.sizes
    for file, source_size in sizes.items():
        if (recorded := record.files.get(file)) is None:
            yield Mismatch(RECORD_FILE, f"files: {file}", "its sizes", "no entry")
            continue
        for key, found in (("source_size", source_size), ("size", converted.identities[file].size)):
            if (size := getattr(recorded, key)) != found:
                yield Mismatch(RECORD_FILE, f"files: {file}: {key}", f"{found} bytes", f"{size}")
    for file, recorded in record.files.items():
        before = text_bytes(record.originals[file]) if file in record.originals else recorded.size
        if file not in sizes and recorded.source_size != before:
            yield Mismatch(RECORD_FILE, f"files: {file}: source_size", f"{before}", f"{recorded.source_size}")
