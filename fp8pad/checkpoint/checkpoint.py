"""A checkpoint folder as one frozen object: shard headers, index, configs and the files beside them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from fp8pad.checkpoint.files import Advance, FileIdentity, check_identity, open_file
from fp8pad.checkpoint.folder import (
    INDEX_FILE,
    SHARD_SUFFIX,
    is_other_form,
    list_folder,
    read_text,
    read_text_and_identity,
)
from fp8pad.checkpoint.headers import LENGTH_BYTES, parse_header, read_prefix
from fp8pad.errors import AlreadyPaddedError, CheckpointError, ConfigError, HeaderError, RecordError
from fp8pad.reading import Reader
from fp8pad.record import (
    CONFIG_FILE,
    METADATA_KEY,
    MODELOPT_FILE,
    QUANT_METHOD,
    RECORD_FILE,
    CheckpointRecord,
    Json,
    parse_record,
)
from fp8pad.tensors import ShardHeader

OPTIONAL_CONFIG_FILES = (MODELOPT_FILE,)
SINGLE_SHARD = "model.safetensors"
MISTRAL_CONFIG_FILE = "params.json"  # the config of the weights in consolidated*.safetensors


class Remote(Protocol):
    """Where the files of a checkpoint come from that are not here; called from several threads at once."""

    @property
    def num_bytes(self) -> int:
        """Bytes that earlier runs have fetched."""

    def fetched_bytes(self, name: str) -> int:
        """Return of how many bytes `fetched` tells `advance`."""

    def fetched(self, name: str, advance: Advance) -> AbstractContextManager[bool]:
        """Have all bytes of a file in its place in here; whether they are gone afterwards."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder; file names are relative to `root`.

    `configs` holds config.json, and hf_quant_config.json where there is one; `config_text` is config.json as it lies on
    disk, and `index_text` the index, where there is one. `other_files` are copied along unchanged, `excluded` are not.
    `identities` are those of every file at the moment when it was read. A checkpoint on the hub has its id as `name`,
    and data of a file only inside of `with fetched(file)`.
    """

    root: Path
    shards: tuple[ShardHeader, ...]
    configs: Mapping[str, Json]
    config_text: str
    index_text: str | None
    other_files: tuple[str, ...]
    excluded: tuple[str, ...]
    identities: Mapping[str, FileIdentity]
    name: str = ""
    remote: Remote | None = None

    def __str__(self) -> str:
        """What the user calls it: a folder or a hub id."""
        return self.name or str(self.root)

    def fetched(self, file: str, advance: Advance = lambda _: None) -> AbstractContextManager[bool]:
        """Have all bytes of a file at `root` in here; say whether it is a copy of our own, gone afterwards.

        `advance` is told of as many bytes as `fetched_bytes`, as they arrive.
        """
        return self.remote.fetched(file, advance) if self.remote else nullcontext(False)

    def fetched_bytes(self, file: str) -> int:
        """Return how many bytes of a file are not here, but are fetched."""
        return self.remote.fetched_bytes(file) if self.remote else 0

    def with_edited_config(self) -> "Checkpoint":
        """Return the checkpoint without params.json, which would contradict an edited config.json.

        It stays where there are no weights of Mistral's own format that it belongs to.
        """
        has_weights = any(file.startswith("consolidated") for file in self.excluded)
        if not has_weights or MISTRAL_CONFIG_FILE not in self.other_files:
            return self
        return replace(
            self,
            other_files=tuple(file for file in self.other_files if file != MISTRAL_CONFIG_FILE),
            excluded=tuple(sorted((*self.excluded, MISTRAL_CONFIG_FILE))),
        )

    @property
    def texts(self) -> dict[str, str]:
        """The index, where there is one, and config.json, as they lie on disk."""
        return ({} if self.index_text is None else {INDEX_FILE: self.index_text}) | {CONFIG_FILE: self.config_text}

    def header_text(self, file: str) -> bytes:
        """Read the header of a shard as it lies on disk; `CheckpointError` if the shard was changed meanwhile."""
        with open_file(self.root / file, file, self.identities[file]) as shard:
            return read_prefix(shard, self.identities[file].size)[LENGTH_BYTES:]


def read_unconverted(model_dir: Path, follow_links: bool = False) -> Checkpoint:
    """Read a checkpoint that is to be converted.

    Raises `CheckpointError` if its files are missing, damaged or disagree, `ConfigError` if config.json is not a JSON
    object, and `AlreadyPaddedError` if fp8pad made it.
    """
    source = read_checkpoint(model_dir, follow_links)
    if mark := padding_mark(source):
        raise AlreadyPaddedError(f"{model_dir}: was padded by fp8pad already ({mark}); run `fp8pad unpad` first")
    return source


def read_checkpoint(root: Path, follow_links: bool = False) -> Checkpoint:
    """Read any checkpoint, padded or not; see `read_unconverted` for what is raised, `list_folder` for links."""
    if not root.is_dir():
        raise CheckpointError(f"{root}: {'expected a folder' if root.exists() else 'no such folder'}")
    _check_format(root)
    reader = _FolderReader(root)
    config_text = reader.text(CONFIG_FILE)
    configs = {CONFIG_FILE: parse_object(CONFIG_FILE, config_text)}
    configs |= {file: parse_object(file, reader.text(file)) for file in OPTIONAL_CONFIG_FILES if (root / file).exists()}
    index_text, weight_map = _read_index(reader)
    shards = tuple(reader.header(file) for file in shard_files(root, weight_map))
    _check_tensors(shards, weight_map)
    own_files = (CONFIG_FILE, *([INDEX_FILE] if weight_map else []), *(shard.file for shard in shards))
    listing = list_folder(root, frozenset(own_files), follow_links)
    copies = _other_copies(reader, listing.other_files, shards)
    return Checkpoint(
        root=root,
        shards=shards,
        configs=configs,
        config_text=config_text,
        index_text=index_text,
        other_files=tuple(file for file in listing.other_files if file not in copies),
        excluded=tuple(sorted((*listing.excluded, *copies))),
        identities={
            file: identity for file, identity in (listing.identities | reader.identities).items() if file not in copies
        },
    )


@dataclass(frozen=True, slots=True)
class _FolderReader:
    """Reads files of the folder `root`, and remembers the identity of each."""

    root: Path
    identities: dict[str, FileIdentity] = field(default_factory=dict)

    def text(self, file: str) -> str:
        text, self.identities[file] = read_text_and_identity(self.root, file)
        return text

    def header(self, file: str) -> ShardHeader:
        with open_file(self.root / file, file) as shard:
            self.identities[file] = shard.identity
            return parse_header(read_prefix(shard, shard.identity.size), shard.identity.size, file)


def _other_copies(reader: _FolderReader, files: Iterable[str], shards: Iterable[ShardHeader]) -> set[str]:
    """Return safetensors files beside the shards that hold tensors of the same names, and so the same weights again."""
    copies: set[str] = set()
    for file in filter(_is_plain_name, files):
        names = {tensor.name for shard in shards for tensor in shard.tensors}
        with suppress(HeaderError):  # no checkpoint of ours, so it is copied along
            copies |= {file for tensor in reader.header(file).tensors if tensor.name in names}
    return copies


def padding_mark(source: Checkpoint) -> str | None:
    """Return what marks a checkpoint as fp8pad's own: any of its three records, whole or garbled."""
    if RECORD_FILE in source.other_files or RECORD_FILE in source.excluded:
        return RECORD_FILE
    for file, config in source.configs.items():
        if needs_plugin(config):
            return f"quant_method {QUANT_METHOD} in {file}"
    for shard in source.shards:
        if METADATA_KEY in (shard.metadata or {}):
            return f"the metadata of {shard.file}"
    return None


def needs_plugin(config: Json) -> bool:
    """Return whether a config asks an engine for fp8pad's quantization method."""
    return any(value.get("quant_method") == QUANT_METHOD for value in _objects(config))


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
            found = FileIdentity.of((source.root / file).stat())
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read any more: {error.strerror}") from error
        check_identity(file, before, found)


def _read_index(reader: _FolderReader) -> tuple[str | None, Mapping[str, str]]:
    """Return the index, where there is one, as text and as a map from tensors to shards."""
    path = reader.root / INDEX_FILE
    if not path.exists() and not path.is_symlink():
        return None, {}
    text = reader.text(INDEX_FILE)
    weight_map = parse_object(INDEX_FILE, text).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX_FILE}: weight_map: expected an object that names shards")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not _is_plain_name(file):
            raise CheckpointError(f"{INDEX_FILE}: {name}: expected the name of a file in the folder, got {file!r}")
    return text, weight_map


def _check_format(root: Path) -> None:
    """Raise `CheckpointError` for a folder in Mistral's own format alone."""
    files = {path.name for path in root.iterdir()}
    has_own = MISTRAL_CONFIG_FILE in files and any(name.startswith("consolidated") for name in files)
    has_shards = any(name.endswith(SHARD_SUFFIX) and not is_other_form(name) for name in files)
    if has_own and not (has_shards and CONFIG_FILE in files):
        raise CheckpointError(
            f"{root}: is in Mistral's own format ({MISTRAL_CONFIG_FILE}, consolidated*); fp8pad needs the Hugging Face"
            f" format: {CONFIG_FILE} and model*.safetensors, which most Mistral repositories hold beside it, or which"
            " a conversion script of transformers writes"
        )


def shard_files(root: Path, weight_map: Mapping[str, str]) -> list[str]:
    """Return the names of the shards, sorted: those of the index, else model.safetensors, else all there are.

    Raises `CheckpointError` if there is none.
    """
    if weight_map:
        return sorted(set(weight_map.values()))
    names = sorted(path.name for path in root.iterdir() if path.suffix == SHARD_SUFFIX)
    if SINGLE_SHARD in names:
        return [SINGLE_SHARD]
    names = [name for name in names if not name.startswith("adapter_") and not is_other_form(name)]
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


def _check_tensors(shards: tuple[ShardHeader, ...], weight_map: Mapping[str, str]) -> None:
    shard_of: dict[str, str] = {}
    for shard in shards:
        for tensor in shard.tensors:
            if tensor.name in shard_of:
                raise CheckpointError(f"{tensor.name}: lies in {shard_of[tensor.name]} and in {shard.file}")
            shard_of[tensor.name] = shard.file
    if not weight_map:
        return
    for name, file in weight_map.items():
        if shard_of.get(name) != file:
            found = f"it lies in {shard_of[name]}" if name in shard_of else "it is not there"
            raise CheckpointError(f"{INDEX_FILE}: {name}: expected in {file}, but {found}")
    for name, file in shard_of.items():
        if name not in weight_map:
            raise CheckpointError(f"{INDEX_FILE}: {name}: lies in {file}, but weight_map does not name it")


def parse_object(file: str, text: str) -> Json:
    """Return the JSON object that `text` is; `ConfigError` names it as `file` if it is none."""
    document = Reader(ConfigError).parse_json(text, file, shares=True)
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
