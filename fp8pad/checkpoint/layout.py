"""Where every byte of a shard lies in its source and in its target; the writer and the comparison walk it.

A layout has a direction: padding leads from the logical shard to the padded one, and its inverse back again.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fp8pad.checkpoint.grid import Chunk, Grid, copy_chunks, tensor_grid
from fp8pad.checkpoint.headers import header_bytes, in_data_order
from fp8pad.errors import PlanError
from fp8pad.record import METADATA_KEY, PaddedTensor, shard_metadata
from fp8pad.tensors import ShardHeader, TensorHeader, tensor_bytes


@dataclass(frozen=True, slots=True)
class Step:
    """One tensor, `tensor` in the target's header; `source` and `target` are where its data begins in the files.

    `grid` says how it is padded or cut; without one, its bytes are the same in both.
    """

    tensor: TensorHeader
    source: int
    target: int
    grid: Grid | None

    def chunks(self, limit: int) -> Iterator[Chunk]:
        """Yield the target's bytes, in order, in chunks of at most `limit` bytes on either side."""
        if not self.tensor.num_bytes:  # however large its other sizes are
            return iter(())
        if self.grid:
            return self.grid.chunks(self.source, self.target, limit)
        return copy_chunks(self.source, self.target, self.tensor.num_bytes, limit)


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """How the shard `target` is made from `source`; `prefix` is what lies before the target's data.

    `tensors` are those of its tensors that are padded, or cut where it `unpads`, by name.
    """

    source: ShardHeader
    target: ShardHeader
    prefix: bytes
    tensors: Mapping[str, PaddedTensor]
    unpads: bool = False

    @property
    def file(self) -> str:
        """The name of the shard, which is the same in both folders."""
        return self.source.file

    @property
    def is_untouched(self) -> bool:
        """Whether both files are the same, byte for byte."""
        return not self.tensors

    @property
    def resized_bytes(self) -> int:
        """Bytes of the tensors that are padded or cut, in the target."""
        return sum(tensor.num_bytes for tensor in self.target.tensors if tensor.name in self.tensors)

    def steps(self) -> Iterator[Step]:
        """Yield a step for each tensor, in the order of their data: together they are all of the target's data."""
        pairs = zip(in_data_order(self.source.tensors), in_data_order(self.target.tensors), strict=True)
        for before, after in pairs:
            begin = self.source.data_start + before.begin, self.target.data_start + after.begin
            yield Step(after, *begin, self._grid(before))

    def inverse(self, prefix: bytes) -> "ShardLayout":
        """Return the way back, to a shard that begins with `prefix`."""
        return ShardLayout(self.target, self.source, prefix, self.tensors, not self.unpads)

    def _grid(self, tensor: TensorHeader) -> Grid | None:
        if tensor.name not in self.tensors:
            return None
        grid = tensor_grid(tensor.dtype, self.tensors[tensor.name])
        return grid.inverse() if self.unpads else grid


def shard_layout(logical: ShardHeader, prefix: bytes, tensors: Mapping[str, PaddedTensor]) -> ShardLayout:
    """Lay out the padded shard of a `logical` one whose first bytes are `prefix`.

    `tensors` are the padded tensors of the checkpoint, by name. Raises `PlanError` for one that does not fit.
    """
    own = {tensor.name: tensors[tensor.name] for tensor in logical.tensors if tensor.name in tensors}
    if not own:
        return ShardLayout(logical, logical, prefix, own)
    for tensor in logical.tensors:
        if tensor.name in own:
            _check_fits(logical.file, tensor, own[tensor.name])
    metadata = dict(logical.metadata or {})
    metadata[METADATA_KEY] = shard_metadata({name: tensor.logical_shape for name, tensor in own.items()})
    padded, padded_prefix = _resized(logical, {name: tensor.padded_shape for name, tensor in own.items()}, metadata)
    return ShardLayout(logical, padded, padded_prefix, own)


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


def _check_fits(file: str, tensor: TensorHeader, padded: PaddedTensor) -> None:
    if tensor.shape != padded.logical_shape:
        expected = list(padded.logical_shape)
        raise PlanError(f"{file}: {tensor.name}: expected {expected}, got {list(tensor.shape)}")
    try:
        tensor_grid(tensor.dtype, padded)
    except ValueError as error:
        raise PlanError(f"{file}: {tensor.name}: {error}") from error
