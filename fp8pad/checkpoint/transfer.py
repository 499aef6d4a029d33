"""Moving the bytes of a shard: untouched ranges through the kernel, padded rows through one bounded buffer."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fp8pad.checkpoint.layout import Copy, Grid, Pad, ShardLayout, Tile
from fp8pad.errors import CheckpointError, OutputError

Bytes: TypeAlias = NDArray[np.uint8]
Advance: TypeAlias = Callable[[int], None]

BUFFER_BYTES = 1 << 20  # two of them fit into a core's cache
KERNEL_COPY_BYTES = 64 << 20  # small enough for progress and for stopping soon, and below the kernel's 2 GiB
FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
# What a file system, or a pair of them, answers when it cannot copy in the kernel; EIO does not tell which side failed.
NO_KERNEL_COPY = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EIO})


@dataclass(frozen=True, slots=True)
class OpenFile:
    """An open file descriptor and the name of its file, for messages."""

    descriptor: int
    file: str

    def read(self, offset: int, num_bytes: int) -> Bytes:
        """Read exactly `num_bytes` bytes at `offset`; `CheckpointError` if the file ends early or cannot be read."""
        buffer = np.empty(num_bytes, np.uint8)
        done = 0
        while done < num_bytes:
            try:
                count = os.preadv(self.descriptor, [buffer.data[done:]], offset + done)
            except OSError as error:
                raise CheckpointError(f"{self.file}: byte {offset + done}: {error.strerror}") from error
            if count == 0:
                raise CheckpointError(f"{self.file}: ends early: expected {num_bytes} bytes at {offset}, got {done}")
            done += count
        return buffer

    def write(self, offset: int, data: Bytes | bytes) -> None:
        """Write all of `data` at `offset`; `OutputError` if that fails."""
        view = memoryview(data) if isinstance(data, bytes) else data.reshape(-1).data
        with writing(self.file):
            while view:
                count = os.pwrite(self.descriptor, view, offset)
                view, offset = view[count:], offset + count


@contextmanager
def writing(file: str | Path) -> Iterator[None]:
    """Turn an `OSError` into an `OutputError` that names the file."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{file}: cannot be written: {error.strerror}") from error


@contextmanager
def open_file(path: Path, file: str) -> Iterator[OpenFile]:
    """Open a file to read from; `CheckpointError` names it as `file` if that fails."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    try:
        yield OpenFile(descriptor, file)
    finally:
        os.close(descriptor)


@contextmanager
def create_file(path: Path, file: str, mode: int = 0o666) -> Iterator[OpenFile]:
    """Create or empty a file to write to, synced at the end; `OutputError` names it as `file` if that fails."""
    with writing(file):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        yield OpenFile(descriptor, file)
        with writing(file):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_padded(layout: ShardLayout, logical: OpenFile, padded: OpenFile, advance: Advance) -> None:
    """Write the padded shard from the logical one; `advance` is told the bytes written."""
    padded.write(0, layout.padded_prefix)
    advance(len(layout.padded_prefix))
    for step in layout.steps:
        if isinstance(step, Copy):
            copy_range(logical, padded, (step.logical, step.padded), step.num_bytes, advance)
            continue
        for tile in step.grid.tiles(BUFFER_BYTES):
            rows = padded_rows(step.grid, tile, read_logical(step, tile, logical))
            padded.write(step.padded + tile.begin * step.grid.row_bytes, rows)
            advance(rows.size)


def write_logical(layout: ShardLayout, padded: OpenFile, logical: OpenFile, advance: Advance) -> None:
    """Write the logical shard from the padded one; `advance` is told the bytes written."""
    logical.write(0, layout.logical_prefix)
    advance(len(layout.logical_prefix))
    for step in layout.steps:
        if isinstance(step, Copy):
            copy_range(padded, logical, (step.padded, step.logical), step.num_bytes, advance)
            continue
        for tile in step.grid.tiles(BUFFER_BYTES):
            rows = logical_rows(step.grid, tile, read_padded(step, tile, padded))
            logical.write(step.logical + tile.logical_begin * step.grid.logical_row_bytes, rows)
            advance(rows.size)


def copy_range(source: OpenFile, target: OpenFile, offsets: tuple[int, int], num_bytes: int, advance: Advance) -> None:
    """Copy bytes from file to file, in the kernel where it can, else through a buffer; `offsets` are those in each."""
    done = 0
    while done < num_bytes:
        here = offsets[0] + done, offsets[1] + done
        count = _kernel_copy(source, target, here, min(num_bytes - done, KERNEL_COPY_BYTES))
        if count == 0:  # not possible here, or the source ends: reading will tell
            count = min(num_bytes - done, BUFFER_BYTES)
            target.write(here[1], source.read(here[0], count))
        done += count
        advance(count)


def clone(source: OpenFile, target: OpenFile) -> bool:
    """Make an empty file share all data of another; False where the file system cannot."""
    try:
        fcntl.ioctl(target.descriptor, FICLONE, source.descriptor)
    except OSError:
        return False
    return True


def _kernel_copy(source: OpenFile, target: OpenFile, offsets: tuple[int, int], num_bytes: int) -> int:
    try:
        return os.copy_file_range(source.descriptor, target.descriptor, num_bytes, *offsets)
    except OSError as error:
        if error.errno in NO_KERNEL_COPY:
            return 0
        raise OutputError(f"{target.file}: cannot be written: {error.strerror}") from error


def read_logical(step: Pad, tile: Tile, logical: OpenFile) -> Bytes:
    """Read a tile's logical rows, `[num_logical_rows, logical_row_bytes]`."""
    row_bytes = step.grid.logical_row_bytes
    rows = logical.read(step.logical + tile.logical_begin * row_bytes, tile.num_logical_rows * row_bytes)
    return rows.reshape(tile.num_logical_rows, row_bytes)


def read_padded(step: Pad, tile: Tile, padded: OpenFile) -> Bytes:
    """Read a tile's padded rows, `[num_rows, row_bytes]`."""
    row_bytes = step.grid.row_bytes
    rows = padded.read(step.padded + tile.begin * row_bytes, tile.num_rows * row_bytes)
    return rows.reshape(tile.num_rows, row_bytes)


def padded_rows(grid: Grid, tile: Tile, logical: Bytes) -> Bytes:
    """Place logical rows `[num_logical_rows, logical_row_bytes]` in padded ones `[num_rows, row_bytes]`."""
    if logical.shape == (tile.num_rows, grid.row_bytes):
        return logical
    padded = np.empty((tile.num_rows, grid.row_bytes), np.uint8)
    padded.reshape(-1, len(grid.fill))[:] = np.frombuffer(grid.fill, np.uint8)
    for inside_padded, inside_logical in _places(grid, tile):
        padded[inside_padded] = logical[inside_logical]
    return padded


def logical_rows(grid: Grid, tile: Tile, padded: Bytes) -> Bytes:
    """Take logical rows `[num_logical_rows, logical_row_bytes]` out of padded ones `[num_rows, row_bytes]`."""
    if padded.shape == (tile.num_logical_rows, grid.logical_row_bytes):
        return padded
    logical = np.empty((tile.num_logical_rows, grid.logical_row_bytes), np.uint8)
    for inside_padded, inside_logical in _places(grid, tile):
        logical[inside_logical] = padded[inside_padded]
    return logical


def _places(grid: Grid, tile: Tile) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    for row in tile.rows:
        for column in grid.columns:
            yield (
                (slice(row.padded, row.padded + row.size), slice(column.padded, column.padded + column.size)),
                (slice(row.logical, row.logical + row.size), slice(column.logical, column.logical + column.size)),
            )
