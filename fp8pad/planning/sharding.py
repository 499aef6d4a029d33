"""How a Linear is divided among tensor-parallel ranks: arithmetic on sizes, no engine asked.

An engine splits a column-parallel layer along N, a row-parallel one along K, and a replicated one not at all.
"""

from dataclasses import dataclass, replace
from typing import Literal

from fp8pad.geometry import round_up
from fp8pad.planning.linear_names import Division

Rows = tuple[int, ...]
Shape = tuple[int, int]
Fit = Literal["aligned", "unaligned", "ends inside block", "inside block", "indivisible", "not assessed"]

_VOCABULARY_MULTIPLE = 64  # `DEFAULT_VOCAB_PADDING_SIZE`, vllm/model_executor/layers/vocab_parallel_embedding.py


@dataclass(frozen=True, slots=True)
class RowGroup:
    """One of the matrices that lie one behind another along N.

    `weight` is its share of N, relative to the others'. `heads` is the number of attention heads that it holds, none of
    which is ever split; None where single rows can be. Where there are more ranks than heads, ranks hold copies of
    key-value heads, which `is_copied` marks (vllm/model_executor/layers/linear.py, `QKVParallelLinear`).
    """

    weight: int = 1
    heads: int | None = None
    is_copied: bool = False

    def rank_rows(self, num_n: int, num_ranks: int) -> int | None:
        """Return how many of `num_n` rows a rank holds; None where they cannot be split evenly."""
        units = self.heads or num_n
        if self.is_copied and units < num_ranks:
            return num_n // units if num_ranks % units == 0 else None
        return num_n // num_ranks if units % num_ranks == 0 else None


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A matrix that engines make one layer of with another: it has `num_n` rows where the other has `own_n`."""

    num_n: int
    own_n: int
    groups: tuple[RowGroup, ...]


@dataclass(frozen=True, slots=True)
class Sharding:
    """How a Linear is divided among ranks.

    `groups` are the matrices of a column-parallel layer, several where it is fused on disk. `is_vocabulary` marks one
    whose rows are tokens: engines pad their number to a multiple of 64 before they split it. `fused_with` are matrices
    that engines make one layer of with it, and `is_followed` says that one of them lies behind it.
    """

    axis: Division = "column"
    groups: tuple[RowGroup, ...] = (RowGroup(),)
    is_vocabulary: bool = False
    is_followed: bool = False
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

        None where one of them cannot be split evenly.
        """
        matrices = [(num_n, self.groups), *((num_n * it.num_n // it.own_n, it.groups) for it in self.fused_with)]
        parts = [replace(self, groups=groups).part((rows, 1), num_ranks).num_n for rows, groups in matrices]
        return sum(rows for rows in parts if rows) if all(parts) else None

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

        In a column-parallel layer this holds for each matrix, copied keys and values too: they lie next to the queries.
        """
        return part.num_ranks > 1 and not self.is_whole_inside(part, block)

    def ends_inside_block(self, part: "RankPart", block: Shape) -> bool:
        """Return whether a matrix of a rank's `part` that another follows ends inside a scale block `(n, k)`."""
        rows = part.rows or (part.num_n or 0,)
        return any(num_n % block[0] for num_n in (rows if self.is_followed else rows[:-1]))

    def is_whole_inside(self, part: "RankPart", block: Shape) -> bool:
        """Return whether the size that ranks share of a matrix is whole scale blocks `(n, k)`."""
        if self.axis == "row":
            return part.num_k is None or part.num_k % block[1] == 0
        return all(rows % block[0] == 0 for rows in part.rows)

    def rank_rows(self, num_n: int, num_ranks: int) -> Rows:
        """Return the N of each matrix that a column-parallel layer holds on a rank.

        Empty for other layers, and where one cannot be split evenly.
        """
        if self.axis != "column":
            return ()
        num_n = round_up(num_n, _VOCABULARY_MULTIPLE) if self.is_vocabulary else num_n
        groups = zip(self.groups, self.group_rows(num_n), strict=True)
        rows = [group.rank_rows(size, num_ranks) for group, size in groups]
        return tuple(size for size in rows if size) if all(rows) else ()

    def group_rows(self, num_n: int) -> Rows:
        """Return the N of each of the matrices that a layer holds in all."""
        whole = sum(group.weight for group in self.groups)
        return tuple(num_n * group.weight // whole for group in self.groups)


@dataclass(frozen=True, slots=True)
class RankPart:
    """What one rank holds of a layer: N, K, and the N of each matrix of a column-parallel one.

    N or K is None where it cannot be split evenly, and there are no rows then.
    """

    num_ranks: int
    num_n: int | None
    num_k: int | None
    rows: Rows = ()


COLUMN, ROW, REPLICATED = Sharding(), Sharding("row"), Sharding("replicated")


def _share(size: int, num_ranks: int) -> int | None:
    return size // num_ranks if size % num_ranks == 0 else None
