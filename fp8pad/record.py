"""What fp8pad writes down and reads back: its three records on disk, their types and their version.

The shard metadata, the `quantization_config` and `fp8pad.json` are specified field by field in docs/format.md.
Parsing is strict: what is missing, of another type, or of an unknown version is a `RecordError` that names the place.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar, cast, get_args

from fp8pad.errors import RecordError, shown
from fp8pad.geometry import as_matrices

FORMAT_VERSION = 1
QUANT_METHOD = "fp8pad"
METADATA_KEY = "fp8pad"
RECORD_FILE = "fp8pad.json"

Disposition = Literal["aligned", "pad", "absorb", "skip"]
Json = Mapping[str, Any]
Shape = tuple[int, ...]
T = TypeVar("T")

MAX_NESTING = 100  # levels of objects and lists; recursion, which copies and writes them, stays far from its limit
MAX_TENSOR_PARALLEL_SIZE = 1024


@dataclass(frozen=True, slots=True)
class Axes:
    """How each axis of a weight, or of a tensor that follows it, is settled."""

    n: Disposition
    k: Disposition


@dataclass(frozen=True, slots=True)
class Segments:
    """Several matrices in one tensor along one axis, each padded at its own tail.

    `axis` counts from the end of the tensor's shape; None is the N axis (see `geometry.as_matrices`).
    """

    logical: tuple[int, ...]
    padded: tuple[int, ...]
    axis: int | None = None

    @property
    def matrix_axis(self) -> int:
        """The axis in `geometry.as_matrices`: 1 is N, 2 is K."""
        return 1 if self.axis is None else 3 + self.axis


@dataclass(frozen=True, slots=True)
class PaddedTensor:
    """One tensor that is larger on disk than in the source: at its tail, or at the tail of each of its segments.

    `fill` is the value of the added elements: 0 for weights and biases, 1 for scales (in the scale's own dtype).
    """

    logical_shape: Shape
    padded_shape: Shape
    fill: Literal[0, 1]
    axes: Axes
    segments: Segments | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """What the user asked for; `alignment` "auto" is 16, or the scale block."""

    alignment: Literal["auto", 16, 32, 64, 128] = "auto"
    tensor_parallel_size: int = 1
    absorb: bool = False
    absorb_experts: bool = False


@dataclass(frozen=True, slots=True)
class ConfigEdit:
    """One size that absorbing changed; `key` is the dotted path inside `file`."""

    file: str
    key: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class BaseSource:
    """Where the original quantization config stood: a dotted `key` of `file`, or the whole file where it is None."""

    file: str
    key: str | None


@dataclass(frozen=True, slots=True)
class ModuleRecord:
    """What the runtime knows of one Linear, `[N, K]` each: the shape the config asks for, the one on disk."""

    logical_shape: tuple[int, int]
    padded_shape: tuple[int, int]
    alignment: tuple[int, int]


@dataclass(frozen=True, slots=True)
class QuantizationRecord:
    """The `quantization_config` of a padded checkpoint; `base` is the original, verbatim."""

    modules: Mapping[str, ModuleRecord]
    base: Json
    fp8pad_version: str

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that config.json carries."""
        return {
            "quant_method": QUANT_METHOD,
            "format_version": FORMAT_VERSION,
            "fp8pad_version": self.fp8pad_version,
            "modules": {name: asdict(module) for name, module in self.modules.items()},
            "base": self.base,
        }


@dataclass(frozen=True, slots=True)
class FileRecord:
    """Sizes in bytes of one file before and after, and hashes where they were asked for."""

    source_size: int
    size: int
    sha256: str | None = None
    source_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """`fp8pad.json`: everything that verify, unpad and inspect need to know of what was done."""

    fp8pad_version: str
    policy: Policy
    tensors: Mapping[str, PaddedTensor]
    config_edits: tuple[ConfigEdit, ...] = ()
    base_source: BaseSource | None = None
    originals: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, FileRecord] = field(default_factory=dict)

    def to_text(self) -> str:
        """Return the text of `fp8pad.json`."""
        document = {
            "format_version": FORMAT_VERSION,
            "fp8pad_version": self.fp8pad_version,
            "policy": asdict(self.policy),
            "tensors": {name: tensor_to_json(tensor) for name, tensor in self.tensors.items()},
            "config_edits": [asdict(edit) for edit in self.config_edits],
            "base_source": asdict(self.base_source) if self.base_source else None,
            "originals": dict(self.originals),
            "files": {name: _without_none(asdict(file)) for name, file in self.files.items()},
        }
        return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def parse_json(text: str) -> Any:
    """Return what JSON text says.

    Raises `ValueError` if it is not JSON, or could not be written again: if it nests deeper than `MAX_NESTING`, or has
    an escape of half a surrogate pair, which no UTF-8 stands for.
    """
    try:
        document = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"expected at most {MAX_NESTING} levels") from error
    _check_nesting(document)
    if "\\u" in text:
        json.dumps(document, ensure_ascii=False).encode()
    return document


def _check_nesting(document: object) -> None:
    level = [document]
    for _ in range(MAX_NESTING):
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return
    raise ValueError(f"expected at most {MAX_NESTING} levels")


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def tensor_to_json(tensor: PaddedTensor) -> dict[str, Any]:
    """Return one entry of `tensors` in `fp8pad.json`; optional fields are left out where they say nothing."""
    document = _without_none(asdict(tensor))
    if tensor.segments:
        document["segments"] = _without_none(asdict(tensor.segments))
    return document


def shard_metadata(logical_shapes: Mapping[str, Shape]) -> str:
    """Return the value of the `fp8pad` key in a shard's `__metadata__`."""
    tensors = {name: {"logical_shape": list(shape)} for name, shape in logical_shapes.items()}
    return json.dumps({"format_version": FORMAT_VERSION, "tensors": tensors}, separators=(",", ":"))


def parse_shard_metadata(text: str, file: str) -> dict[str, Shape]:
    """Return the logical shape of each tensor named in a shard's `fp8pad` metadata; `RecordError` if it is not one."""
    reader = _Reader.of_text(text, f"{file}: __metadata__.{METADATA_KEY}")
    reader.check_version()
    return {name: entry.shape("logical_shape") for name, entry in reader.entries("tensors")}


def parse_quantization_config(document: object, file: str = "config.json") -> QuantizationRecord:
    """Read a `quantization_config` that fp8pad wrote; `RecordError` if anything in it is not as specified."""
    reader = _Reader(document, f"{file}: quantization_config")
    reader.check_version()
    modules = {name: _module(entry) for name, entry in reader.entries("modules")}
    return QuantizationRecord(modules, reader.object("base"), reader.get("fp8pad_version", str))


def parse_record(text: str) -> CheckpointRecord:
    """Read the text of `fp8pad.json`; `RecordError` if anything in it is not as specified."""
    reader = _Reader.of_text(text, RECORD_FILE)
    reader.check_version()
    return CheckpointRecord(
        fp8pad_version=reader.get("fp8pad_version", str),
        policy=_policy(reader.child("policy")),
        tensors={name: _padded_tensor(entry) for name, entry in reader.entries("tensors")},
        config_edits=tuple(_config_edit(edit) for edit in reader.items("config_edits")),
        base_source=_base_source(reader),
        originals=reader.strings("originals"),
        files={name: _file(entry) for name, entry in reader.entries("files")},
    )


@dataclass(frozen=True)
class _Reader:
    """One JSON object and the place it was found at, for messages."""

    document: Any
    where: str

    def __post_init__(self) -> None:
        if not isinstance(self.document, dict):
            raise RecordError(f"{self.where}: expected an object, got {shown(self.document)}")

    @classmethod
    def of_text(cls, text: str, where: str) -> "_Reader":
        try:
            return cls(parse_json(text), where)
        except ValueError as error:
            raise RecordError(f"{where}: not JSON: {error}") from error

    def check_version(self) -> None:
        version = self.document.get("format_version")
        if type(version) is not int or version != FORMAT_VERSION:
            raise RecordError(f"{self.where}: format_version: expected {FORMAT_VERSION}, got {shown(version)}")

    def get(self, key: str, kind: type[T]) -> T:
        value = self.document.get(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise RecordError(f"{self.where}: {key}: expected {kind.__name__}, got {shown(value)}")
        return value

    def optional(self, key: str, kind: type[T]) -> T | None:
        return None if self.document.get(key) is None else self.get(key, kind)

    def object(self, key: str) -> Json:
        return cast("Json", self.get(key, dict))

    def child(self, key: str) -> "_Reader":
        return _Reader(self.document.get(key), f"{self.where}: {key}")

    def entries(self, key: str) -> list[tuple[str, "_Reader"]]:
        return [(name, _Reader(value, f"{self.where}: {key}: {name}")) for name, value in self.object(key).items()]

    def items(self, key: str) -> list["_Reader"]:
        values = self.get(key, list)
        return [_Reader(value, f"{self.where}: {key}[{index}]") for index, value in enumerate(values)]

    def strings(self, key: str) -> dict[str, str]:
        child = self.child(key)
        return {name: child.get(name, str) for name in child.document}

    def size(self, key: str) -> int:
        value = self.get(key, int)
        if value < 0:
            raise RecordError(f"{self.where}: {key}: expected a size, got {value}")
        return value

    def shape(self, key: str) -> Shape:
        values = self.get(key, list)
        if not all(type(value) is int and 0 <= value < 2**63 for value in values):
            raise RecordError(f"{self.where}: {key}: expected a list of sizes, got {shown(values)}")
        return tuple(values)

    def pair(self, key: str) -> tuple[int, int]:
        shape = self.shape(key)
        if len(shape) != 2:
            raise RecordError(f"{self.where}: {key}: expected two sizes, got {shown(list(shape))}")
        return shape[0], shape[1]

    def one_of(self, key: str, choices: Sequence[T]) -> T:
        value = self.document.get(key)
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise RecordError(f"{self.where}: {key}: expected one of {list(choices)}, got {shown(value)}")
        return cast("T", value)


def _module(entry: _Reader) -> ModuleRecord:
    module = ModuleRecord(entry.pair("logical_shape"), entry.pair("padded_shape"), entry.pair("alignment"))
    _check_larger(entry, module.logical_shape, module.padded_shape)
    if 0 in module.alignment:
        raise RecordError(f"{entry.where}: alignment: expected two positive sizes, got {list(module.alignment)}")
    return module


def _padded_tensor(entry: _Reader) -> PaddedTensor:
    axes = entry.child("axes")
    tensor = PaddedTensor(
        logical_shape=entry.shape("logical_shape"),
        padded_shape=entry.shape("padded_shape"),
        fill=entry.one_of("fill", (0, 1)),
        axes=Axes(axes.one_of("n", get_args(Disposition)), axes.one_of("k", get_args(Disposition))),
        segments=_segments(entry.child("segments")) if "segments" in entry.document else None,
    )
    _check_larger(entry, tensor.logical_shape, tensor.padded_shape)
    if tensor.segments:
        _check_segments(entry, tensor, tensor.segments)
    return tensor


def _segments(entry: _Reader) -> Segments:
    segments = Segments(entry.shape("logical"), entry.shape("padded"), entry.optional("axis", int))
    _check_larger(entry, segments.logical, segments.padded)
    return segments


def _check_larger(entry: _Reader, logical: Shape, padded: Shape) -> None:
    if len(logical) != len(padded) or any(small > large for small, large in zip(logical, padded, strict=True)):
        raise RecordError(f"{entry.where}: {list(logical)} does not fit into its padded {list(padded)}")


def _check_segments(entry: _Reader, tensor: PaddedTensor, segments: Segments) -> None:
    try:
        shapes = as_matrices(tensor.logical_shape), as_matrices(tensor.padded_shape)
    except ValueError as error:
        raise RecordError(f"{entry.where}: segments: {error}") from error
    axis = segments.matrix_axis
    if axis not in (1, 2) or (sum(segments.logical), sum(segments.padded)) != (shapes[0][axis], shapes[1][axis]):
        raise RecordError(f"{entry.where}: segments do not add up to {list(tensor.logical_shape)}")


def _policy(entry: _Reader) -> Policy:
    return Policy(
        alignment=entry.one_of("alignment", ("auto", 16, 32, 64, 128)),
        tensor_parallel_size=_tensor_parallel_size(entry),
        absorb=entry.get("absorb", bool),
        absorb_experts=entry.get("absorb_experts", bool),
    )


def _tensor_parallel_size(entry: _Reader) -> int:
    size = entry.size("tensor_parallel_size")
    if not 1 <= size <= MAX_TENSOR_PARALLEL_SIZE:
        raise RecordError(f"{entry.where}: tensor_parallel_size: expected 1 to {MAX_TENSOR_PARALLEL_SIZE}, got {size}")
    return size


def _config_edit(entry: _Reader) -> ConfigEdit:
    return ConfigEdit(
        entry.get("file", str), entry.get("key", str), entry.document.get("old"), entry.document.get("new")
    )


def _base_source(reader: _Reader) -> BaseSource | None:
    if reader.document.get("base_source") is None:
        return None
    entry = reader.child("base_source")
    return BaseSource(entry.get("file", str), entry.optional("key", str))


def _file(entry: _Reader) -> FileRecord:
    hashes = entry.optional("sha256", str), entry.optional("source_sha256", str)
    return FileRecord(entry.size("source_size"), entry.size("size"), *hashes)


def _without_none(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if value is not None}
