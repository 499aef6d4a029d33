"""Compare files with what they should be, streaming, down to the element that differs."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np

from fp8pad.checkpoint.files import BUFFER_BYTES, Advance, FileIdentity, OpenFile, open_file
from fp8pad.checkpoint.grid import Run
from fp8pad.checkpoint.json_text import first_difference
from fp8pad.checkpoint.layout import ShardLayout, Step, Transfer
from fp8pad.checkpoint.moving import Bytes, Sums, passed, read_bytes, target_prefix
from fp8pad.errors import shown
from fp8pad.tensors import DTYPE_BITS, ShardHeader, TensorHeader

MAX_MISMATCHES = 20


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One difference: `place` is a tensor with an index, or a key, in `file`; `expected` and `got` are its values.

    `sentence` replaces the text, for a missing or an added file.
    """

    file: str
    place: str
    expected: str
    got: str
    sentence: str = ""

    @classmethod
    def missing(cls, file: str, num_bytes: int) -> "Mismatch":
        """A file that is missing."""
        size = f"{num_bytes} bytes"
        return cls(file, "file", f"a file of {size}", "no such file", f"{file} is missing ({size})")

    @classmethod
    def added(cls, file: str, got: str) -> "Mismatch":
        """A file that should not be there; `got` says what it is."""
        return cls(file, "file", "no such file", got, f"{file}: was added ({got})")

    def __str__(self) -> str:
        return self.sentence or f"{self.file}: {self.place}: expected {self.expected}, got {self.got}"

    def to_json(self) -> dict[str, str]:
        """Return its place and both values."""
        return {"file": self.file, "place": self.place, "expected": self.expected, "got": self.got}


def check_padding(
    layout: ShardLayout, target_root: Path, advance: Advance, expected: FileIdentity | None = None
) -> list[Mismatch]:
    """Check what padding added to a shard, which `layout` cuts off; return at most `MAX_MISMATCHES`.

    `advance` gets the bytes of the padded tensors; `expected` is the identity of the shard when it was read before.
    """
    if layout.is_untouched:
        return []
    with open_file(target_root / layout.file, layout.file, expected) as target:
        steps = (step for step in layout.transfer(back=True).steps if step.grid)
        wrong = (_wrong_padding(layout, step, target, advance) for step in steps)
        return list(islice(chain.from_iterable(wrong), MAX_MISMATCHES))


def compare_data(
    transfer: Transfer, source: OpenFile, target: OpenFile, advance: Advance, sums: Sums | None = None
) -> Iterator[Mismatch]:
    """Compare every byte of a shard with what its source gives; yield the first mismatch of each tensor.

    Both files must have the sizes that the layout gives them; on the way back, their headers were compared before.
    `advance` gets the number of target bytes compared. If nothing differs, `sums` covers the whole shard afterwards.
    """
    sums, prefix = sums or Sums("none"), target.read(0, transfer.target_start)
    if not transfer.back and prefix != target_prefix(transfer, source):
        yield Mismatch(transfer.layout.file, "header", "what was planned", "another")
        return
    sums.begin(transfer, source, prefix)
    del prefix
    for step in transfer.steps:
        done = 0
        for chunk in step.chunks(BUFFER_BYTES):
            expected = passed(step, chunk, source, sums)
            found = read_bytes(target, chunk.target, chunk.target_bytes)
            done += chunk.target_bytes
            if (first := _first_difference(expected, found)) is not None:
                yield _differing(transfer.layout, step, chunk.target + first, expected[first], found[first])
                break
        advance(done)


def text_differences(file: str, expected: str, found: str) -> Iterator[Mismatch]:
    """Compare two JSON texts; yield the first difference."""
    if difference := first_difference(expected, found):
        yield Mismatch(file, *difference)


def compare_files(file: str, expected: Path, found: Path) -> Iterator[Mismatch]:
    """Compare two files byte by byte; yield the first difference."""
    sizes = expected.stat().st_size, found.stat().st_size
    if sizes[0] != sizes[1]:
        yield Mismatch(file, "size", f"{sizes[0]} bytes", f"{sizes[1]} bytes")
        return
    with open_file(expected, file) as before, open_file(found, file) as after:
        for offset in range(0, sizes[0], BUFFER_BYTES):
            count = min(BUFFER_BYTES, sizes[0] - offset)
            one, other = (read_bytes(opened, offset, count) for opened in (before, after))
            if (first := _first_difference(one, other)) is not None:
                yield Mismatch(file, f"byte {offset + first}", f"0x{one[first]:02x}", f"0x{other[first]:02x}")
                return


def header_differences(expected: ShardHeader, found: ShardHeader) -> Iterator[Mismatch]:
    """Compare two headers; a different order of tensors counts only if their bytes moved."""
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


def _first_difference(expected: Bytes, found: Bytes) -> int | None:
    """Return the index at which two arrays `[n]` of bytes first differ."""
    words = expected.size // 8 * 8
    equal_words = np.array_equal(expected[:words].view(np.uint64), found[:words].view(np.uint64))
    if equal_words and np.array_equal(expected[words:], found[words:]):
        return None
    return int(np.argmax(expected != found))


def _wrong_padding(layout: ShardLayout, step: Step, target: OpenFile, advance: Advance) -> Iterator[Mismatch]:
    """Yield the first padding element of a tensor that is not the fill value."""
    advance(step.tensor.num_bytes)
    fill = np.frombuffer(step.grid.fill if step.grid else b"\0", np.uint8)
    for chunk in step.chunks(BUFFER_BYTES):
        if chunk.is_copy:
            continue
        found = read_bytes(target, chunk.target, chunk.target_bytes)
        stack = found.reshape(chunk.target_shape)
        gaps = (gap for gap in chunk.pieces() if None in (gap[0].source, gap[1].source))
        if wrong := [first for gap in gaps if (first := _first_wrong(stack, *gap, fill)) is not None]:
            first = min(wrong)
            yield _differing(layout, step, chunk.target + first, fill[first % fill.size], found[first])
            return


def _first_wrong(stack: Bytes, rows: Run, columns: Run, fill: Bytes) -> int | None:
    """Return the offset of the first byte of a gap of `stack`, `[matrices, rows, bytes]`, that is not `fill`."""
    gap = stack[:, rows.target : rows.target + rows.size, columns.target : columns.target + columns.size]
    differing = gap != np.tile(fill, columns.size // fill.size)
    if not differing.any():
        return None
    matrix, row, column = np.unravel_index(int(np.argmax(differing)), differing.shape)
    place = matrix, row + rows.target, column + columns.target
    return int(np.ravel_multi_index(place, stack.shape))


def _differing(layout: ShardLayout, step: Step, offset: int, expected: int, found: int) -> Mismatch:
    return Mismatch(layout.file, _place(step, offset), f"byte 0x{expected:02x}", f"0x{found:02x}")


def _place(step: Step, offset: int) -> str:
    """Name the element of a tensor that holds the byte at `offset` of the target."""
    tensor = step.tensor
    position = (offset - step.target) * 8 // DTYPE_BITS[tensor.dtype]
    index: list[int] = []
    for size in reversed(tensor.shape):
        position, remainder = divmod(position, size)
        index.insert(0, remainder)
    return f"{tensor.name}{index or ''}"


def _described(tensor: TensorHeader | None) -> str:
    return f"{tensor.dtype} {list(tensor.shape)} at {tensor.begin}" if tensor else "no such tensor"
