"""Moving the bytes of a shard: untouched ranges through the kernel, padded rows through one bounded buffer."""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fp8pad.checkpoint.files import BUFFER_BYTES, Advance, OpenFile, copy_range
from fp8pad.checkpoint.layout import Copy, Grid, Pad, ShardLayout, Tile

Bytes: TypeAlias = NDArray[np.uint8]


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
            padded.write(step.padded + tile.begin * step.grid.row_bytes, rows.reshape(-1).data)
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
            logical.write(step.logical + tile.logical_begin * step.grid.logical_row_bytes, rows.reshape(-1).data)
            advance(rows.size)


def read_logical(step: Pad, tile: Tile, logical: OpenFile) -> Bytes:
    """Read a tile's logical rows, `[num_logical_rows, logical_row_bytes]`."""
    row_bytes = step.grid.logical_row_bytes
    rows = logical.read(step.logical + tile.logical_begin * row_bytes, tile.num_logical_rows * row_bytes)
    return np.frombuffer(rows, np.uint8).reshape(tile.num_logical_rows, row_bytes)


def read_padded(step: Pad, tile: Tile, padded: OpenFile) -> Bytes:
    """Read a tile's padded rows, `[num_rows, row_bytes]`."""
    row_bytes = step.grid.row_bytes
    rows = padded.read(step.padded + tile.begin * row_bytes, tile.num_rows * row_bytes)
    return np.frombuffer(rows, np.uint8).reshape(tile.num_rows, row_bytes)


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
