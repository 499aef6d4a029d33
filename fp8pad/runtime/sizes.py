"""Integer arithmetic of one layer on one rank: what the config asks for, what lies on disk, what the kernel gets.

Nothing here knows a tensor or vLLM. N is out_features, K is in_features.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fp8pad.errors import UnsupportedLayerError
from fp8pad.geometry import num_blocks, round_up
from fp8pad.record import ModuleRecord

ShardId = str | int | tuple[int, ...] | None

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
class LayerRecord:
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
        return any(part.padded_shape != part.logical_shape for part in self.known)

    @property
    def alignment(self) -> tuple[int, int]:
        """The multiples, `(n, k)`, that suit every part: they are powers of two, so the largest."""
        return max(part.alignment[0] for part in self.known), max(part.alignment[1] for part in self.known)

    def logical_shape(self, shape: Sequence[int], tile: Tile, shard_id: ShardId) -> tuple[int, ...]:
        """Return the leading sizes that a tensor from the checkpoint has without its padding.

        A loader learns a shard id but no name, and shard ids mean what each model wants: the shape decides, and the
        shard id only between parts that have one shape on disk but not without padding. A tensor that is not padded,
        as a trainer sends it, is itself. Raises `UnsupportedLayerError` if no part, or more than one, fits.
        """
        parts = [part for part in self.known if _fits(part, shape, tile)]
        sizes = {tile.shape(part.logical_shape) for part in parts}
        if len(sizes) > 1:
            sizes = {tile.shape(part.logical_shape) for part in self._named(shard_id) if part in parts}
        if len(sizes) == 1:
            return sizes.pop()
        if None in self.parts:
            return tuple(shape[: len(tile.shape((0, 0)))])
        raise UnsupportedLayerError(
            f"{self.prefix}: a tensor of shape {list(shape)}, shard {shard_id}, has no logical size in fp8pad's "
            f"record, which knows weights of {[list(part.padded_shape) for part in self.known]}"
        )

    def _named(self, shard_id: ShardId) -> tuple[ModuleRecord, ...]:
        position = _QKV_POSITIONS.get(shard_id) if isinstance(shard_id, str) else shard_id
        if not isinstance(position, int) or position >= len(self.parts):
            return ()
        part = self.parts[position]
        return () if part is None else (part,)


def _fits(part: ModuleRecord, shape: Sequence[int], tile: Tile) -> bool:
    candidates = tile.shape(part.padded_shape), tile.shape(part.logical_shape)
    return any(tuple(shape[: len(sizes)]) == sizes for sizes in candidates)


def find_layer(
    modules: Mapping[str, ModuleRecord], prefix: str, fused_modules: Mapping[str, Sequence[str]]
) -> LayerRecord | None:
    """Return the record of the engine's layer `prefix`, or None if fp8pad knows none of its modules.

    `modules` are fp8pad's, by the engine's names; `fused_modules` says which modules the engine fuses into which.
    """
    if prefix in modules:
        return LayerRecord(prefix, (modules[prefix],))
    parent, dot, name = prefix.rpartition(".")
    parts = tuple(modules.get(f"{parent}{dot}{part}") for part in fused_modules.get(name, ()))
    return LayerRecord(prefix, parts) if any(parts) else None


@dataclass(frozen=True, slots=True)
class RankSizes:
    """The sizes of one layer on one rank: `partitions` are the N of each matrix that the layer fuses."""

    partitions: tuple[int, ...]
    k: int
    padded_n: int
    padded_k: int

    @classmethod
    def of(cls, partitions: Sequence[int], k: int, alignment: tuple[int, int]) -> "RankSizes":
        """Round the sum of `partitions` and `k` up to `alignment`, `(n, k)`."""
        return cls(tuple(partitions), k, round_up(sum(partitions), alignment[0]), round_up(k, alignment[1]))

    @property
    def n(self) -> int:
        """The layer's N on this rank, without padding."""
        return sum(self.partitions)

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
        """`partitions` with the tail of N given to the last."""
        return (*self.partitions[:-1], self.partitions[-1] + self.padded_n - self.n)
