"""What fp8pad writes down and reads back: `fp8pad.json` and the metadata of shards, field by field in docs/format.md.

The third record, in config.json, is in quantization_config.py. Parsing is strict: what is missing, of another type, or
of an unknown version is a `RecordError` that names the place.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Annotated, Any, Literal

from fp8pad.errors import RecordError, UsageError, shown
from fp8pad.padded import PaddedTensor, Shape
from fp8pad.reading import Reader, Size, check_fields, to_json

FORMAT_VERSION = 1  # of the three records on disk
REPORT_VERSION = 1  # of what commands print with --json
METADATA_KEY = "fp8pad"
RECORD_FILE = "fp8pad.json"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
MODELOPT_FILE = "hf_quant_config.json"  # where NVIDIA ModelOpt keeps its quantization config

Alignment = Literal["auto", 16, 32, 64, 128, "marlin", "sm120", "deepgemm"]
Json = Mapping[str, Any]

MAX_TENSOR_PARALLEL_SIZE = 1024

TENSORS_PER_PART = 1000  # of the text of fp8pad.json

_READER = Reader(RecordError)


@dataclass(frozen=True, slots=True)
class Policy:
    """What the user asked for; `alignment` "auto" is 16, or the scale block; a name is what those kernels require.

    `skip` are globs of modules that are carried unchanged. Raises `UsageError` for values that a record cannot hold.
    """

    alignment: Alignment = "auto"
    tensor_parallel_size: Annotated[int, range(1, MAX_TENSOR_PARALLEL_SIZE + 1), "1 to 1024"] = 1
    absorb: bool = False
    absorb_experts: bool = False
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, UsageError)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object for documents that include a policy; `skip` is omitted if it is empty."""
        return {key: value for key, value in asdict(self).items() if value != ()}


@dataclass(frozen=True, slots=True)
class ConfigEdit:
    """One size that absorbing changed; `key` is the dotted path inside `file`."""

    file: str
    key: str
    old: Size
    new: Size


def by_key(edits: Iterable[ConfigEdit]) -> tuple[ConfigEdit, ...]:
    """Return the edits for people: those of a list's items, which all change alike, as one edit of the list."""
    return tuple(dict.fromkeys(replace(edit, key=re.sub(r"(\.\d+)+$", "", edit.key)) for edit in edits))


@dataclass(frozen=True, slots=True)
class BaseSource:
    """Where the original quantization config was: at a dotted `key` of `file`, or the whole file if `key` is None."""

    file: str
    key: str | None


@dataclass(frozen=True, slots=True)
class _ShardTensor:
    logical_shape: Shape


@dataclass(frozen=True, slots=True)
class _ShardRecord:
    tensors: Mapping[str, _ShardTensor]


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Sizes in bytes of one file before and after converting, and hashes if they were asked for."""

    source_size: Size
    size: Size
    sha256: str | None = None
    source_sha256: str | None = None

    def __post_init__(self) -> None:
        """Raise `ValueError` for a hash that is not 64 hexadecimal digits."""
        for digest in (self.sha256, self.source_sha256):
            if digest is not None and not re.fullmatch("[0-9a-f]{64}", digest):
                raise ValueError(f"expected a SHA-256, got {shown(digest)}")


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """`fp8pad.json`: everything that verify, unpad and inspect need to know about what was done."""

    fp8pad_version: str
    policy: Policy
    tensors: Mapping[str, PaddedTensor]
    config_edits: tuple[ConfigEdit, ...]
    base_source: BaseSource | None
    originals: Mapping[str, str]
    files: Mapping[str, FileRecord]

    @property
    def has_hashes(self) -> bool:
        """Whether it has the hash of any file; a record that is not damaged has both of all files, or none."""
        return any(entry.sha256 or entry.source_sha256 for entry in self.files.values())

    @property
    def restored(self) -> set[str]:
        """The model card if it was edited: unpadding restores its original text, or removes it if that is empty."""
        return {CARD_FILE} & self.originals.keys()

    def text_parts(self) -> Iterator[str]:
        """Yield the text of `fp8pad.json` in parts: it can take more memory than all headers of a large checkpoint."""
        document: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "fp8pad_version": self.fp8pad_version,
            "policy": self.policy.to_json(),
            "tensors": {},
            "config_edits": [asdict(edit) for edit in self.config_edits],
            "base_source": asdict(self.base_source) if self.base_source else None,
            "originals": dict(self.originals),
            "files": {name: to_json(file) for name, file in self.files.items()},
        }
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        before, tensors, after = text.partition('\n "tensors": {')
        yield before + tensors
        yield from _tensors_parts(self.tensors)
        yield after


def _tensors_parts(tensors: Mapping[str, PaddedTensor]) -> Iterator[str]:
    """Yield the entries of `tensors` as JSON; many tensors share a few dozen shapes, each of which is encoded once."""
    distinct = set(tensors.values())
    entries = {tensor: json.dumps(to_json(tensor), indent=1).replace("\n", "\n  ") for tensor in distinct}
    lines = (f"  {json.dumps(name, ensure_ascii=False)}: {entries[tensor]}" for name, tensor in tensors.items())
    separator = "\n"
    while some := list(islice(lines, TENSORS_PER_PART)):
        yield separator + ",\n".join(some)
        separator = ",\n"
    if tensors:
        yield "\n "


def shard_metadata(logical_shapes: Mapping[str, Shape]) -> str:
    """Return the value of the `fp8pad` key in a shard's `__metadata__`."""
    tensors = {name: {"logical_shape": list(shape)} for name, shape in logical_shapes.items()}
    return json.dumps({"format_version": FORMAT_VERSION, "tensors": tensors}, separators=(",", ":"))


def parse_shard_metadata(text: str, file: str) -> dict[str, Shape]:
    """Return the logical shape of each tensor in a shard's `fp8pad` metadata; `RecordError` if it is malformed."""
    where = f"{file}: __metadata__.{METADATA_KEY}"
    shard = _READER.read_versioned(_ShardRecord, _READER.parse_json(text, where), FORMAT_VERSION, where)
    return {name: tensor.logical_shape for name, tensor in shard.tensors.items()}


def parse_record(text: str) -> CheckpointRecord:
    """Read the text of `fp8pad.json`; `RecordError` if anything in it is not as specified."""
    document = _READER.parse_json(text, RECORD_FILE, shares=True)
    return _READER.read_versioned(CheckpointRecord, document, FORMAT_VERSION, RECORD_FILE)
