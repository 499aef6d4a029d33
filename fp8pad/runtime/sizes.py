"""Integer arithmetic of one layer on one rank: what the config asks for, what lies on disk, what the kernel gets.

Nothing here knows a tensor or vLLM. N is out_features, K is in_features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fp8pad.errors import UnsupportedLayerError
from fp8pad.geometry import num_blocks, round_up
from fp8pad.record import ModuleRecord

ShardId = str | int | tuple[int, ...] | None

# What every model fuses so that fuses it at all. Some tell their config too late (qwen3_moe: gate_up_proj).
_FUSED_MODULES = {"gate_up_proj": ("gate_proj", "up_proj"), "qkv_proj": ("q_proj", "k_proj", "v_proj")}

# vLLM names the matrices of a fused QKV by letter and those of other fused layers by position.
_QKV_POSITIONS = {"q": 0, "k": 1, "v": 2}


@dataclass(frozen=True, slots=True)
class Tile:
    """How much of a weight one element of a parameter stands for.

    `(1, 1)` is the weight itself, `(1, None)` a scale per output channel, which has no K axis, and
    `(block_n, block_k)` a scale per block.
    """

    n: int
    k: int | None

    def shape(self, weight_shape: Sequence[int]) -> tuple[int, ...]:
        """Return the leading sizes of a parameter that belongs to a weight of `weight_shape`, `[N, K]`."""
        rows = num_blocks(weight_shape[0], self.n)
        return (rows,) if self.k is None else (rows, num_blocks(weight_shape[1], self.k))


WEIGHT = Tile(1, 1)
CHANNEL_SCALE = Tile(1, None)


@dataclass(frozen=True, slots=True)
class LayerParts:
    """What fp8pad wrote down of one layer of the engine: one module, or several that the engine fuses into one.

    `parts` are in the engine's order; a module that fp8pad knows nothing of is None.
    """

    prefix: str
    parts: tuple[ModuleRecord | None, ...]

    @property
    def known(self) -> tuple[ModuleRecord, ...]:
        """The parts that fp8pad wrote down."""
        return tuple(part for part in self.parts if part is not None)

    @property
    def is_padded(self) -> bool:
        """Whether any part is larger on disk than the config asks for."""
        return any(part.is_padded for part in self.known)

    @property
    def alignment(self) -> tuple[int, int]:
        """The multiples, `(n, k)`, that suit every part: they are powers of two, so the largest."""
        return max(part.alignment[0] for part in self.known), max(part.alignment[1] for part in self.known)

    def logical_shape(self, shape: Sequence[int], tile: Tile, shard_id: ShardId) -> tuple[int, ...]:
        """Return the leading sizes that a tensor from the checkpoint has without its padding.

        A tensor that is not padded, as a trainer sends it, is itself. Raises `UnsupportedLayerError` if no part fits,
        or several that differ without their padding.
        """
        fitting = self._fitting(shape, tile, shard_id)
        sizes = {tile.shape(self._known(position).logical_shape) for position in fitting}
        if len(sizes) == 1:
            return sizes.pop()
        if None in self.parts:
            return tuple(shape[: len(tile.shape((0, 0)))])
        raise self._no_part(shape, shard_id)

    def position(self, shape: Sequence[int], tile: Tile, shard_id: ShardId) -> int:
        """Return which part a tensor from the checkpoint is; raises `UnsupportedLayerError` if it cannot be told."""
        fitting = self._fitting(shape, tile, shard_id)
        if len(fitting) > 1:
            fitting = [position for position in fitting if position == _position(shard_id)]
        if len(fitting) != 1:
            raise self._no_part(shape, shard_id)
        return fitting[0]

    def _fitting(self, shape: Sequence[int], tile: Tile, shard_id: ShardId) -> list[int]:
        """Return the positions of the parts that a tensor may be.

        A loader learns a shard id but no name, and shard ids mean what each model wants: the shape decides, and the
        shard id only between parts that have one shape on disk but not without padding.
        """
        fitting = [at for at, part in enumerate(self.parts) if part is not None and _fits(part, shape, tile)]
        if len({tile.shape(self._known(position).logical_shape) for position in fitting}) > 1:
            return [position for position in fitting if position == _position(shard_id)]
        return fitting

    def _known(self, position: int) -> ModuleRecord:
        part = self.parts[position]
        if part is None:
            raise UnsupportedLayerError(f"{self.prefix}: part {position} is not in fp8pad's record")
        return part

    def _no_part(self, shape: Sequence[int], shard_id: ShardId) -> UnsupportedLayerError:
        known = [list(part.padded_shape) for part in self.known]
        return UnsupportedLayerError(
            f"{self.prefix}: a tensor of shape {list(shape)}, shard {shard_id}, has no logical size in "
            f"fp8pad's record, which knows weights of {known}"
        )


def _position(shard_id: ShardId) -> int | None:
    if isinstance(shard_id, str):
        return _QKV_POSITIONS.get(shard_id)
    return shard_id if isinstance(shard_id, int) else None


def _fits(part: ModuleRecord, shape: Sequence[int], tile: Tile) -> bool:
    candidates = tile.shape(part.padded_shape), tile.shape(part.logical_shape)
    return any(tuple(shape[: len(sizes)]) == sizes for sizes in candidates)


def find_layer(
    modules: Mapping[str, ModuleRecord], prefix: str, fused_modules: Mapping[str, Sequence[str]]
) -> LayerParts | None:
    """Return the record of the engine's layer `prefix`, or None if fp8pad knows none of its modules.

    `modules` are fp8pad's, by the engine's names; `fused_modules` says which modules the engine fuses into which.
    """
    if prefix in modules:
        return LayerParts(prefix, (modules[prefix],))
    parent, dot, name = prefix.rpartition(".")
    fused = fused_modules.get(name) or _FUSED_MODULES.get(name, ())
    parts = tuple(modules.get(f"{parent}{dot}{part}") for part in fused)
    return LayerParts(prefix, parts) if any(parts) else None


@dataclass(frozen=True, slots=True)
class RankSizes:
    """The sizes of one layer on one rank.

    `partitions` are the N of each matrix that the engine fuses here, `segments` those that are padded, each at its own
    tail: one, the layer, unless a scale belongs to a block and some matrix but the last ends inside one. The scale of
    row r is in row `r // block_n` of the grid, so then each of the checkpoint's matrices is a segment. `is_whole` says
    that the segments are whole matrices of the checkpoint.
    """

    partitions: tuple[int, ...]
    segments: tuple[int, ...]
    padded_segments: tuple[int, ...]
    k: int
    padded_k: int
    is_whole: bool

    @classmethod
    def of(cls, partitions: Sequence[int], k: int, alignment: tuple[int, int]) -> "RankSizes":
        """Round the sum of `partitions` and `k` up to `alignment`, `(n, k)`."""
        return cls._padded(partitions, (sum(partitions),), k, alignment)

    @classmethod
    def of_blocks(
        cls, partitions: Sequence[int], k: int, record: LayerParts, block: tuple[int, int], num_ranks: int
    ) -> "RankSizes":
        """Round the sum of `partitions` up to blocks, or each whole matrix where one before the last needs a tail.

        Raises `UnsupportedLayerError` where this rank's share of one begins inside a block: no scale would be right.
        """
        wholes = tuple(part.logical_shape[0] for part in record.known)
        has_all_rows = None not in record.parts and sum(wholes) == sum(partitions)
        has_all_columns = all(part.logical_shape[1] == k for part in record.known)
        if not has_all_rows and any(n % block[0] for n in partitions):
            raise _inside_a_block(record.prefix, f"{list(partitions)} rows", block[0], num_ranks)
        if not has_all_columns and k % block[1]:
            raise _inside_a_block(record.prefix, f"{k} columns", block[1], num_ranks)
        is_whole = has_all_rows and any(n % block[0] for n in (*wholes[:-1], *partitions[:-1]))
        return cls._padded(partitions, wholes if is_whole else (sum(partitions),), k, record.alignment, is_whole)

    @classmethod
    def _padded(
        cls,
        partitions: Sequence[int],
        segments: tuple[int, ...],
        k: int,
        alignment: tuple[int, int],
        is_whole: bool = False,
    ) -> "RankSizes":
        padded_segments = tuple(round_up(segment, alignment[0]) for segment in segments)
        return cls(tuple(partitions), segments, padded_segments, k, round_up(k, alignment[1]), is_whole)

    @property
    def n(self) -> int:
        """The layer's N on this rank, without padding."""
        return sum(self.partitions)

    @property
    def padded_n(self) -> int:
        """The layer's N on this rank, as the kernel gets it."""
        return sum(self.padded_segments)

    @property
    def logical_shape(self) -> tuple[int, int]:
        """`[N, K]` without padding."""
        return self.n, self.k

    @property
    def padded_shape(self) -> tuple[int, int]:
        """`[N, K]` as the kernel gets it."""
        return self.padded_n, self.padded_k

    @property
    def is_padded(self) -> bool:
        """Whether this rank's weight must be larger for the kernel than the config asks for."""
        return self.padded_shape != self.logical_shape

    @property
    def padded_partitions(self) -> tuple[int, ...]:
        """What to ask the engine for: whole segments, or the partitions with the tail given to the last."""
        if self.is_whole:
            return self.padded_segments
        return (*self.partitions[:-1], self.partitions[-1] + self.padded_n - self.n)

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where each segment lies, without its tail, in the padded N."""
        starts = [sum(self.padded_segments[:index]) for index in range(len(self.segments))]
        return tuple(slice(start, start + segment) for start, segment in zip(starts, self.segments, strict=True))


def _inside_a_block(prefix: str, share: str, block: int, num_ranks: int) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"{prefix}: a rank's share of {share} would begin inside a scale block of {block}, which no padding at load "
        f"helps: `fp8pad convert --absorb -tp {num_ranks}` does inside an MLP; elsewhere serve on fewer ranks"
    )
