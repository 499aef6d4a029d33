"""Integer arithmetic of one layer on one rank: where its rows and columns come from, and where the kernel gets them.

There are no tensors here, and no vLLM. N is out_features, K is in_features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import lcm
from typing import NamedTuple

from fp8pad.errors import UnsupportedLayerError
from fp8pad.geometry import num_blocks, round_up
from fp8pad.runtime.parts import LayerParts


class Rank(NamedTuple):
    """One of the ranks that share a layer: its number, and how many there are."""

    number: int = 0
    num_ranks: int = 1


@dataclass(frozen=True, slots=True)
class Span:
    """Rows, or columns, of one matrix on one rank: `size` of them, from `start` on in the matrix.

    The kernel gets `padded_size` of them: `head` zeros, the rows or columns themselves, and zeros up to the end. A head
    is needed if the share begins inside a scale block: to stay in its block, and so keep its scale, a row must have the
    same offset from the start of a block as in the whole matrix.
    """

    start: int
    size: int
    padded_size: int
    head: int = 0

    @classmethod
    def whole(cls, size: int, multiple: int) -> "Span":
        """Return a span that is rounded up to `multiple` at its tail."""
        return cls(0, size, round_up(size, multiple))

    @classmethod
    def share(cls, size: int, multiple: int, block: int, rank: Rank) -> "Span":
        """Return a rank's share of a matrix that is divided evenly, padded to the same size on every rank."""
        starts = [size * number for number in range(rank.num_ranks)]
        padded_size = max(round_up(start % block + size, lcm(multiple, block)) for start in starts)
        return cls(starts[rank.number], size, padded_size, starts[rank.number] % block)

    def source(self, block: int) -> slice:
        """Return which blocks of the matrix hold the span."""
        return slice(self.start // block, num_blocks(self.start + self.size, block))


@dataclass(frozen=True, slots=True)
class RankSizes:
    """The sizes of one layer on one rank.

    `partitions` has the N of each matrix that the engine fuses here, `rows` what is padded along N: all of them
    together, at the tail of the last; or, if `is_placed`, each matrix by itself. The engine's loaders cannot load
    those, because they put the matrices one right after the other.
    """

    partitions: tuple[int, ...]
    rows: tuple[Span, ...]
    columns: Span
    is_placed: bool = False

    @classmethod
    def of(
        cls, partitions: Sequence[int], k: int, record: LayerParts, block: tuple[int, int], rank: Rank
    ) -> "RankSizes":
        """Return the sizes of a layer for which the engine requests `partitions` and `k` on `rank`.

        `block` is `(1, 1)` for a scale per channel or per tensor. Raises `UnsupportedLayerError` if the rank's share
        begins inside a block, except along the inner size of an MLP: no scale would be correct.
        """
        if inside := _inside_mlp(partitions, k, record, block, rank):
            return inside
        matrices: Sequence[int] = (sum(partitions),)
        is_placed = False
        if block != (1, 1):
            _check_shares(partitions, k, record, block, rank.num_ranks)
            wholes = [part.logical_shape[0] for part in record.known]
            ends_inside = any(n % block[0] for n in (*wholes[:-1], *partitions[:-1]))
            if ends_inside and _has_all_rows(partitions, record):
                matrices, is_placed = wholes, True
        multiple_n, multiple_k = record.alignment
        rows = tuple(Span.whole(n, multiple_n) for n in matrices)
        return cls(tuple(partitions), rows, Span.whole(k, multiple_k), is_placed)

    @property
    def logical_shape(self) -> tuple[int, int]:
        """The layer's `[N, K]` on this rank, without padding."""
        return sum(self.partitions), self.columns.size

    @property
    def padded_shape(self) -> tuple[int, int]:
        """The layer's `[N, K]` on this rank, as the kernel gets it."""
        return sum(span.padded_size for span in self.rows), self.columns.padded_size

    @property
    def is_padded(self) -> bool:
        """Whether this rank's weight must be larger for the kernel than the config asks for."""
        return self.padded_shape != self.logical_shape

    @property
    def padded_partitions(self) -> tuple[int, ...]:
        """The partitions to request from the engine: each matrix padded, or only the last, by the whole tail."""
        if self.is_placed:
            return tuple(span.padded_size for span in self.rows)
        return (*self.partitions[:-1], self.partitions[-1] + self.padded_shape[0] - self.logical_shape[0])

    @property
    def rooms(self) -> tuple[slice, ...]:
        """Where the rows of each span are in the padded N, with their head and tail."""
        ends = accumulate((span.padded_size for span in self.rows), initial=0)
        return tuple(slice(start, stop) for start, stop in pairwise(ends))

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where the rows of each span are in the padded N, without their head and tail."""
        return tuple(
            slice(room.start + span.head, room.start + span.head + span.size)
            for room, span in zip(self.rooms, self.rows, strict=True)
        )


def _inside_mlp(
    partitions: Sequence[int], k: int, record: LayerParts, block: tuple[int, int], rank: Rank
) -> RankSizes | None:
    """Return the sizes of a layer whose N or K is the inner size of an MLP, where padding need not be at the end.

    None if it is not such a layer, needs no padding there, or is not divided evenly.
    """
    if record.inner is None or not _is_divided(partitions, k, record, block, rank.num_ranks):
        return None
    multiple_n, multiple_k = record.alignment
    if record.inner == "n":
        inner = rows = tuple(Span.share(n, multiple_n, block[0], rank) for n in partitions)
        columns = Span.whole(k, multiple_k)
    else:
        rows, columns = (Span.whole(sum(partitions), multiple_n),), Span.share(k, multiple_k, block[1], rank)
        inner = (columns,)
    is_padded = any(span.padded_size > span.size for span in inner)
    return RankSizes(tuple(partitions), rows, columns, is_placed=True) if is_padded else None


def _is_divided(partitions: Sequence[int], k: int, record: LayerParts, block: tuple[int, int], num_ranks: int) -> bool:
    """Return whether the ranks share the inner size of the recorded matrices evenly, and none shares the other."""
    recorded = [part.logical_shape for part in record.known]
    if record.inner == "k":
        return recorded == [(sum(partitions), k * num_ranks)]
    wholes = [n * num_ranks for n in partitions]
    if any(recorded_k != k for _, recorded_k in recorded):
        return False
    if [n for n, _ in recorded] == wholes:
        return True
    # Matrices that are fused on disk can be split only if each begins at a block.
    return [n for n, _ in recorded] == [sum(wholes)] and all(n % block[0] == 0 for n in wholes[:-1])


def _has_all_rows(partitions: Sequence[int], record: LayerParts) -> bool:
    return None not in record.parts and sum(part.logical_shape[0] for part in record.known) == sum(partitions)


def _check_shares(
    partitions: Sequence[int], k: int, record: LayerParts, block: tuple[int, int], num_ranks: int
) -> None:
    has_all_columns = all(part.logical_shape[1] == k for part in record.known)
    if not _has_all_rows(partitions, record) and any(n % block[0] for n in partitions):
        share, size = f"{list(partitions)} rows", block[0]
    elif not has_all_columns and k % block[1]:
        share, size = f"{k} columns", block[1]
    else:
        return
    raise UnsupportedLayerError(
        f"{record.prefix}: on {num_ranks} ranks, a share of {share} begins inside a scale block of {size}; padding at "
        f"load cannot fix it: serve on fewer ranks, or, inside an MLP, use `fp8pad convert --absorb -tp {num_ranks}`"
    )
