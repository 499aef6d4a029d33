"""Where every byte of a shard lies before and after padding: pure arithmetic that writer and verifier both walk.

A layout relates two files, the logical shard (the source's) and the padded one, and works in both directions: padding
writes the second from the first, unpadding the first from the second.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

from fp8pad.checkpoint.headers import header_bytes, in_data_order
from fp8pad.errors import PlanError
from fp8pad.geometry import as_matrices
from fp8pad.record import METADATA_KEY, PaddedTensor, Segments, shard_metadata
from fp8pad.tensors import DTYPE_BITS, ONE_BYTES, ShardHeader, TensorHeader, tensor_bytes


@dataclass(frozen=True, slots=True)
class Run:
    """`size` rows, or bytes of a row, that begin at `logical` in one file and at `padded` in the other."""

    logical: int
    padded: int
    size: int


@dataclass(frozen=True, slots=True)
class Tile:
    """Padded rows `[begin, begin + num_rows)` of a tensor, and the logical rows among them; `rows` begin at zero."""

    begin: int
    num_rows: int
    logical_begin: int
    num_logical_rows: int
    rows: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Grid:
    """A padded tensor as rows of bytes: the runs that hold the logical tensor; the rest repeats `fill`."""

    rows: tuple[Run, ...]
    columns: tuple[Run, ...]
    num_rows: int
    logical_row_bytes: int
    row_bytes: int
    fill: bytes

    def tiles(self, tile_bytes: int) -> Iterator[Tile]:
        """Cut the padded tensor into tiles of whole rows, of at most `tile_bytes` unless one row is longer."""
        height = max(1, tile_bytes // max(1, self.row_bytes))
        first = 0
        for begin in range(0, self.num_rows, height):
            end = min(begin + height, self.num_rows)
            while first < len(self.rows) and self.rows[first].padded + self.rows[first].size <= begin:
                first += 1
            yield _tile(begin, end, self.rows[first:])


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes that are equal in both files; offsets into the whole file."""

    logical: int
    padded: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Pad:
    """One padded tensor; offsets into the whole file."""

    logical: int
    padded: int
    grid: Grid


Step: TypeAlias = Copy | Pad


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """How a logical and a padded shard correspond; `steps` cover every byte of data, in order.

    `logical_prefix` and `padded_prefix` are what lies before the data. A shard without padded tensors is one `Copy` of
    the whole file and has no prefixes.
    """

    logical: ShardHeader
    padded: ShardHeader
    logical_prefix: bytes
    padded_prefix: bytes
    steps: tuple[Step, ...]

    @property
    def pad_bytes(self) -> int:
        """Bytes of the padded tensors in the padded shard."""
        return sum(step.grid.num_rows * step.grid.row_bytes for step in self.steps if isinstance(step, Pad))

    @property
    def is_untouched(self) -> bool:
        """Whether both files are the same, byte for byte."""
        return not self.padded_prefix


def shard_layout(logical: ShardHeader, logical_prefix: bytes, tensors: Mapping[str, PaddedTensor]) -> ShardLayout:
    """Lay out the padded shard of a `logical` one whose first bytes are `logical_prefix`.

    `tensors` are the padded tensors of the checkpoint, by name. Raises `PlanError` for one that does not fit.
    """
    own = {tensor.name: tensors[tensor.name] for tensor in logical.tensors if tensor.name in tensors}
    if not own:
        return ShardLayout(logical, logical, b"", b"", (Copy(0, 0, logical.file_bytes),))
    metadata = dict(logical.metadata or {})
    metadata[METADATA_KEY] = shard_metadata({name: tensor.logical_shape for name, tensor in own.items()})
    for tensor in logical.tensors:
        expected = own[tensor.name].logical_shape if tensor.name in own else tensor.shape
        if tensor.shape != expected:
            raise PlanError(f"{logical.file}: {tensor.name}: expected {list(expected)}, got {list(tensor.shape)}")
    shapes = {name: tensor.padded_shape for name, tensor in own.items()}
    padded, prefix = _resized(logical, shapes, metadata)
    return ShardLayout(logical, padded, logical_prefix, prefix, tuple(_merged(_steps(logical, padded, own))))


def logical_shard(padded: ShardHeader, shapes: Mapping[str, tuple[int, ...]]) -> tuple[ShardHeader, bytes]:
    """Work out the shard that `padded` was made from; `shapes` are the logical shapes of its padded tensors, by name.

    Returns its header, and what lies before its data as the safetensors library would write it.
    """
    metadata = {key: value for key, value in (padded.metadata or {}).items() if key != METADATA_KEY}
    return _resized(padded, shapes, metadata or None)


def _resized(
    shard: ShardHeader, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str] | None
) -> tuple[ShardHeader, bytes]:
    """Give the tensors of `shard` named in `shapes` another shape; the order of names and of data stays."""
    placed: dict[str, TensorHeader] = {}
    position = 0
    for tensor in in_data_order(shard.tensors):
        shape = shapes.get(tensor.name, tensor.shape)
        end = position + tensor_bytes(tensor.dtype, shape)
        placed[tensor.name] = TensorHeader(tensor.name, tensor.dtype, shape, position, end)
        position = end
    tensors = tuple(placed[tensor.name] for tensor in shard.tensors)
    prefix = header_bytes(tensors, metadata)
    return ShardHeader(shard.file, len(prefix) + position, len(prefix), tensors, metadata), prefix


def tensor_grid(dtype: str, tensor: PaddedTensor) -> Grid:
    """View a padded tensor of `dtype` as rows of bytes; `ValueError` if it is no stack of matrices of whole bytes."""
    num_matrices, logical_n, logical_k = as_matrices(tensor.logical_shape)
    num_padded_matrices, padded_n, padded_k = as_matrices(tensor.padded_shape)
    if num_matrices != num_padded_matrices or DTYPE_BITS[dtype] % 8:
        raise ValueError(f"{dtype} {list(tensor.logical_shape)} cannot be padded to {list(tensor.padded_shape)}")
    if tensor.fill and dtype not in ONE_BYTES:
        raise ValueError(f"{dtype} cannot be filled with 1.0")
    element_bytes = DTYPE_BITS[dtype] // 8
    on_axis = {1: None, 2: None} | ({tensor.segments.matrix_axis: tensor.segments} if tensor.segments else {})
    rows = _runs(logical_n, on_axis[1])
    columns = _runs(logical_k, on_axis[2])
    return Grid(
        rows=tuple(
            Run(matrix * logical_n + run.logical, matrix * padded_n + run.padded, run.size)
            for matrix in range(num_matrices)
            for run in rows
        ),
        columns=tuple(Run(*(size * element_bytes for size in (run.logical, run.padded, run.size))) for run in columns),
        num_rows=num_matrices * padded_n,
        logical_row_bytes=logical_k * element_bytes,
        row_bytes=padded_k * element_bytes,
        fill=ONE_BYTES[dtype] if tensor.fill else bytes(element_bytes),
    )


def _runs(size: int, segments: Segments | None) -> tuple[Run, ...]:
    if segments is None:
        return (Run(0, 0, size),)
    begins = zip(accumulate(segments.logical, initial=0), accumulate(segments.padded, initial=0), strict=True)
    return tuple(Run(*begin, size) for begin, size in zip(begins, segments.logical, strict=False))


def _tile(begin: int, end: int, rows: tuple[Run, ...]) -> Tile:
    clipped: list[Run] = []
    for run in rows:
        if run.padded >= end:
            break
        low, high = max(run.padded, begin), min(run.padded + run.size, end)
        if low < high:
            clipped.append(Run(run.logical + low - run.padded, low - begin, high - low))
    if not clipped:
        return Tile(begin, end - begin, 0, 0, ())
    logical_begin = clipped[0].logical
    num_logical_rows = clipped[-1].logical + clipped[-1].size - logical_begin
    relative = tuple(Run(run.logical - logical_begin, run.padded, run.size) for run in clipped)
    return Tile(begin, end - begin, logical_begin, num_logical_rows, relative)


def _steps(logical: ShardHeader, padded: ShardHeader, own: Mapping[str, PaddedTensor]) -> Iterator[Step]:
    pairs = zip(in_data_order(logical.tensors), in_data_order(padded.tensors), strict=True)
    for before, after in pairs:
        offsets = logical.data_start + before.begin, padded.data_start + after.begin
        if before.name not in own:
            yield Copy(*offsets, before.num_bytes)
            continue
        try:
            yield Pad(*offsets, tensor_grid(before.dtype, own[before.name]))
        except ValueError as error:
            raise PlanError(f"{logical.file}: {before.name}: {error}") from error


def _merged(steps: Iterator[Step]) -> Iterator[Step]:
    pending: Copy | None = None
    for step in steps:
        if pending and isinstance(step, Copy):
            pending = Copy(pending.logical, pending.padded, pending.num_bytes + step.num_bytes)
        elif isinstance(step, Copy):
            pending = step
        else:
            if pending:
                yield pending
            yield step
            pending = None
    if pending:
        yield pending
