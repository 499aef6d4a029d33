"""Comparing a logical and a padded shard byte by byte, streaming, down to the element that differs."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from reprlib import repr as shown

import numpy as np

from fp8pad.checkpoint.files import BUFFER_BYTES, Advance, OpenFile, open_file
from fp8pad.checkpoint.headers import in_data_order, parse_header, read_header_bytes
from fp8pad.checkpoint.json_text import first_difference
from fp8pad.checkpoint.layout import Copy, Pad, ShardLayout
from fp8pad.checkpoint.transfer import Bytes, padded_rows, read_logical, read_padded
from fp8pad.tensors import DTYPE_BITS, ShardHeader, TensorHeader

MAX_MISMATCHES = 20


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One difference: `place` is a tensor with a position, or a key, of `file`; what it should be and what it is."""

    file: str
    place: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.file}: {self.place}: expected {self.expected}, got {self.got}"


def compare_data(
    layout: ShardLayout, logical: OpenFile, padded: OpenFile, every_byte: bool, advance: Advance
) -> Iterator[Mismatch]:
    """Compare the data of two shards: padded tensors, and what lies between them if `every_byte`.

    The first mismatch of each tensor is yielded. Both files must have the sizes that the layout gives them. `advance`
    is told the bytes of the padded shard that were compared.
    """
    for step in layout.steps:
        if isinstance(step, Pad):
            yield from _compare_padded(layout, step, logical, padded, advance)
        elif every_byte:
            yield from _compare_range(layout, step, logical, padded, advance)


def compare_shard(layout: ShardLayout, logical_root: Path, padded_root: Path, advance: Advance) -> list[Mismatch]:
    """Compare every byte of a padded shard, its header first; at most `MAX_MISMATCHES` are returned."""
    file = layout.padded.file
    mismatches = compare_header(layout.padded, layout.padded_prefix, padded_root / file)
    if mismatches:
        return mismatches[:MAX_MISMATCHES]
    with open_file(logical_root / file, file) as logical, open_file(padded_root / file, file) as padded:
        return list(islice(compare_data(layout, logical, padded, True, advance), MAX_MISMATCHES))


def compare_texts(file: str, expected: str, found: str) -> Iterator[Mismatch]:
    """Compare two JSON texts; the first difference is yielded."""
    if difference := first_difference(expected, found):
        yield Mismatch(file, *difference)


def compare_files(file: str, expected: Path, found: Path) -> Iterator[Mismatch]:
    """Compare two files byte by byte; the first difference is yielded."""
    sizes = expected.stat().st_size, found.stat().st_size
    if sizes[0] != sizes[1]:
        yield Mismatch(file, "size", f"{sizes[0]} bytes", f"{sizes[1]} bytes")
        return
    with open_file(expected, file) as before, open_file(found, file) as after:
        for offset in range(0, sizes[0], BUFFER_BYTES):
            count = min(BUFFER_BYTES, sizes[0] - offset)
            one, other = (np.frombuffer(opened.read(offset, count), np.uint8) for opened in (before, after))
            if (first := _first_difference(one, other)) is not None:
                yield Mismatch(file, f"byte {offset + first}", f"0x{one[first]:02x}", f"0x{other[first]:02x}")
                return


def compare_header(expected: ShardHeader, prefix: bytes, path: Path) -> list[Mismatch]:
    """Re-read the header of the file at `path`; `prefix` is what is expected before its data, or empty if unknown.

    Raises `HeaderError` if it cannot be parsed, `CheckpointError` if it cannot be read.
    """
    found_prefix, file_bytes = read_header_bytes(path, expected.file)
    mismatches = list(header_differences(expected, parse_header(found_prefix, file_bytes, expected.file)))
    if not mismatches and prefix and prefix != found_prefix:
        mismatches.append(Mismatch(expected.file, "header", "the same bytes", "another spelling of the same header"))
    return mismatches


def header_differences(expected: ShardHeader, found: ShardHeader) -> Iterator[Mismatch]:
    """Compare what two headers say; tensors that are there in another order count only where their bytes moved."""
    before_metadata, after_metadata = expected.metadata or {}, found.metadata or {}
    for key in sorted(before_metadata.keys() | after_metadata.keys()):
        if before_metadata.get(key) != after_metadata.get(key):
            values = shown(before_metadata.get(key)), shown(after_metadata.get(key))
            yield Mismatch(found.file, f"__metadata__.{key}", *values)
    expected_tensors = {tensor.name: tensor for tensor in expected.tensors}
    found_tensors = {tensor.name: tensor for tensor in found.tensors}
    for name in chain(expected_tensors, found_tensors.keys() - expected_tensors.keys()):
        before, after = expected_tensors.get(name), found_tensors.get(name)
        if before != after:
            yield Mismatch(found.file, name, _described(before), _described(after))
    if expected.file_bytes != found.file_bytes:
        yield Mismatch(found.file, "size", f"{expected.file_bytes} bytes", f"{found.file_bytes} bytes")


def sha256(path: Path, file: str) -> str:
    """Return the SHA-256 of a file, in hexadecimal; `CheckpointError` if it cannot be read."""
    digest = hashlib.sha256()
    with open_file(path, file) as opened:
        size = path.stat().st_size
        for offset in range(0, size, BUFFER_BYTES):
            digest.update(opened.read(offset, min(BUFFER_BYTES, size - offset)))
    return digest.hexdigest()


def _first_difference(expected: Bytes, found: Bytes) -> int | None:
    """Return where two arrays `[n]` of bytes first differ."""
    words = expected.size // 8 * 8
    equal_words = np.array_equal(expected[:words].view(np.uint64), found[:words].view(np.uint64))
    if equal_words and np.array_equal(expected[words:], found[words:]):
        return None
    return int(np.argmax(expected != found))


def _compare_padded(
    layout: ShardLayout, step: Pad, logical: OpenFile, padded: OpenFile, advance: Advance
) -> Iterator[Mismatch]:
    for tile in step.grid.tiles(BUFFER_BYTES):
        expected = padded_rows(step.grid, tile, read_logical(step, tile, logical)).reshape(-1)
        found = read_padded(step, tile, padded).reshape(-1)
        advance(found.size)
        if (first := _first_difference(expected, found)) is not None:
            offset = step.padded + tile.begin * step.grid.row_bytes + first
            yield _mismatch(layout.padded, offset, expected[first], found[first])
            return


def _compare_range(
    layout: ShardLayout, step: Copy, logical: OpenFile, padded: OpenFile, advance: Advance
) -> Iterator[Mismatch]:
    done = 0
    while done < step.num_bytes:
        count = min(BUFFER_BYTES, step.num_bytes - done)
        expected = np.frombuffer(logical.read(step.logical + done, count), np.uint8)
        found = np.frombuffer(padded.read(step.padded + done, count), np.uint8)
        if (first := _first_difference(expected, found)) is None:
            advance(count)
            done += count
            continue
        offset = step.padded + done + first
        yield _mismatch(layout.padded, offset, expected[first], found[first])
        skipped = _end_of_tensor(layout.padded, offset) - step.padded - done
        advance(min(skipped, step.num_bytes - done))
        done += skipped


def _mismatch(header: ShardHeader, offset: int, expected: int, found: int) -> Mismatch:
    return Mismatch(header.file, _place(header, offset), f"byte 0x{expected:02x}", f"0x{found:02x}")


def _tensor_at(header: ShardHeader, offset: int) -> TensorHeader | None:
    """Return the tensor whose data holds the byte at `offset` in the file; None in the header."""
    tensors = [tensor for tensor in in_data_order(header.tensors) if tensor.num_bytes]
    position = bisect_right([tensor.begin for tensor in tensors], offset - header.data_start)
    return tensors[position - 1] if position else None


def _end_of_tensor(header: ShardHeader, offset: int) -> int:
    tensor = _tensor_at(header, offset)
    return header.data_start + (tensor.end if tensor else 0)


def _place(header: ShardHeader, offset: int) -> str:
    tensor = _tensor_at(header, offset)
    if tensor is None:
        return f"header, byte {offset}"
    position = (offset - header.data_start - tensor.begin) * 8 // DTYPE_BITS[tensor.dtype]
    index = [int(i) for i in np.unravel_index(position, tensor.shape)]
    return f"{tensor.name}{index if index else ''}"


def _described(tensor: TensorHeader | None) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} at {tensor.begin}" if tensor else "no such tensor"
