"""A checkpoint folder as one frozen object: shard headers, configs and other files; read.py makes it."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import chain
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
from fp8pad.checkpoint.folder import INDEX_FILE, read_text, read_text_and_identity
from fp8pad.checkpoint.headers import LENGTH_BYTES, read_prefix
from fp8pad.errors import CheckpointError, RecordError
from fp8pad.quantization_config import QUANT_METHOD, plugin_config
from fp8pad.record import CONFIG_FILE, METADATA_KEY, RECORD_FILE, CheckpointRecord, Json, parse_record
from fp8pad.tensors import ShardHeader, TensorHeader

MISTRAL_CONFIG_FILE = "params.json"  # the config of the weights in consolidated*.safetensors


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

    @property
    def tensors(self) -> Iterator[TensorHeader]:
        """All tensors, shard by shard."""
        return chain.from_iterable(shard.tensors for shard in self.shards)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.num_bytes for tensor in self.tensors)

    @property
    def shard_files(self) -> set[str]:
        """The names of the shards."""
        return {shard.file for shard in self.shards}

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
    def padding_mark(self) -> str | None:
        """What marks it as written by fp8pad: any of the three records, valid or not; None if nothing does."""
        if RECORD_FILE in self.other_files or RECORD_FILE in self.excluded:
            return RECORD_FILE
        for file, config in self.configs.items():
            if plugin_config(config):
                return f"quant_method {QUANT_METHOD} in {file}"
        marked = (shard.file for shard in self.shards if METADATA_KEY in (shard.metadata or {}))
        return next((f"the metadata of {file}" for file in marked), None)

    def read_record(self) -> CheckpointRecord | None:
        """Return what fp8pad.json says, None if fp8pad did not write the checkpoint; `RecordError` if it is missing."""
        if RECORD_FILE in self.other_files:
            try:
                return parse_record(read_text(self.root, RECORD_FILE))
            except CheckpointError as error:
                raise type(error)(f"{self.root}: {error}") from error
        if mark := self.padding_mark:
            raise RecordError(f"{self.root}: {RECORD_FILE} is missing, but {mark} shows that fp8pad padded it")
        return None

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

    def check_unchanged(self) -> None:
        """Raise `CheckpointError` if a file of the checkpoint was changed or replaced since it was read."""
        for file, before in self.identities.items():
            try:
                found = FileIdentity.of((self.root / file).stat())
            except OSError as error:
                raise CheckpointError(f"{file}: can no longer be read: {error.strerror}") from error
            check_identity(file, before, found)
