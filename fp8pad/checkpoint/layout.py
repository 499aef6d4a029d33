"""Where every byte of a shard is in its source and in its target; the writer and the comparison use it.

Of a shard that is padded or cut, one header is read and the other is derived from it. It is derived when needed and not
kept, since a large checkpoint has a hundred thousand tensors.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from fp8pad.checkpoint.grid import Chunk, Grid, copy_chunks, tensor_grid
from fp8pad.checkpoint.headers import LENGTH_BYTES, MAX_HEADER_BYTES, framed, header_bytes, in_data_order, parse_header
from fp8pad.errors import PlanError
from fp8pad.padded import PaddedTensor
from fp8pad.record import METADATA_KEY, shard_metadata
from fp8pad.tensors import ShardHeader, TensorHeader, tensor_bytes


@dataclass(frozen=True, slots=True)
class Step:
    """One tensor, as in the target's header; `source` and `target` are the offsets of its data in the two files.

    `grid` says how it is padded or cut; without one, its bytes are the same in both.
    """

    tensor: TensorHeader
    source: int
    target: int
    grid: Grid | None

    def chunks(self, limit: int) -> Iterator[Chunk]:
        """Yield the target's bytes, in order, in chunks of at most `limit` bytes on either side."""
        if not self.tensor.num_bytes:  # empty, however large its other sizes are
            return iter(())
        if self.grid:
            return self.grid.chunks(self.source, self.target, limit)
        return copy_chunks(self.source, self.target, self.tensor.num_bytes, limit)


@dataclass(frozen=True, slots=True)
class Transfer:
    """A layout in detail: where the data of both files begins, and a step for each tensor, in the order of data.

    The steps cover all of the target's data. `derived_prefix` comes before the data in the file whose header was
    derived: the source on the way `back`, else the target; it is empty for an untouched shard.
    """

    layout: "ShardLayout"
    source_start: int
    target_start: int
    derived_prefix: bytes
    steps: tuple[Step, ...]
    back: bool


@dataclass(frozen=True, slots=True)
class ShardLayout:
    """How the shard whose `header` was read is padded, or cut if it `unpads`; `tensors` are those that change, by name.

    `target_bytes` is the size of the file that becomes of it, and `digest` distinguishes different results from the
    same file. `original` is the text of the logical header, if the safetensors library would write it differently.
    """

    header: ShardHeader
    tensors: Mapping[str, PaddedTensor]
    unpads: bool = False
    original: str | None = None
    target_bytes: int = 0
    digest: str = ""

    @property
    def file(self) -> str:
        """The name of the shard, which is the same in both folders."""
        return self.header.file

    @property
    def is_untouched(self) -> bool:
        """Whether both files are the same, byte for byte."""
        return not self.tensors

    def data_bytes(self, only_resized: bool = False) -> int:
        """Return the bytes of the target's tensors, or of those that are padded or cut."""
        tensors = (t for t in self.header.tensors if not only_resized or t.name in self.tensors)
        return sum(tensor_bytes(tensor.dtype, self._target_shape(tensor)) for tensor in tensors)

    def other(self) -> tuple[ShardHeader, bytes]:
        """Derive the other header, and the bytes before its data (empty for an untouched shard)."""
        if self.is_untouched:
            return self.header, b""
        if not self.unpads:
            return _padded_shard(self.header, self.tensors)
        header, prefix = logical_shard(self.header, {name: t.logical_shape for name, t in self.tensors.items()})
        if self.original is None:
            return header, prefix
        data_bytes, prefix = header.file_bytes - header.data_start, framed(self.original.encode())
        return parse_header(prefix, len(prefix) + data_bytes, self.file), prefix

    def transfer(self, back: bool = False) -> Transfer:
        """Derive the offsets of the data and the step for each tensor, or those of the way `back`."""
        other, prefix = self.other()
        source, target = (other, self.header) if back else (self.header, other)
        pairs = zip(in_data_order(source.tensors), in_data_order(target.tensors), strict=True)
        starts = source.data_start, target.data_start
        steps = (Step(t, starts[0] + s.begin, starts[1] + t.begin, self._grid(t, back)) for s, t in pairs)
        return Transfer(self, *starts, prefix, tuple(steps), back)

    def _target_shape(self, tensor: TensorHeader) -> tuple[int, ...]:
        if (resized := self.tensors.get(tensor.name)) is None:
            return tensor.shape
        return resized.logical_shape if self.unpads else resized.padded_shape

    def _grid(self, tensor: TensorHeader, back: bool) -> Grid | None:
        resized = self.tensors.get(tensor.name)
        return tensor_grid(tensor.dtype, resized, is_inverse=self.unpads != back) if resized else None


def shard_layout(logical: ShardHeader, tensors: Mapping[str, PaddedTensor]) -> ShardLayout:
    """Lay out how a `logical` shard is padded; `tensors` are the padded tensors of the checkpoint, by name.

    Raises `PlanError` if one does not fit.
    """
    own = {tensor.name: tensors[tensor.name] for tensor in logical.tensors if tensor.name in tensors}
    for tensor in logical.tensors:
        if tensor.name in own:
            _check_fits(logical.file, tensor, own[tensor.name])
    return _with_digest(ShardLayout(logical, own))


def original_layout(padded: ShardHeader, tensors: Mapping[str, PaddedTensor], original: str | None) -> ShardLayout:
    """Lay out how a `padded` shard is cut; `original` is the text of the logical header, if it is not written as usual.

    `tensors` are the padded tensors of the checkpoint, whose shapes must be those of the shard. Raises `HeaderError` if
    `original` is not the header of such a shard.
    """
    own = {tensor.name: tensors[tensor.name] for tensor in padded.tensors if tensor.name in tensors}
    header = replace(padded, metadata=_foreign_metadata(padded)) if own else padded
    return _with_digest(ShardLayout(header, own, unpads=True, original=original))


def _with_digest(layout: ShardLayout) -> ShardLayout:
    header, prefix = layout.other()
    filled = [(tensor.fill, tensor.segments) for tensor in layout.tensors.values()]
    digest = hashlib.sha256(prefix + repr((layout.unpads, filled)).encode()).hexdigest()
    return replace(layout, target_bytes=header.file_bytes, digest=digest)


def logical_shard(padded: ShardHeader, shapes: Mapping[str, tuple[int, ...]]) -> tuple[ShardHeader, bytes]:
    """Derive the shard that `padded` was made from; `shapes` are the logical shapes of its padded tensors, by name.

    Returns its header, and the bytes before its data as the safetensors library would write them.
    """
    return _resized(padded, shapes, _foreign_metadata(padded))


def _foreign_metadata(padded: ShardHeader) -> dict[str, str] | None:
    return {key: value for key, value in (padded.metadata or {}).items() if key != METADATA_KEY} or None


def _padded_shard(logical: ShardHeader, tensors: Mapping[str, PaddedTensor]) -> tuple[ShardHeader, bytes]:
    metadata = dict(logical.metadata or {})
    metadata[METADATA_KEY] = shard_metadata({name: tensor.logical_shape for name, tensor in tensors.items()})
    header, prefix = _resized(logical, {name: tensor.padded_shape for name, tensor in tensors.items()}, metadata)
    if header.data_start - LENGTH_BYTES > MAX_HEADER_BYTES:
        size = f"{header.data_start - LENGTH_BYTES} bytes, more than the {MAX_HEADER_BYTES} that safetensors accepts"
        raise PlanError(f"{logical.file}: its header would have {size}")
    return header, prefix


def _resized(
    shard: ShardHeader, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str] | None
) -> tuple[ShardHeader, bytes]:
    """Give the tensors of `shard` named in `shapes` new shapes; the order of names and of data stays the same."""
    placed: dict[str, TensorHeader] = {}
    position = 0
    for tensor in in_data_order(shard.tensors):
        shape = shapes.get(tensor.name, tensor.shape)
        placed[tensor.name] = TensorHeader(tensor.name, tensor.dtype, shape, position)
        position = placed[tensor.name].end
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
