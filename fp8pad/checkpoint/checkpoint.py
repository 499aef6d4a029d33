"""A checkpoint folder as one frozen object: shard headers, index, configs and other files."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from fp8pad.checkpoint.files import (
    Advance,
    FileIdentity,
    check_identity,
    copied_mode,
    file_sha256,
    open_file,
    text_sha256,
)
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
from fp8pad.quantization_config import QUANT_METHOD, plugin_config
from fp8pad.record import CONFIG_FILE, METADATA_KEY, MODELOPT_FILE, RECORD_FILE, CheckpointRecord, Json, parse_record
from fp8pad.tensors import ShardHeader


class Remote(Protocol):
    """Fetches files of a checkpoint that are not on this machine; called from several threads at once."""

    @property
    def num_bytes(self) -> int:
        """Bytes that earlier runs have fetched."""

    def fetched_bytes(self, name: str) -> int:
        """Return the number of bytes that `fetched` reports to `advance`."""

    def fetched(self, name: str, advance: Advance) -> AbstractContextManager[bool]:
        """Provide all bytes of a file inside the `with` block; yield whether it is a temporary copy."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint folder; file names are relative to `root`.

    `configs` holds config.json and, if it exists, hf_quant_config.json. `other_files` are copied unchanged, `excluded`
    are not copied; `links_out` are the excluded files that would be copied if links out of the folder were followed.
    `identities` are those of every file when it was read. A checkpoint on the hub has its id as `name`, and a file's
    data only inside `with fetched(file)`.
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
        """Return what the user calls it: a folder or a hub id."""
        return self.name or str(self.root)

    def __repr__(self) -> str:
        """Return a short form, for notebooks: there can be a million tensors."""
        return f"Checkpoint({str(self)!r})"

    def fetched(self, file: str, advance: Advance = lambda _: None) -> AbstractContextManager[bool]:
        """Provide all bytes of a file at `root` inside the `with` block; yield whether it is a temporary copy.

        `advance` gets the bytes as they arrive, `fetched_bytes` in total.
        """
        return self.remote.fetched(file, advance) if self.remote else nullcontext(False)

    def fetched_bytes(self, file: str) -> int:
        """Return how many bytes of a file have to be fetched; 0 for a local checkpoint."""
        return self.remote.fetched_bytes(file) if self.remote else 0

    def copied_mode(self, file: str, group: int | None, holds: Iterable[str] = ()) -> int:
        """Return the permissions for a copy of a file, no wider than those of the files whose text it `holds`.

        A new file gets no more than config.json and fp8pad.json have. Raises `CheckpointError` if a file changed since
        it was read.
        """
        mode = ~0
        for name in {*([file] if file in self.identities else [CONFIG_FILE, RECORD_FILE]), *holds}:
            if name in self.identities:
                with open_file(self.root / name, name, self.identities[name]) as original:
                    mode &= original.copied_mode(group)
        return mode

    def copied_folder_mode(self, folder: str, group: int | None) -> int:
        """Return the permissions for a copy of a folder; `CheckpointError` if the folder is gone."""
        try:
            return copied_mode((self.root / folder).stat(), group)
        except OSError as error:
            raise CheckpointError(f"{self.root / folder}: can no longer be read: {error.strerror}") from error

    def with_edited_config(self) -> "Checkpoint":
        """Return the checkpoint without params.json, which would contradict an edited config.json.

        It is kept if there are no weights in Mistral's own format, to which it would belong.
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
        """The names of the files that are read whole and rewritten: the index, if there is one, and config.json."""
        return (INDEX_FILE, CONFIG_FILE) if self.has_index else (CONFIG_FILE,)

    def text(self, file: str) -> str:
        """Read a text file, which can be as large as all headers; `CheckpointError` if it changed since it was read."""
        text, identity = read_text_and_identity(self.root, file)
        check_identity(file, self.identities[file], identity)
        return text

    def has_text(self, file: str, text: str) -> bool:
        """Return whether a file holds this text, with less memory than `text` needs; raises as `text` does."""
        return file_sha256(self.root / file, file, self.identities[file]) == text_sha256(text)

    def header_text(self, file: str) -> bytes:
        """Return the bytes of a shard's header; `CheckpointError` if the shard changed since it was read."""
        with open_file(self.root / file, file, self.identities[file]) as shard:
            return read_prefix(shard, self.identities[file].size)[LENGTH_BYTES:]


def read_unconverted(model_dir: Path, follow_links: bool = False) -> Checkpoint:
    """Read a checkpoint to be converted.

    Raises `CheckpointError` if its files are missing, damaged or disagree, `ConfigError` if config.json is not a JSON
    object, and `AlreadyPaddedError` if fp8pad wrote it.
    """
    source = read_checkpoint(model_dir, follow_links)
    if mark := padding_mark(source):
        raise AlreadyPaddedError(f"{model_dir}: was padded by fp8pad already ({mark}); run `fp8pad unpad` first")
    return source


def read_checkpoint(root: Path, follow_links: bool = False) -> Checkpoint:
    """Read any checkpoint, padded or not; see `read_unconverted` for errors, `list_folder` for links.

    Messages begin with the folder, since a command may read two.
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
    if MODELOPT_FILE in excluded:  # a link out of the folder is followed, as for config.json: the plan needs it
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
    """Reads files of the folder `root` and records the identity of each."""

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
    """Return the other safetensors files that hold tensors of the same names: second copies of the weights."""
    copies: set[str] = set()
    others = list(filter(is_shard, files))
    names = {tensor.name for shard in shards for tensor in shard.tensors} if others else ()
    for file in others:
        with suppress(HeaderError):  # not weights that fp8pad can read, so it is copied
            copies |= {file for tensor in reader.header(file).tensors if tensor.name in names}
    return copies


def padding_mark(source: Checkpoint) -> str | None:
    """Return what marks a checkpoint as written by fp8pad: any of the three records, valid or not; None if nothing."""
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
    """Return what fp8pad.json says, None if fp8pad did not write the checkpoint; `RecordError` if it is missing."""
    if RECORD_FILE in converted.other_files:
        return parse_record(read_text(converted.root, RECORD_FILE))
    if mark := padding_mark(converted):
        raise RecordError(f"{converted.root}: {RECORD_FILE} is missing, but {mark} shows that fp8pad padded it")
    return None


def check_unchanged(source: Checkpoint) -> None:
    """Raise `CheckpointError` if a file of the checkpoint was changed or replaced since it was read."""
    for file, before in source.identities.items():
        try:
            found = FileIdentity.of((source.root / file).stat())
        except OSError as error:
            raise CheckpointError(f"{file}: can no longer be read: {error.strerror}") from error
        check_identity(file, before, found)
