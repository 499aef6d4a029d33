"""Move the bytes of a shard through small buffers, or in the kernel if they need not be looked at.

Data that is read back is compared with checksums of the bytes that were written, so that the source is read once.
"""

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fp8pad.checkpoint.copying import copy_range
from fp8pad.checkpoint.files import BUFFER_BYTES, KERNEL_COPY_BYTES, WRITE_BACK_BYTES, Advance, Buffer, OpenFile
from fp8pad.checkpoint.grid import Chunk
from fp8pad.checkpoint.layout import Step, Transfer
from fp8pad.checkpoint.options import VerifyDepth

Bytes: TypeAlias = NDArray[np.uint8]

SECTOR_WORDS = 64  # of 8 bytes: 512 bytes, the smallest unit that a disk reads or writes
# Odd, so that any change of one word changes the sum modulo 2^64; distinct, so that swapping two words does too.
_WEIGHTS = np.arange(SECTOR_WORDS, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) | np.uint64(1)


@dataclass(frozen=True, slots=True)
class Hashes:
    """The SHA-256, in hexadecimal, of a file and of the source's file of that name."""

    sha256: str
    source_sha256: str


@dataclass(slots=True)
class Sums:
    """Checksums and hashes that are computed from the bytes of a shard while they pass.

    `checksums` are those of the target's tensors, by name, that `depth` asks to read back. If `hashed`, both files are
    hashed, and only once if they are the same.
    """

    depth: VerifyDepth
    hashed: bool = False
    checksums: dict[str, int] = field(default_factory=dict)
    _source_sha256: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    _target_sha256: "hashlib._Hash | None" = None

    def reads_back(self, step: Step) -> bool:
        """Return whether a tensor is to be read back."""
        return self.depth == "full" or (self.depth == "padded" and step.grid is not None)

    def looks_at(self, step: Step) -> bool:
        """Return whether the bytes of a tensor have to be hashed or checksummed."""
        return self.hashed or self.reads_back(step)

    def begin(self, transfer: Transfer, source: OpenFile, target_prefix: Buffer) -> None:
        """Hash the bytes before the data of both files."""
        self._source_sha256 = hashlib.sha256(source.read(0, transfer.source_start))
        self._target_sha256 = None if transfer.layout.is_untouched else hashlib.sha256(target_prefix)

    def add(self, step: Step, source: Bytes, target: Bytes) -> None:
        """Add bytes that were read from the source, and the bytes of the target that they become."""
        if self.reads_back(step):
            self.checksums[step.tensor.name] = checksum(target.data, self.checksums.get(step.tensor.name, 0))
        if self.hashed:
            self._source_sha256.update(source.data)
            if self._target_sha256:
                self._target_sha256.update(target.data)

    @property
    def hashes(self) -> Hashes | None:
        """The hashes of both files, None if they were not requested."""
        if not self.hashed:
            return None
        source = self._source_sha256.hexdigest()
        return Hashes(self._target_sha256.hexdigest() if self._target_sha256 else source, source)


def read_bytes(file: OpenFile, offset: int, num_bytes: int) -> Bytes:
    """Read exactly `num_bytes` bytes at `offset`, into memory that is not zeroed first; raises as `OpenFile.read`."""
    buffer = np.empty(num_bytes, np.uint8)
    file.read_into(offset, buffer.data)
    return buffer


def checksum(data: memoryview, before: int = 0) -> int:
    """Return a checksum of bytes, continued from the checksum `before` of the preceding bytes.

    It is the CRC-32 of a weighted sum, modulo 2^64, of each 512 bytes, and of the rest: four times as fast as a CRC of
    all bytes. It detects damaged, missing, stale and misplaced data, but not forged data.
    """
    num_words = len(data) // (8 * SECTOR_WORDS) * SECTOR_WORDS
    sectors = np.frombuffer(data, np.uint64, num_words).reshape(-1, SECTOR_WORDS)
    return zlib.crc32(data[8 * num_words :], zlib.crc32(np.einsum("ij,j->i", sectors, _WEIGHTS), before))


def target_prefix(transfer: Transfer, source: OpenFile) -> bytes:
    """Return the bytes before the data of a shard that is to be written."""
    is_copy = transfer.layout.is_untouched
    return source.read(0, transfer.source_start).tobytes() if is_copy else transfer.derived_prefix


def write_shard(transfer: Transfer, source: OpenFile, target: OpenFile, sums: Sums, advance: Advance) -> None:
    """Write a shard from its source into an empty file; `advance` gets the number of bytes written.

    Holes stay holes, unless the fill is not zero.
    """
    prefix = target_prefix(transfer, source)
    sums.begin(transfer, source, prefix)
    target.resize(transfer.layout.target_bytes)
    target.write(0, prefix)
    advance(len(prefix))
    started = 0
    for step in transfer.steps:
        for chunk in step.chunks(BUFFER_BYTES if step.grid or sums.looks_at(step) else KERNEL_COPY_BYTES):
            _write_chunk(step, chunk, (source, target), sums)
            advance(chunk.target_bytes)
            if (end := chunk.target + chunk.target_bytes) - started >= WRITE_BACK_BYTES:
                target.start_write_back(started, end)
                started = end


def read_back(transfer: Transfer, target: OpenFile, prefix: bytes, sums: Sums, advance: Advance) -> Iterator[str]:
    """Compare a shard that was written with the checksums of the bytes that passed; yield the places that differ.

    It compares the size, the header and the tensors in `sums`; the source is not read again. `advance` gets the bytes
    of tensors that were read.
    """
    if target.identity.size != transfer.layout.target_bytes or target.read(0, len(prefix)) != prefix:
        yield "header"
        return
    for step in transfer.steps:
        if sums.reads_back(step):
            found = 0
            for chunk in step.chunks(BUFFER_BYTES):
                found = checksum(read_bytes(target, chunk.target, chunk.target_bytes).data, found)
                advance(chunk.target_bytes)
            if found != sums.checksums.get(step.tensor.name, 0):
                yield step.tensor.name


def shard_hashes(transfer: Transfer, source: OpenFile) -> Hashes | None:
    """Hash a shard and, without writing it, what becomes of it."""
    sums = Sums("none", hashed=True)
    sums.begin(transfer, source, target_prefix(transfer, source))
    for step in transfer.steps:
        for chunk in step.chunks(BUFFER_BYTES):
            passed(step, chunk, source, sums)
    return sums.hashes


def passed(step: Step, chunk: Chunk, source: OpenFile, sums: Sums) -> Bytes:
    """Read a chunk from the source and return its bytes in the target; both are added to `sums`."""
    before = read_bytes(source, chunk.source, chunk.source_bytes)
    after = before if chunk.is_copy else _placed(step, chunk, before)
    sums.add(step, before, after)
    return after


def _write_chunk(step: Step, chunk: Chunk, files: tuple[OpenFile, OpenFile], sums: Sums) -> None:
    source, target = files
    looked_at = sums.looks_at(step)
    if chunk.is_copy and not looked_at:
        for begin, num_bytes in source.data_ranges(chunk.source, chunk.source_bytes):
            copy_range(source, target, (begin, begin - chunk.source + chunk.target), num_bytes)
        return
    has_zeros = step.grid is None or not any(step.grid.fill)
    is_hole = has_zeros and chunk.source_bytes and not any(source.data_ranges(chunk.source, chunk.source_bytes))
    if looked_at or not is_hole:
        after = passed(step, chunk, source, sums)
        if not is_hole:
            target.write(chunk.target, after.data)


def _placed(step: Step, chunk: Chunk, before: Bytes) -> Bytes:
    """Return the target's bytes of a chunk, from the source's."""
    fill = np.frombuffer(step.grid.fill if step.grid else b"\0", np.uint8)
    after = np.empty(chunk.target_bytes, np.uint8)
    source = before.reshape(chunk.source_shape)
    target = after.reshape(chunk.target_shape)
    if fill.any():
        after.reshape(-1, fill.size)[:] = fill
    for row, column in chunk.pieces():
        piece = target[:, row.target : row.target + row.size, column.target : column.target + column.size]
        if row.source is not None and column.source is not None:
            from_row, from_column = row.source, column.source
            piece[:] = source[:, from_row : from_row + row.size, from_column : from_column + column.size]
        elif not fill.any():
            piece[:] = 0
    return after
