"""A checkpoint folder as one frozen object: shard headers, index, configs and the files beside them."""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fp8pad.checkpoint.folder import INDEX_FILE, SHARD_SUFFIX, FileIdentity, file_identity, list_folder, read_text
from fp8pad.checkpoint.headers import read_header
from fp8pad.errors import AlreadyPaddedError, CheckpointError, ConfigError, RecordError
from fp8pad.reading import Reader
from fp8pad.record import METADATA_KEY, QUANT_METHOD, RECORD_FILE, CheckpointRecord, Json, parse_record
from fp8pad.tensors import ShardHeader

CONFIG_FILE = "config.json"
OPTIONAL_CONFIG_FILES = ("hf_quant_config.json",)
SINGLE_SHARD = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Index:
    """`model.safetensors.index.json` as it lies on disk, and its map from tensors to shards."""

    text: str
    weight_map: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder; file names are relative to `root`.

    `configs` holds config.json, and hf_quant_config.json where there is one; `config_text` is config.json as it lies
    on disk. `other_files` come along unchanged, `excluded` do not. `identities` are those of every file that is read.
    """

    root: Path
    shards: tuple[ShardHeader, ...]
    index: Index | None
    configs: Mapping[str, Json]
    config_text: str
    other_files: tuple[str, ...]
    excluded: tuple[str, ...]
    identities: Mapping[str, FileIdentity]

    @property
    def texts(self) -> dict[str, str]:
        """The index, where there is one, and config.json, as they lie on disk."""
        return ({INDEX_FILE: self.index.text} if self.index else {}) | {CONFIG_FILE: self.config_text}


def read_unconverted(model_dir: Path) -> Checkpoint:
    """Read a checkpoint that is to be converted.

    Raises `CheckpointError` if its files are missing, damaged or disagree, `ConfigError` if config.json is not a JSON
    object, and `AlreadyPaddedError` if fp8pad made it.
    """
    source = read_checkpoint(model_dir)
    if mark := padding_mark(source):
        raise AlreadyPaddedError(f"{model_dir}: was padded by fp8pad already ({mark}); run `fp8pad unpad` first")
    return source


def read_checkpoint(root: Path) -> Checkpoint:
    """Read any checkpoint, padded or not; see `read_unconverted` for what is raised."""
    if not root.is_dir():
        raise CheckpointError(f"{root}: {'expected a folder' if root.exists() else 'no such folder'}")
    config_text = read_text(root, CONFIG_FILE)
    configs = {CONFIG_FILE: parse_object(CONFIG_FILE, config_text)}
    configs |= {
        file: parse_object(file, read_text(root, file)) for file in OPTIONAL_CONFIG_FILES if (root / file).exists()
    }
    index = read_index(root)
    shards = tuple(read_header(root / file, file) for file in shard_files(root, index))
    _check_tensors(shards, index)
    own_files = (CONFIG_FILE, *([INDEX_FILE] if index else []), *(shard.file for shard in shards))
    other_files, excluded = list_folder(root, frozenset(own_files))
    identities = {file: file_identity(root / file) for file in (*own_files, *other_files)}
    return Checkpoint(root, shards, index, configs, config_text, other_files, excluded, identities)


def padding_mark(source: Checkpoint) -> str | None:
    """Return what marks a checkpoint as fp8pad's own: any of its three records, whole or garbled."""
    if RECORD_FILE in source.other_files or RECORD_FILE in source.excluded:
        return RECORD_FILE
    for file, config in source.configs.items():
        if any(value.get("quant_method") == QUANT_METHOD for value in _objects(config)):
            return f"quant_method {QUANT_METHOD} in {file}"
    for shard in source.shards:
        if METADATA_KEY in (shard.metadata or {}):
            return f"the metadata of {shard.file}"
    return None


def read_record(converted: Checkpoint) -> CheckpointRecord | None:
    """Return what fp8pad.json says, None if nothing marks the checkpoint as fp8pad's; else it is a `RecordError`."""
    if RECORD_FILE in converted.other_files:
        return parse_record(read_text(converted.root, RECORD_FILE))
    if mark := padding_mark(converted):
        raise RecordError(f"{converted.root}: {RECORD_FILE} is missing, although there is {mark}")
    return None


def check_unchanged(source: Checkpoint) -> None:
    """Raise `CheckpointError` if a file of the checkpoint was written to or replaced since it was read."""
    for file, before in source.identities.items():
        try:
            unchanged = file_identity(source.root / file) == before
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read any more: {error.strerror}") from error
        if not unchanged:
            raise CheckpointError(f"{file}: was changed while it was being read")


def read_index(root: Path) -> Index | None:
    """Read the index of `root`, None if it has none; `CheckpointError` if its weight_map cannot be trusted."""
    if not (root / INDEX_FILE).exists() and not (root / INDEX_FILE).is_symlink():
        return None
    text = read_text(root, INDEX_FILE)
    weight_map = parse_object(INDEX_FILE, text).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX_FILE}: weight_map: expected an object that names shards")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _is_plain_name(file):
            raise CheckpointError(f"{INDEX_FILE}: {name}: expected the name of a file in the folder, got {file!r}")
    # A large checkpoint has a hundred thousand names: they are kept once, here and in the headers.
    return Index(text, {sys.intern(name): sys.intern(file) for name, file in weight_map.items()})


def shard_files(root: Path, index: Index | None) -> list[str]:
    """Return the names of the shards, sorted: those of the index, else model.safetensors, else all there are.

    Mistral's `consolidated*` files hold the same tensors under other names. Raises `CheckpointError` if there is none.
    """
    if index:
        return sorted(set(index.weight_map.values()))
    names = sorted(path.name for path in root.iterdir() if path.suffix == SHARD_SUFFIX)
    if SINGLE_SHARD in names:
        return [SINGLE_SHARD]
    names = [name for name in names if not name.startswith(("consolidated", "adapter_"))]
    if not names:
        others = sorted(path.name for path in root.iterdir() if path.suffix in {".bin", ".pt", ".pth", ".gguf"})
        hint = f"; convert {others[0]} to safetensors first" if others else ""
        raise CheckpointError(f"{root}: holds no *.safetensors{hint}")
    _check_series(names)
    return names


def _check_series(names: list[str]) -> None:
    for name in names:
        if match := re.fullmatch(r"(.*-)\d+-of-(\d+)\.safetensors", name):
            series = [
                other for other in names if other.startswith(match[1]) and other.endswith(f"-of-{match[2]}.safetensors")
            ]
            if len(series) != int(match[2]):
                raise CheckpointError(
                    f"{name}: expected {int(match[2])} shards, got {len(series)}, and there is no index"
                )


def _check_tensors(shards: tuple[ShardHeader, ...], index: Index | None) -> None:
    shard_of: dict[str, str] = {}
    for shard in shards:
        for tensor in shard.tensors:
            if tensor.name in shard_of:
                raise CheckpointError(f"{tensor.name}: lies in {shard_of[tensor.name]} and in {shard.file}")
            shard_of[tensor.name] = shard.file
    if index is None:
        return
    for name, file in index.weight_map.items():
        if shard_of.get(name) != file:
            found = f"it lies in {shard_of[name]}" if name in shard_of else "it is not there"
            raise CheckpointError(f"{INDEX_FILE}: {name}: expected in {file}, but {found}")
    for name, file in shard_of.items():
        if name not in index.weight_map:
            raise CheckpointError(f"{INDEX_FILE}: {name}: lies in {file}, but weight_map does not name it")


def parse_object(file: str, text: str) -> Json:
    """Return the JSON object that `text` is; `ConfigError` names it as `file` if it is none."""
    document = Reader(ConfigError).parse_json(text, file)
    if not isinstance(document, dict):
        raise ConfigError(f"{file}: expected a JSON object, got {type(document).__name__}")
    return document


def _objects(document: Json) -> Iterator[Json]:
    pending: list[object] = [document]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            yield value
            pending.extend(value.values())


def _is_plain_name(name: str) -> bool:
    return name.endswith(SHARD_SUFFIX) and "/" not in name and "\0" not in name and name != SHARD_SUFFIX
