"""What fp8pad did to a checkpoint, told from its records alone, and where these disagree."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fp8pad.checkpoint.checkpoint import CONFIG_FILE, Checkpoint, padding_mark, parse_object, read_checkpoint
from fp8pad.checkpoint.folder import read_text
from fp8pad.errors import CheckpointError, RecordError
from fp8pad.record import (
    METADATA_KEY,
    QUANT_METHOD,
    RECORD_FILE,
    CheckpointRecord,
    Json,
    ModuleRecord,
    PaddedTensor,
    QuantizationRecord,
    Shape,
    parse_quantization_config,
    parse_record,
    parse_shard_metadata,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Inspection:
    """The three records of a checkpoint, None where one is missing or cannot be read, and where they disagree.

    `record` is fp8pad.json, `quantization` what config.json tells the runtime (a checkpoint that is only absorbed has
    none), `logical_shapes` what the shards' metadata say. `disagreements` are sentences.
    """

    path: Path
    record: CheckpointRecord | None
    quantization: QuantizationRecord | None
    logical_shapes: Mapping[str, Shape]
    disagreements: tuple[str, ...]


def inspect_checkpoint(path: Path) -> Inspection:
    """Read the records of the checkpoint folder `path`.

    Raises `RecordError` if nothing marks it as fp8pad's, and `CheckpointError` if it cannot be read as a checkpoint.
    """
    source = read_checkpoint(path)
    if padding_mark(source) is None:
        raise RecordError(f"{path}: was not padded by fp8pad: it has none of its records")
    faults: list[str] = []
    record = _attempt(lambda: parse_record(read_text(path, RECORD_FILE)), faults)
    document = _padded_config(source.configs[CONFIG_FILE])
    quantization = _attempt(lambda: parse_quantization_config(document), faults) if document else None
    logical_shapes = _attempt(lambda: _logical_shapes(source), faults) or {}
    if record:
        faults += _shard_faults(source, record, logical_shapes)
        faults += _config_faults(source, record, quantization)
        faults += _file_faults(source, record)
    return Inspection(path, record, quantization, logical_shapes, tuple(faults))


def _attempt(parse: Callable[[], T], faults: list[str]) -> T | None:
    try:
        return parse()
    except CheckpointError as error:
        faults.append(str(error))
        return None


def _padded_config(document: Json) -> Json | None:
    for value in document.values():
        if isinstance(value, dict):
            found = value if value.get("quant_method") == QUANT_METHOD else _padded_config(value)
            if found:
                return found
    return None


def _logical_shapes(source: Checkpoint) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for shard in source.shards:
        if text := (shard.metadata or {}).get(METADATA_KEY):
            shapes |= parse_shard_metadata(text, shard.file)
    return shapes


def _shard_faults(source: Checkpoint, record: CheckpointRecord, logical_shapes: Mapping[str, Shape]) -> Iterator[str]:
    on_disk = {tensor.name: tensor.shape for shard in source.shards for tensor in shard.tensors}
    for name in sorted(record.tensors.keys() | logical_shapes.keys()):
        tensor, logical_shape = record.tensors.get(name), logical_shapes.get(name)
        if tensor is None:
            yield f"{name}: is in a shard's metadata, but not in {RECORD_FILE}"
        elif logical_shape != tensor.logical_shape:
            found = f"is {list(logical_shape)}" if logical_shape is not None else "is missing"
            yield f"{name}: logical_shape {list(tensor.logical_shape)} in {RECORD_FILE} {found} in its shard's metadata"
        elif on_disk.get(name) != tensor.padded_shape:
            yield f"{name}: expected {list(tensor.padded_shape)} on disk, got {list(on_disk.get(name, ()))}"


def _config_faults(
    source: Checkpoint, record: CheckpointRecord, quantization: QuantizationRecord | None
) -> Iterator[str]:
    config = source.configs[CONFIG_FILE]
    for edit in record.config_edits:
        if edit.file == CONFIG_FILE and (found := _at(config, edit.key)) != edit.new:
            yield f"{CONFIG_FILE}: {edit.key}: expected {edit.new}, got {found}"
    if quantization is None:
        padded = next((name for name, t in record.tensors.items() if "pad" in (t.axes.n, t.axes.k)), None)
        if padded:
            yield f"{padded}: is padded, but {CONFIG_FILE} has no quantization config of fp8pad"
        return
    yield from _module_faults(source, record, quantization.modules)
    if quantization.base != _original_base(source, record):
        yield f"{CONFIG_FILE}: base is not what {RECORD_FILE} says of the original"


def _module_faults(source: Checkpoint, record: CheckpointRecord, modules: Mapping[str, ModuleRecord]) -> Iterator[str]:
    on_disk = {tensor.name: tensor.shape for shard in source.shards for tensor in shard.tensors}
    for name, module in modules.items():
        where, weight = f"{CONFIG_FILE}: {name}", f"{name}.weight"
        shape = on_disk.get(weight, ())
        if shape != module.padded_shape:
            yield f"{where}: padded_shape {list(module.padded_shape)}, but on disk {list(shape)}"
        if (expected := _config_shape(record.tensors.get(weight), shape)) != module.logical_shape:
            yield f"{where}: logical_shape {list(module.logical_shape)}, but by {RECORD_FILE} {list(expected)}"
        if any(size % multiple for size, multiple in zip(module.padded_shape, module.alignment, strict=True)):
            yield f"{where}: alignment {list(module.alignment)} does not divide {list(module.padded_shape)}"
    for name, tensor in record.tensors.items():
        if "pad" in (tensor.axes.n, tensor.axes.k) and name.rpartition(".")[0] not in modules:
            yield f"{name}: is padded, but {CONFIG_FILE} has no module for it"


def _config_shape(tensor: PaddedTensor | None, on_disk: Shape) -> Shape:
    """Return the shape `[N, K]` that config.json asks for: absorbed axes are as large there as on disk."""
    if tensor is None or len(tensor.logical_shape) != 2:
        return on_disk
    axes = zip((tensor.axes.n, tensor.axes.k), tensor.logical_shape, tensor.padded_shape, strict=True)
    return tuple(padded if axis == "absorb" else logical for axis, logical, padded in axes)


def _original_base(source: Checkpoint, record: CheckpointRecord) -> Any:
    if record.base_source is None:
        return None
    file, key = record.base_source.file, record.base_source.key
    document = source.configs.get(file, {})
    if file in record.originals:
        document = parse_object(f"{RECORD_FILE}: originals: {file}", record.originals[file])
    return document if key is None else _at(document, key)


def _file_faults(source: Checkpoint, record: CheckpointRecord) -> Iterator[str]:
    for file, sizes in record.files.items():
        found = source.identities[file].size if file in source.identities else None
        if found != sizes.size:
            yield f"{file}: expected {sizes.size} bytes, got {'no such file' if found is None else f'{found} bytes'}"


def _at(document: Any, key: str) -> Any:
    for part in key.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    return document
