"""How a Linear is divided among tensor-parallel ranks: arithmetic on sizes alone.

An engine splits a column-parallel layer along N, a row-parallel one along K, and a replicated one not at all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from fp8pad.geometry import num_blocks, round_up
from fp8pad.planning.linear_names import Division

Rows = tuple[int, ...]
Shape = tuple[int, int]
Fit = Literal["aligned", "unaligned", "ends inside block", "inside block", "indivisible", "not assessed"]
FusedScales = Literal["right", "others'"]

_VOCABULARY_MULTIPLE = 64  # `DEFAULT_VOCAB_PADDING_SIZE`, vllm/model_executor/layers/vocab_parallel_embedding.py


@dataclass(frozen=True, slots=True)
class RowGroup:
    """One of the matrices that are concatenated along N.

    `weight` is its share of N, relative to the others'. `heads` is the number of its attention heads, which are never
    split; None if it can be split between any rows. If there are more ranks than heads, ranks hold copies of key-value
    heads, which `is_copied` marks (vllm/model_executor/layers/linear.py, `QKVParallelLinear`).
    """

    weight: int = 1
    heads: int | None = None
    is_copied: bool = False

    def rank_rows(self, num_n: int, num_ranks: int) -> int | None:
        """Return how many of `num_n` rows a rank holds; None if they cannot be split evenly."""
        units = self.heads or num_n
        if self.is_copied and units < num_ranks:
            return num_n // units if num_ranks % units == 0 else None
        return num_n // num_ranks if units % num_ranks == 0 else None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A matrix that engines fuse with another into one layer: it has `num_n` rows if the other has `own_n`."""

    num_n: int
    own_n: int
    groups: tuple[RowGroup, ...]


@dataclass(frozen=True, slots=True)
class Sharding:
    """How a Linear is divided among ranks.

    `groups` are the matrices of a column-parallel layer, several if it is fused on disk. `is_vocabulary` marks one
    whose rows are tokens: engines pad their number to a multiple of 64 before they split it. `fused_with` are the other
    matrices that engines fuse it with, in order, and `place` is how many of them come before it.
    """

    axis: Division = "column"
    groups: tuple[RowGroup, ...] = (RowGroup(),)
    is_vocabulary: bool = False
    place: int = 0
    fused_with: tuple[Neighbour, ...] = ()

    def part(self, shape: Shape, num_ranks: int) -> "RankPart":
        """Return what one of `num_ranks` ranks holds of a layer `(N, K)`."""
        num_n, num_k = shape
        if self.axis == "column":
            rows = self.rank_rows(num_n, num_ranks)
            return RankPart(num_ranks, sum(rows) if rows else None, num_k, rows)
        return RankPart(num_ranks, num_n, _share(num_k, num_ranks) if self.axis == "row" else num_k)

    def fused_n(self, num_n: int, num_ranks: int) -> int | None:
        """Return N on a rank of the layer that engines make of a matrix of `num_n` rows and those fused with it.

        None if one of them cannot be split evenly.
        """
        parts = [how.part((rows, 1), num_ranks).num_n for rows, how in self._matrices(num_n)]
        return sum(rows for rows in parts if rows) if all(parts) else None

    def fused_scales(self, num_n: int, block_n: int, num_ranks: int) -> FusedScales | None:
        """Return which scales rows get if the matrices of a fused layer are loaded in whole blocks, rounded up.

        vLLM does that (vllm/model_executor/layers/linear.py, `adjust_block_scale_shard`): each matrix begins at the
        next whole block, in the layer on a rank and in the scales on disk. So if matrices are not whole blocks, rows
        get other rows' scales, except in a single tensor that is loaded as it is on disk. None if the scales cannot be
        loaded, or if nothing is fused.
        """
        matrices = self._matrices(num_n)
        held = [rows for size, how in matrices for rows in how.rank_rows(size, num_ranks)]
        whole = [rows for size, how in matrices for rows in how.group_rows(size)]
        if not 1 < len(held) == len(whole):
            return None
        is_one_on_disk = len(self.groups) > 1
        has_room = (
            _begin_at_whole_blocks(held, block_n)
            and (not is_one_on_disk or _begin_at_whole_blocks(whole, block_n))
            and all(
                size // rows * num_blocks(rows, block_n) <= num_blocks(size, block_n)
                for rows, size in zip(held, whole, strict=True)
            )
        )
        if not has_room:
            return None
        return "right" if is_one_on_disk and num_ranks == 1 else "others'"

    def _matrices(self, num_n: int) -> "list[tuple[int, Sharding]]":
        """Return the N of each matrix of the fused layer, in order, and how it is divided."""
        others = [(num_n * it.num_n // it.own_n, replace(self, groups=it.groups)) for it in self.fused_with]
        return [*others[: self.place], (num_n, self), *others[self.place :]]

    def fit(self, shape: Shape, block: Shape, alignment: Shape, num_ranks: int) -> Fit:
        """Return how a rank's part of a layer `(N, K)` fits scale blocks and kernels.

        Only a size that is split can be "unaligned": padding the whole layer is what aligns the others.
        """
        part = self.part(shape, num_ranks)
        if part.num_n is None or part.num_k is None:
            return "indivisible"
        if self.begins_inside_block(part, block):
            return "inside block"
        sizes = zip((part.num_n, part.num_k), shape, alignment, strict=True)
        return "unaligned" if any(share != size and share % multiple for share, size, multiple in sizes) else "aligned"

    def begins_inside_block(self, part: "RankPart", block: Shape) -> bool:
        """Return whether a rank's `part` begins inside a scale block `(n, k)`: no scale on disk would be right for it.

        In a column-parallel layer each matrix counts, copied keys and values too, since they are next to the queries.
        """
        return part.num_ranks > 1 and not self.is_whole_inside(part, block)

    def ends_inside_block(self, part: "RankPart", block: Shape) -> bool:
        """Return whether a matrix of a rank's `part`, followed by another, ends inside a scale block `(n, k)`."""
        rows = part.rows or (part.num_n or 0,)
        is_followed = self.place < len(self.fused_with)
        return any(num_n % block[0] for num_n in (rows if is_followed else rows[:-1]))

    def is_whole_inside(self, part: "RankPart", block: Shape) -> bool:
        """Return whether a rank's share of the split axis of each matrix is whole scale blocks `(n, k)`."""
        if self.axis == "row":
            return part.num_k is None or part.num_k % block[1] == 0
        return all(rows % block[0] == 0 for rows in part.rows)

    def rank_rows(self, num_n: int, num_ranks: int) -> Rows:
        """Return the N of each matrix that a column-parallel layer holds on a rank.

        Empty for other layers, and if one cannot be split evenly.
        """
        if self.axis != "column":
            return ()
        num_n = round_up(num_n, _VOCABULARY_MULTIPLE) if self.is_vocabulary else num_n
        groups = zip(self.groups, self.group_rows(num_n), strict=True)
        rows = [group.rank_rows(size, num_ranks) for group, size in groups]
        return tuple(size for size in rows if size) if all(rows) else ()

    def group_rows(self, num_n: int) -> Rows:
        """Return the N of each matrix of the whole layer."""
        whole = sum(group.weight for group in self.groups)
        return tuple(num_n * group.weight // whole for group in self.groups)


@dataclass(frozen=True, slots=True)
class RankPart:
    """What one rank holds of a layer: N, K, and the N of each matrix of a column-parallel one.

    N or K is None if it cannot be split evenly, and then there are no `rows`.
    """

    num_ranks: int
    num_n: int | None
    num_k: int | None
    rows: Rows = ()


COLUMN, ROW, REPLICATED = Sharding(), Sharding("row"), Sharding("replicated")


def _begin_at_whole_blocks(sizes: Sequence[int], block_n: int) -> bool:
    """Return whether matrices that each begin at the next whole block of scales fit into the blocks of all rows."""
    begins = accumulate(sizes, initial=0)
    return all(
        num_blocks(begin, block_n) + num_blocks(rows, block_n) <= num_blocks(sum(sizes), block_n)
        for begin, rows in zip(begins, sizes, strict=False)
    )


def _share(size: int, num_ranks: int) -> int | None:
    return size // num_ranks if size % num_ranks == 0 else None
