"""A checkpoint folder as one frozen object: shard headers, index, configs and the files beside them."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from fp8pad.checkpoint.files import Advance, FileIdentity, check_identity, copied_mode, encoded, open_file
from fp8pad.checkpoint.folder import INDEX_FILE, is_excluded_link, list_folder, read_text, read_text_and_identity
from fp8pad.checkpoint.headers import LENGTH_BYTES, header_of, read_prefix
from fp8pad.checkpoint.json_text import parse_object
from fp8pad.checkpoint.shards import (
    MISTRAL_CONFIG_FILE,
    check_format,
    checked,
    is_shard,
    parse_index,
    shard_files,
)
from fp8pad.errors import AlreadyPaddedError, CheckpointError, HeaderError, RecordError
from fp8pad.record import (
    CONFIG_FILE,
    METADATA_KEY,
    MODELOPT_FILE,
    QUANT_METHOD,
    RECORD_FILE,
    CheckpointRecord,
    Json,
    parse_record,
    plugin_config,
)
from fp8pad.tensors import ShardHeader


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

    `configs` holds config.json, and hf_quant_config.json where there is one. `other_files` are copied along unchanged,
    `excluded` are not; `links_out` are those of them that would be if links out of the folder were followed.
    `identities` are those of every file at the moment when it was read. A checkpoint on the hub has its id as `name`,
    and data of a file only inside of `with fetched(file)`.
    """

    root: Path
    shards: tuple[ShardHeader, ...]
    configs: Mapping[str, Json]
    has_index: bool
    other_files: tuple[str, ...]
    excluded: tuple[str, ...]
    identities: Mapping[str, FileIdentity]
    name: str = ""
    remote: Remote | None = None
    links_out: tuple[str, ...] = ()

    def __str__(self) -> str:
        """What the user calls it: a folder or a hub id."""
        return self.name or str(self.root)

    def __repr__(self) -> str:
        """Short, for notebooks: there can be a million tensors."""
        return f"Checkpoint({str(self)!r})"

    def fetched(self, file: str, advance: Advance = lambda _: None) -> AbstractContextManager[bool]:
        """Have all bytes of a file at `root` in here; say whether it is a copy of our own, gone afterwards.

        `advance` is told of as many bytes as `fetched_bytes`, as they arrive.
        """
        return self.remote.fetched(file, advance) if self.remote else nullcontext(False)

    def fetched_bytes(self, file: str) -> int:
        """Return how many bytes of a file are not here, but are fetched."""
        return self.remote.fetched_bytes(file) if self.remote else 0

    def copied_mode(self, file: str, group: int | None, holds: Iterable[str] = ()) -> int:
        """Return the permissions of a copy of a file, which is as private as those whose text it `holds`.

        What is new is as private as config.json and fp8pad.json. Raises `CheckpointError` if a file was changed since
        it was read.
        """
        mode = ~0
        for name in {*([file] if file in self.identities else [CONFIG_FILE, RECORD_FILE]), *holds}:
            if name in self.identities:
                with open_file(self.root / name, name, self.identities[name]) as original:
                    mode &= original.copied_mode(group)
        return mode

    def copied_folder_mode(self, folder: str, group: int | None) -> int:
        """Return the permissions that a copy of a folder is made with; `CheckpointError` if it is gone."""
        try:
            return copied_mode((self.root / folder).stat(), group)
        except OSError as error:
            raise CheckpointError(f"{self.root / folder}: cannot be read any more: {error.strerror}") from error

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
    def text_files(self) -> tuple[str, ...]:
        """The names of the files that are read whole and rewritten: the index, where there is one, and config.json."""
        return (INDEX_FILE, CONFIG_FILE) if self.has_index else (CONFIG_FILE,)

    def text(self, file: str) -> str:
        """Read a text file, as large as all headers perhaps; `CheckpointError` if it was changed meanwhile."""
        text, identity = read_text_and_identity(self.root, file)
        check_identity(file, self.identities[file], identity)
        return text

    def has_text(self, file: str, text: str) -> bool:
        """Return whether a file holds this text; raises as `text` does, and has less of it in memory."""
        with open_file(self.root / file, file, self.identities[file]) as opened:
            offset, size = 0, self.identities[file].size
            for part in encoded(text):
                if offset + len(part) > size or opened.read(offset, len(part)) != part:
                    return False
                offset += len(part)
            return offset == size

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
    """Read any checkpoint, padded or not; see `read_unconverted` for what is raised, `list_folder` for links.

    Messages begin with the folder: a command may read two.
    """
    try:
        return _read_folder(root, follow_links)
    except CheckpointError as error:
        raise type(error)(f"{root}: {error}") from error


def _read_folder(root: Path, follow_links: bool) -> Checkpoint:
    if not root.is_dir():
        raise CheckpointError("expected a folder" if root.exists() else "no such folder")
    check_format(root)
    reader = _FolderReader(root)
    configs = {CONFIG_FILE: parse_object(CONFIG_FILE, reader.text(CONFIG_FILE))}
    if (modelopt_text := reader.optional_text(MODELOPT_FILE)) is not None:
        configs[MODELOPT_FILE] = parse_object(MODELOPT_FILE, modelopt_text)
    weight_map = parse_index(reader.optional_text(INDEX_FILE))
    has_index = bool(weight_map)
    shards = tuple(checked(map(reader.header, shard_files(root, weight_map)), weight_map))
    own_files = {CONFIG_FILE, *([INDEX_FILE] if has_index else []), *(shard.file for shard in shards)}
    found, excluded = list_folder(root, own_files, follow_links)
    if MODELOPT_FILE in excluded:  # a link that leads out is followed, as that of config.json is: plans are made by it
        found[MODELOPT_FILE] = reader.identities[MODELOPT_FILE]
        excluded.remove(MODELOPT_FILE)
    links_out = tuple(sorted(file for file in excluded if is_excluded_link(root, file)))
    copies = _other_copies(reader, found, shards)
    return Checkpoint(
        root=root,
        shards=shards,
        configs=configs,
        has_index=has_index,
        other_files=tuple(file for file in found if file not in copies),
        excluded=tuple(sorted((*excluded, *copies))),
        identities={file: each for file, each in (found | reader.identities).items() if file not in copies},
        links_out=links_out,
    )


@dataclass(frozen=True, slots=True)
class _FolderReader:
    """Reads files of the folder `root`, and remembers the identity of each."""

    root: Path
    identities: dict[str, FileIdentity] = field(default_factory=dict)

    def text(self, file: str) -> str:
        text, self.identities[file] = read_text_and_identity(self.root, file)
        return text

    def optional_text(self, file: str) -> str | None:
        path = self.root / file
        return self.text(file) if path.exists() or path.is_symlink() else None

    def header(self, file: str) -> ShardHeader:
        with open_file(self.root / file, file) as shard:
            self.identities[file] = shard.identity
            return header_of(shard, shard.identity.size)


def _other_copies(reader: _FolderReader, files: Iterable[str], shards: Iterable[ShardHeader]) -> set[str]:
    """Return safetensors files beside the shards that hold tensors of the same names, and so the same weights again."""
    copies: set[str] = set()
    others = list(filter(is_shard, files))
    names = {tensor.name for shard in shards for tensor in shard.tensors} if others else ()
    for file in others:
        with suppress(HeaderError):  # no checkpoint of ours, so it is copied along
            copies |= {file for tensor in reader.header(file).tensors if tensor.name in names}
    return copies


def padding_mark(source: Checkpoint) -> str | None:
    """Return what marks a checkpoint as fp8pad's own: any of its three records, whole or garbled."""
    if RECORD_FILE in source.other_files or RECORD_FILE in source.excluded:
        return RECORD_FILE
    for file, config in source.configs.items():
        if plugin_config(config):
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
            found = FileIdentity.of((source.root / file).stat())
        except OSError as error:
            raise CheckpointError(f"{file}: cannot be read any more: {error.strerror}") from error
        check_identity(file, before, found)
