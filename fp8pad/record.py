"""What fp8pad writes down and reads back: its three records on disk, their types and their version.

The shard metadata, the `quantization_config` and `fp8pad.json` are specified field by field in docs/format.md.
Parsing is strict: what is missing, of another type, or of an unknown version is a `RecordError` that names the place.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate, islice
from typing import Annotated, Any, Literal

from fp8pad.errors import RecordError, UsageError, shown
from fp8pad.geometry import as_matrices
from fp8pad.reading import ALWAYS_WRITTEN, PositiveSize, Reader, Size, check_fields

FORMAT_VERSION = 1
QUANT_METHOD = "fp8pad"
METADATA_KEY = "fp8pad"
RECORD_FILE = "fp8pad.json"
CONFIG_FILE = "config.json"
MODELOPT_FILE = "hf_quant_config.json"  # where NVIDIA ModelOpt keeps its quantization config

Axis = Literal["n", "k"]  # of a weight `[N, K]`
Disposition = Literal["aligned", "pad", "absorb", "skip"]
Alignment = Literal["auto", 16, 32, 64, 128, "marlin", "sm120", "deepgemm"]
Json = Mapping[str, Any]
Shape = tuple[Size, ...]
FullShape = tuple[PositiveSize, ...]  # of a tensor that has elements: an empty one is never padded, whatever its sizes

MAX_TENSOR_PARALLEL_SIZE = 1024
# Gate, up and down, or Q, K and V, of each of 1,024 experts are 3,072 segments. Each costs work in every row.
MAX_SEGMENTS = 4096

TENSORS_PER_PART = 1000  # of the text of fp8pad.json

_READER = Reader(RecordError)


@dataclass(frozen=True, slots=True)
class AxisActions:
    """What is done to each axis of a weight, or of a tensor that follows it."""

    n: Disposition
    k: Disposition

    @classmethod
    def where_larger(cls, done: Disposition, old: Shape, new: Shape) -> "AxisActions":
        """Return `done` for each axis of a matrix that is larger in `new` than in `old`, else "aligned"."""
        sizes = zip(as_matrices(old)[1:], as_matrices(new)[1:], strict=True)
        return cls(*(done if size != new_size else "aligned" for size, new_size in sizes))

    def and_then(self, other: "AxisActions") -> "AxisActions":
        """Return both actions combined: for each axis that is "aligned" here, that of `other`."""
        pairs = zip(self.both, other.both, strict=True)
        return AxisActions(*(second if first == "aligned" else first for first, second in pairs))

    @property
    def both(self) -> tuple[Disposition, Disposition]:
        """What is done to N and to K."""
        return self.n, self.k


@dataclass(frozen=True, slots=True)
class Segments:
    """Several matrices in one tensor along one axis, each padded at its own tail.

    `axis` counts from the end of the tensor's shape; None is the N axis (see `geometry.as_matrices`).
    """

    logical: FullShape
    padded: FullShape
    axis: int | None = None

    def __post_init__(self) -> None:
        """Raise `ValueError` for what is no padding."""
        _check_larger(self.logical, self.padded)
        if len(self.logical) > MAX_SEGMENTS:
            raise ValueError(f"expected at most {MAX_SEGMENTS}, got {len(self.logical)}")

    @property
    def matrix_axis(self) -> int:
        """The axis in `geometry.as_matrices`: 1 is N, 2 is K."""
        return 1 if self.axis is None else 3 + self.axis

    @property
    def runs(self) -> Iterator[tuple[int, int, int]]:
        """Where each matrix begins along the axis, before and after padding, and its logical size."""
        begins = accumulate(self.logical, initial=0), accumulate(self.padded, initial=0)
        return zip(*begins, self.logical, strict=False)


@dataclass(frozen=True, slots=True)
class PaddedTensor:
    """One tensor that is larger on disk than in the source: at its tail, or at the tail of each of its segments.

    `fill` is the value of the added elements: 0 for weights and biases, 1 for scales (in the scale's own dtype).
    """

    logical_shape: FullShape
    padded_shape: FullShape
    fill: Literal[0, 1]
    axes: AxisActions
    segments: Segments | None = None

    def __post_init__(self) -> None:
        """Raise `ValueError` for what is no padding."""
        _check_larger(self.logical_shape, self.padded_shape)
        if self.segments:
            axis, shapes = self.segments.matrix_axis, map(as_matrices, (self.logical_shape, self.padded_shape))
            sums = sum(self.segments.logical), sum(self.segments.padded)
            if axis not in (1, 2) or sums != tuple(shape[axis] for shape in shapes):
                raise ValueError(f"segments: do not add up to {list(self.logical_shape)}")


@dataclass(frozen=True, slots=True)
class Policy:
    """What the user asked for; `alignment` "auto" is 16, or the scale block; a name is what those kernels require.

    `skip` are globs of modules that are carried unchanged. Raises `UsageError` for values that a record cannot hold.
    """

    alignment: Alignment = field(default="auto", metadata=ALWAYS_WRITTEN)
    tensor_parallel_size: Annotated[int, range(1, MAX_TENSOR_PARALLEL_SIZE + 1), "1 to 1024"] = field(
        default=1, metadata=ALWAYS_WRITTEN
    )
    absorb: bool = field(default=False, metadata=ALWAYS_WRITTEN)
    absorb_experts: bool = field(default=False, metadata=ALWAYS_WRITTEN)
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_fields(self, UsageError)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object for documents that include a policy; `skip` is omitted if it is empty."""
        return _without(asdict(self), ())


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
class ModuleRecord:
    """What the runtime knows about one Linear, each as `[N, K]`: the config's shape, the one on disk, the alignment.

    `inner` is the axis that is inside an MLP, between up and down, if any.
    """

    logical_shape: tuple[PositiveSize, PositiveSize]
    padded_shape: tuple[PositiveSize, PositiveSize]
    alignment: tuple[PositiveSize, PositiveSize]
    inner: Axis | None = None

    def __post_init__(self) -> None:
        """Raise `ValueError` for what is no padding."""
        _check_larger(self.logical_shape, self.padded_shape)

    def to_json(self) -> dict[str, Any]:
        """Return one entry of `modules` in config.json."""
        return _without(asdict(self), None)

    @property
    def is_padded(self) -> bool:
        """Whether it is larger on disk than the config asks for."""
        return self.padded_shape != self.logical_shape


@dataclass(frozen=True, slots=True)
class QuantizationRecord:
    """The `quantization_config` of a padded checkpoint; `base` is the original, verbatim."""

    modules: Mapping[str, ModuleRecord]
    base: Json
    fp8pad_version: str

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that config.json carries."""
        modules = {module: module.to_json() for module in set(self.modules.values())}  # many are equal
        return {
            "quant_method": QUANT_METHOD,
            "format_version": FORMAT_VERSION,
            "fp8pad_version": self.fp8pad_version,
            "modules": {name: modules[module] for name, module in self.modules.items()},
            "base": self.base,
        }


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
            "files": {name: _without(asdict(file), None) for name, file in self.files.items()},
        }
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        before, tensors, after = text.partition('\n "tensors": {')
        yield before + tensors
        yield from _tensors_parts(self.tensors)
        yield after


def plugin_config(config: Json) -> Json | None:
    """Return the part of a config that asks an engine for fp8pad's quantization method; None if there is none."""
    if config.get("quant_method") == QUANT_METHOD:
        return config
    inner = (plugin_config(value) for value in config.values() if isinstance(value, dict))
    return next(filter(None, inner), None)


def quantization_method(document: Json) -> str | None:
    """Return the method that a quantization config names or implies, as vLLM spells it; None if it does neither.

    ModelOpt's own files name an algorithm instead, and early compressed-tensors configs name nothing. Source:
    `_normalize_quantization_config` in vLLM's transformers_utils/model_arch_config_convertor.py.
    """
    if isinstance(method := document.get("quant_method"), str):
        return method.lower().replace("compressed_tensors", "compressed-tensors")
    if "quant_algo" in document or "quantization" in document:
        return "modelopt"
    return "compressed-tensors" if "config_groups" in document else None


def tensor_to_json(tensor: PaddedTensor) -> dict[str, Any]:
    """Return one entry of `tensors` in `fp8pad.json`; optional fields are omitted if they are None."""
    return _without(asdict(tensor), None)


def _tensors_parts(tensors: Mapping[str, PaddedTensor]) -> Iterator[str]:
    """Yield the entries of `tensors` as JSON; many tensors share a few dozen shapes, each of which is encoded once."""
    distinct = set(tensors.values())
    entries = {tensor: json.dumps(tensor_to_json(tensor), indent=1).replace("\n", "\n  ") for tensor in distinct}
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


def parse_quantization_config(document: object, file: str = CONFIG_FILE) -> QuantizationRecord:
    """Read a `quantization_config` that fp8pad wrote; `RecordError` if anything in it is not as specified."""
    where = f"{file}: quantization_config"
    return _READER.read_versioned(QuantizationRecord, document, FORMAT_VERSION, where)


def parse_record(text: str) -> CheckpointRecord:
    """Read the text of `fp8pad.json`; `RecordError` if anything in it is not as specified."""
    document = _READER.parse_json(text, RECORD_FILE, shares=True)
    return _READER.read_versioned(CheckpointRecord, document, FORMAT_VERSION, RECORD_FILE)


def _check_larger(logical: Shape, padded: Shape) -> None:
    if len(logical) != len(padded) or any(small > large for small, large in zip(logical, padded, strict=True)):
        raise ValueError(f"{list(logical)} does not fit into its padded {list(padded)}")


def _without(document: dict[str, Any], nothing: object) -> dict[str, Any]:
    """Return `document` without the entries, of inner objects too, whose value is `nothing`."""
    kept = ((key, value) for key, value in document.items() if value != nothing)
    return {key: _without(value, nothing) if isinstance(value, dict) else value for key, value in kept}
