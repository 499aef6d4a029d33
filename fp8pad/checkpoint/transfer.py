"""Moving the bytes of a shard through one bounded buffer, or through the kernel where nothing looks at them."""

import hashlib
import zlib
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fp8pad.checkpoint.files import BUFFER_BYTES, Advance, OpenFile, copy_range
from fp8pad.checkpoint.grid import Chunk
from fp8pad.checkpoint.layout import ShardLayout, Step
from fp8pad.checkpoint.options import VerifyDepth

Bytes: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Hashes:
    """The SHA-256, in hexadecimal, of a file and of the source's file of that name."""

    sha256: str
    source_sha256: str


@dataclass(slots=True)
class Sums:
    """What is worked out of the bytes of a shard while they pass: all that is needed to read back only the target.

    `crcs` are the CRC-32 of tensors in the target, by name, of those that `depth` asks to read back; hashes of both
    files are worked out where they are `hashed`.
    """

    depth: VerifyDepth
    hashed: bool = False
    crcs: dict[str, int] = field(default_factory=dict)
    _source_sha256: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    _target_sha256: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def reads_back(self, step: Step) -> bool:
        """Return whether a tensor is to be read back."""
        return self.depth == "full" or (self.depth == "padded" and step.grid is not None)

    def looks_at(self, step: Step) -> bool:
        """Return whether the bytes of a tensor have to pass through here."""
        return self.hashed or self.reads_back(step)

    def add(self, step: Step | None, source: memoryview | bytes, target: memoryview | bytes) -> None:
        """Take note of bytes that were read from one file and belong into the other; without a step, of headers."""
        if step and self.reads_back(step):
            self.crcs[step.tensor.name] = zlib.crc32(target, self.crcs.get(step.tensor.name, 0))
        if self.hashed:
            self._source_sha256.update(source)
            self._target_sha256.update(target)

    @property
    def hashes(self) -> Hashes | None:
        """The hashes of both files, None where they are not wanted."""
        return Hashes(self._target_sha256.hexdigest(), self._source_sha256.hexdigest()) if self.hashed else None


class Buffers:
    """Memory for one chunk at a time on either side: what is returned is valid until the next chunk."""

    def __init__(self) -> None:
        self._sides = [bytearray(), bytearray()]

    def read(self, file: OpenFile, offset: int, num_bytes: int) -> memoryview:
        """Read exactly `num_bytes` bytes at `offset`; raises as `OpenFile.read` does."""
        return file.read_into(offset, self._side(0, num_bytes))

    def rows(self, num_rows: int, row_bytes: int) -> Bytes:
        """Return rows to write to, `[num_rows, row_bytes]`, which hold anything."""
        return np.frombuffer(self._side(1, num_rows * row_bytes), np.uint8).reshape(num_rows, row_bytes)

    def _side(self, number: int, num_bytes: int) -> memoryview:
        if len(self._sides[number]) < num_bytes:
            self._sides[number] = bytearray(max(num_bytes, BUFFER_BYTES))
        return memoryview(self._sides[number])[:num_bytes]


def write_shard(layout: ShardLayout, source: OpenFile, target: OpenFile, sums: Sums, advance: Advance) -> None:
    """Write a shard from its source into an empty file; `advance` is told the bytes written.

    Holes stay holes, where zeros are padded with zeros.
    """
    sums.add(None, source.read(0, layout.source.data_start), layout.prefix)
    buffers = Buffers()
    target.resize(layout.target.file_bytes)
    target.write(0, layout.prefix)
    advance(len(layout.prefix))
    for step in layout.steps():
        for chunk in step.chunks(BUFFER_BYTES):
            _write_chunk(step, chunk, (source, target), sums, buffers)
            advance(chunk.target_bytes)


def _write_chunk(step: Step, chunk: Chunk, files: tuple[OpenFile, OpenFile], sums: Sums, buffers: Buffers) -> None:
    source, target = files
    looked_at = sums.looks_at(step)
    has_zeros = step.grid is None or not any(step.grid.fill)
    if has_zeros and chunk.source_bytes and source.is_hole(chunk.source, chunk.source_bytes):
        if looked_at:
            passed(step, chunk, source, sums, buffers)
    elif chunk.is_copy and not looked_at:
        copy_range(source, target, (chunk.source, chunk.target), chunk.target_bytes)
    else:
        target.write(chunk.target, passed(step, chunk, source, sums, buffers))


def passed(step: Step, chunk: Chunk, source: OpenFile, sums: Sums, buffers: Buffers) -> memoryview:
    """Read a chunk from the source and return what belongs into the target, both noted in `sums`."""
    before = buffers.read(source, chunk.source, chunk.source_bytes)
    after = before if chunk.is_copy else placed(step, chunk, before, buffers)
    sums.add(step, before, after)
    return after


def placed(step: Step, chunk: Chunk, before: memoryview, buffers: Buffers) -> memoryview:
    """Return the target's bytes of a chunk, from the source's."""
    columns, fill = chunk.columns, np.frombuffer(step.grid.fill if step.grid else b"\0", np.uint8)
    rows = buffers.rows(chunk.num_rows, columns.target_size)
    source = np.frombuffer(before, np.uint8).reshape(chunk.num_rows, columns.source_size)
    if fill.any():
        rows.reshape(-1, fill.size)[:] = fill
    for run in columns.pieces():
        if run.source is not None:
            rows[:, run.target : run.target + run.size] = source[:, run.source : run.source + run.size]
        elif not fill.any():
            rows[:, run.target : run.target + run.size] = 0
    return rows.reshape(-1).data
