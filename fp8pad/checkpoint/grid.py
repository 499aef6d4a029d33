"""A padded tensor as rows of bytes in two files, and the chunks in which they are moved: pure arithmetic.

It works in both directions: from the logical tensor to the padded one, which has gaps to fill, and back.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod

from fp8pad.geometry import as_matrices
from fp8pad.padded import PaddedTensor, Segments
from fp8pad.tensors import DTYPE_BITS, ONE_BYTES


@dataclass(frozen=True, slots=True)
class Run:
    """`size` consecutive indices along an axis, from `source` on in one file and from `target` on in the other.

    Without a source they are a gap, which is filled.
    """

    source: int | None
    target: int
    size: int


@dataclass(frozen=True, slots=True)
class AxisMap:
    """An axis of a tensor in both files, with the runs that both contain, in order."""

    source_size: int
    target_size: int
    runs: tuple[Run, ...]

    @property
    def is_same(self) -> bool:
        """Whether nothing moves along this axis."""
        return self.source_size == self.target_size

    def pieces(self) -> Iterator[Run]:
        """Yield the runs and the gaps of the target between and after them: all of the target, in order."""
        end = 0
        for run in self.runs:
            if run.target > end:
                yield Run(None, end, run.target - end)
            if run.size:
                yield run
            end = run.target + run.size
        if self.target_size > end:
            yield Run(None, end, self.target_size - end)

    def times(self, number: int) -> "AxisMap":
        """Return the axis with each index divided into `number` smaller ones."""
        runs = (Run((run.source or 0) * number, run.target * number, run.size * number) for run in self.runs)
        return AxisMap(self.source_size * number, self.target_size * number, tuple(runs))

    def inverse(self) -> "AxisMap":
        """Return the axis in the opposite direction."""
        runs = (Run(run.target, run.source or 0, run.size) for run in self.runs)
        return AxisMap(self.target_size, self.source_size, tuple(runs))


def _whole(size: int) -> AxisMap:
    return AxisMap(size, size, (Run(0, 0, size),))


ONE = _whole(1)


@dataclass(frozen=True, slots=True)
class Chunk:
    """Whole matrices of a stack, rows of one, or part of a row, which begin at byte `source` and at byte `target`.

    `rows` are those of each matrix, `columns` the bytes of each row. Target bytes that are not in a run are filled.
    """

    source: int
    target: int
    columns: AxisMap
    rows: AxisMap = ONE
    num_matrices: int = 1

    @property
    def source_shape(self) -> tuple[int, int, int]:
        """Matrices, rows, and bytes of a row, to read."""
        return self.num_matrices, self.rows.source_size, self.columns.source_size

    @property
    def target_shape(self) -> tuple[int, int, int]:
        """Matrices, rows, and bytes of a row, to write."""
        return self.num_matrices, self.rows.target_size, self.columns.target_size

    @property
    def source_bytes(self) -> int:
        """Bytes to read."""
        return prod(self.source_shape)

    @property
    def target_bytes(self) -> int:
        """Bytes to write."""
        return prod(self.target_shape)

    @property
    def is_copy(self) -> bool:
        """Whether the bytes to write are the bytes that are read."""
        return self.columns.is_same and self.rows.is_same

    def pieces(self) -> Iterator[tuple[Run, Run]]:
        """Yield the pieces of each target matrix as (rows, columns); a piece is filled if either is a gap."""
        return product(self.rows.pieces(), self.columns.pieces())


@dataclass(frozen=True, slots=True)
class Grid:
    """A tensor as `num_matrices` stacked matrices; `rows` are those of one, `columns` the bytes of a row.

    `fill` is the element that gaps are filled with, as bytes.
    """

    num_matrices: int
    rows: AxisMap
    columns: AxisMap
    fill: bytes

    def chunks(self, source: int, target: int, limit: int) -> Iterator[Chunk]:
        """Yield all bytes of the target, in order, in chunks of at most `limit` bytes on either side.

        `source` and `target` are the offsets at which the tensor begins. A chunk takes as many matrices as fit, since a
        stack may have one per byte. If one matrix does not fit, no chunk holds rows of two runs.
        """
        whole = Chunk(source, target, self.columns, self.rows)
        height = limit // max(whole.source_bytes, whole.target_bytes)
        for matrix in range(0, self.num_matrices, max(1, height)):
            begin = source + matrix * whole.source_bytes, target + matrix * whole.target_bytes
            if height:
                yield Chunk(*begin, self.columns, self.rows, min(height, self.num_matrices - matrix))
            else:
                for run in self.rows.pieces():
                    yield from self._rows(run, *begin, limit)

    def _rows(self, run: Run, source: int, target: int, limit: int) -> Iterator[Chunk]:
        columns, unit = self.columns, len(self.fill)
        target += run.target * columns.target_size
        if run.source is None:
            yield from fill_chunks(target, run.size * columns.target_size, limit, unit)
            return
        source += run.source * columns.source_size
        widest = max(columns.source_size, columns.target_size)
        if widest > limit:
            for row in range(run.size):
                begin = source + row * columns.source_size, target + row * columns.target_size
                yield from self._parts_of_row(*begin, limit)
            return
        height = limit // widest
        for row in range(0, run.size, height):
            begin = source + row * columns.source_size, target + row * columns.target_size
            yield Chunk(*begin, columns, _whole(min(height, run.size - row)))

    def _parts_of_row(self, source: int, target: int, limit: int) -> Iterator[Chunk]:
        for run in self.columns.pieces():
            if run.source is None:
                yield from fill_chunks(target + run.target, run.size, limit, len(self.fill))
            else:
                yield from copy_chunks(source + run.source, target + run.target, run.size, limit)


def copy_chunks(source: int, target: int, num_bytes: int, limit: int) -> Iterator[Chunk]:
    """Yield chunks of bytes that are the same on both sides."""
    for begin in range(0, num_bytes, limit):
        size = min(limit, num_bytes - begin)
        yield Chunk(source + begin, target + begin, _whole(size))


def fill_chunks(target: int, num_bytes: int, limit: int, unit: int) -> Iterator[Chunk]:
    """Yield chunks of bytes to be filled, in whole elements of `unit` bytes each."""
    limit = max(unit, limit // unit * unit)
    for begin in range(0, num_bytes, limit):
        yield Chunk(0, target + begin, AxisMap(0, min(limit, num_bytes - begin), ()))


@lru_cache(256)  # many tensors share few shapes, and then one grid
def tensor_grid(dtype: str, tensor: PaddedTensor, is_inverse: bool = False) -> Grid:
    """Return how a tensor of `dtype` is padded, or how it is cut if `is_inverse`.

    Raises `ValueError` if its shapes, dtype or fill do not allow it.
    """
    num_matrices, logical_n, logical_k = as_matrices(tensor.logical_shape)
    num_padded_matrices, padded_n, padded_k = as_matrices(tensor.padded_shape)
    if num_matrices != num_padded_matrices or DTYPE_BITS[dtype] % 8:
        raise ValueError(f"{dtype} {list(tensor.logical_shape)} cannot be padded to {list(tensor.padded_shape)}")
    if tensor.fill and dtype not in ONE_BYTES:
        raise ValueError(f"{dtype} cannot be filled with 1.0")
    element_bytes = DTYPE_BITS[dtype] // 8
    on_axis = {1: None, 2: None} | ({tensor.segments.matrix_axis: tensor.segments} if tensor.segments else {})
    rows = _axis(logical_n, padded_n, on_axis[1])
    columns = _axis(logical_k, padded_k, on_axis[2]).times(element_bytes)
    if columns.is_same:  # without gaps in rows, each matrix is one long row
        rows, columns = ONE, rows.times(columns.source_size)
    if rows.is_same:
        num_matrices, rows = 1, _whole(num_matrices * rows.source_size)
    if is_inverse:
        rows, columns = rows.inverse(), columns.inverse()
    return Grid(num_matrices, rows, columns, ONE_BYTES[dtype] if tensor.fill else bytes(element_bytes))


def _axis(source_size: int, target_size: int, segments: Segments | None) -> AxisMap:
    if segments is None:
        return AxisMap(source_size, target_size, (Run(0, 0, source_size),))
    return AxisMap(source_size, target_size, tuple(Run(*run) for run in segments.runs))
