"""Shards: where bytes are before and after padding, and that they are moved and compared there."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from helpers import framed, safetensors_bytes, stored_header, tensor_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from fp8pad.checkpoint import moving
from fp8pad.checkpoint.compare import Mismatch, compare_data, header_differences
from fp8pad.checkpoint.files import OpenFile, create_file, open_file
from fp8pad.checkpoint.grid import AxisMap, Grid, Run, tensor_grid
from fp8pad.checkpoint.headers import read_header
from fp8pad.checkpoint.layout import Transfer, logical_shard, original_layout, shard_layout
from fp8pad.checkpoint.moving import Hashes, Sums, checksum, read_back, target_prefix, write_shard
from fp8pad.checkpoint.options import VerifyDepth
from fp8pad.errors import CheckpointError, OutputError, PlanError
from fp8pad.padded import AxisActions, PaddedTensor, Segments

AXES = AxisActions("pad", "pad")
FILE = "model.safetensors"


def padded(logical: tuple[int, ...], larger: tuple[int, ...], fill: int = 0, **segments: Segments) -> PaddedTensor:
    """Return a padded tensor whose axis actions do not matter here."""
    return PaddedTensor(logical, larger, 1 if fill else 0, AXES, **segments)


def silent(num_bytes: int) -> None:
    """Ignore progress."""


def lay_out(path: Path, tensors: dict[str, PaddedTensor]) -> Transfer:
    """Return how the shard at `path` is padded."""
    return shard_layout(read_header(path, FILE), tensors).transfer()


@contextmanager
def written(
    path: Path, tensors: dict[str, PaddedTensor], sums: Sums | None = None
) -> Iterator[tuple[Transfer, OpenFile, Path]]:
    """Write the padded shard of `path` next to it; yield the transfer, the open source, and the new path."""
    transfer, target = lay_out(path, tensors), path.with_name("padded.safetensors")
    with open_file(path, FILE) as source:
        with create_file(target, FILE) as output:
            write_shard(transfer, source, output, sums or Sums("none"), silent)
        yield transfer, source, target


def test_each_tensor_is_a_step(tmp_path: Path) -> None:
    """The orders of names and of data, and foreign metadata, are kept."""
    path = tmp_path / FILE
    tensors = {"z": ("U8", (5,)), "a": ("BF16", (3,)), "w": ("F8_E4M3", (2, 3)), "e": ("U8", (0,)), "b": ("U8", (1,))}
    path.write_bytes(safetensors_bytes(tensors, {"format": "pt", "made by": "x"}))
    transfer = lay_out(path, {"w": padded((2, 3), (4, 4)), "elsewhere": padded((1,), (2,))})
    before, after = transfer.source_start, transfer.target_start
    grid = Grid(1, AxisMap(2, 4, (Run(0, 0, 2),)), AxisMap(3, 4, (Run(0, 0, 3),)), b"\0")
    found = {step.tensor.name: (step.source - before, step.target - after, step.grid) for step in transfer.steps}
    kept = {"z": (0, 0, None), "a": (5, 5, None), "e": (17, 27, None), "b": (17, 27, None)}
    assert found == kept | {"w": (11, 11, grid)}
    target, prefix = transfer.layout.other()
    assert [tensor.name for tensor in target.tensors] == ["z", "a", "w", "e", "b"]
    assert (transfer.layout.data_bytes(only_resized=True), transfer.layout.data_bytes()) == (16, 28)
    assert (len(prefix) + 28, transfer.derived_prefix) == (transfer.layout.target_bytes, prefix)
    assert target.metadata == {
        "format": "pt",
        "made by": "x",
        "fp8pad": '{"format_version":1,"tensors":{"w":{"logical_shape":[2,3]}}}',
    }


def test_a_shard_without_padded_tensors_stays_as_it_is(tmp_path: Path) -> None:
    """Not even its header is rewritten."""
    path = tmp_path / FILE
    path.write_bytes(framed(b'{"a" : {"dtype": "U8", "shape": [5], "data_offsets": [0, 5]}}') + bytes(5))
    transfer = lay_out(path, {"elsewhere": padded((1,), (2,))})
    assert transfer.layout.is_untouched
    assert transfer.source_start == transfer.target_start
    with open_file(path, FILE) as source:
        assert target_prefix(transfer, source) == path.read_bytes()[: transfer.source_start]


def chunks(grid: Grid, limit: int) -> list[tuple[int, int, int, int, int]]:
    """Return source, target, rows and row bytes on both sides for each chunk of a grid."""
    found = grid.chunks(0, 0, limit)
    return [(c.source, c.target, c.rows.target_size, c.columns.source_size, c.columns.target_size) for c in found]


def test_no_chunk_holds_rows_of_two_runs() -> None:
    """A chunk has rows of one segment, or the fill after it."""
    grid = tensor_grid("U8", padded((5, 2), (8, 3), segments=Segments((2, 3), (4, 4))))
    assert grid.rows == AxisMap(5, 8, (Run(0, 0, 2), Run(2, 4, 3)))
    assert chunks(grid, 6) == [(0, 0, 2, 2, 3), (0, 6, 1, 0, 6), (4, 12, 2, 2, 3), (8, 18, 1, 2, 3), (0, 21, 1, 0, 3)]


def test_whole_rows_without_gaps_are_neighbours() -> None:
    """If only N grows, bytes are copied, whatever a row's length; a stack whose N stays counts as one matrix."""
    assert chunks(tensor_grid("U8", padded((5, 2), (8, 2))), 8) == [(0, 0, 1, 8, 8), (8, 8, 1, 2, 2), (0, 10, 1, 0, 6)]
    stack = tensor_grid("U8", padded((3, 2, 3), (3, 2, 4)))
    assert stack == Grid(1, AxisMap(6, 6, (Run(0, 0, 6),)), AxisMap(3, 4, (Run(0, 0, 3),)), b"\0")


def test_a_row_longer_than_the_buffer_is_moved_in_parts() -> None:
    """A row of any length needs no more memory; filled elements are not split."""
    grid = tensor_grid("F32", padded((2, 3), (3, 5), 1))
    assert chunks(grid, 10) == [
        *[(0, 0, 1, 10, 10), (10, 10, 1, 2, 2), (0, 12, 1, 0, 8)],
        *[(12, 20, 1, 10, 10), (22, 30, 1, 2, 2), (0, 32, 1, 0, 8)],
        *[(0, 40, 1, 0, 8), (0, 48, 1, 0, 8), (0, 56, 1, 0, 4)],
    ]


@pytest.mark.parametrize(
    "tensor",
    [
        padded((1_000_000, 1, 1), (1_000_000, 2, 2)),
        padded((500_000, 2, 1), (500_000, 4, 2), segments=Segments((1, 1), (2, 2))),
    ],
)
def test_work_on_a_stack_is_bounded_by_its_bytes(tensor: PaddedTensor) -> None:
    """A few megabytes can hold a million matrices: many are moved, and compared, at a time."""
    grid = tensor_grid("U8", tensor)
    for way in (grid, tensor_grid("U8", tensor, is_inverse=True)):
        found = list(way.chunks(0, 0, 1 << 20))
        assert sum(chunk.target_bytes for chunk in found) == (4_000_000 if way is grid else 1_000_000)
        assert sum(len(list(chunk.pieces())) for chunk in found) < 50


@pytest.mark.parametrize("shape", [(2**50 + 1, 0), (2**40, 2**20, 0)])
def test_a_tensor_without_bytes_takes_no_time(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """However large its other sizes are: the work is bounded by the bytes of the file."""
    path = tmp_path / FILE
    header = f'{{"e":{{"dtype":"U8","shape":{list(shape)},"data_offsets":[0,0]}}}}'
    path.write_bytes(framed(header.encode()))
    larger = (*shape[:-2], shape[-2] + 15, 0)
    with written(path, {"e": padded(shape, larger)}) as (transfer, source, target), open_file(target, FILE) as output:
        assert transfer.steps[0].tensor.shape == larger
        assert list(compare_data(transfer, source, output, silent)) == []


@pytest.mark.parametrize(
    ("dtype", "tensor", "message"),
    [
        ("U8", padded((2, 3, 3, 3), (4, 3, 3, 3)), "not a stack of matrices"),
        ("U8", padded((2, 3, 3), (3, 3, 3)), "cannot be padded"),
        ("F4", padded((2, 4), (4, 4)), "cannot be padded"),
        ("F64", padded((2, 4), (4, 4), 1), "cannot be filled with 1.0"),
    ],
)
def test_what_cannot_be_padded_is_refused(dtype: str, tensor: PaddedTensor, message: str) -> None:
    """Convolutions, another number of experts, dtypes below a byte, and dtypes whose 1.0 is unknown."""
    with pytest.raises(ValueError, match=message):
        tensor_grid(dtype, tensor)


def test_a_plan_of_another_shape_is_refused(tmp_path: Path) -> None:
    """The plan and the shard must describe the same tensor."""
    path = tmp_path / FILE
    path.write_bytes(safetensors_bytes({"w": ("U8", (2, 3))}))
    with pytest.raises(PlanError, match=r"w: expected \[2, 4\], got \[2, 3\]"):
        lay_out(path, {"w": padded((2, 4), (4, 4))})


@st.composite
def padded_tensors(draw: st.DrawFn) -> tuple[str, PaddedTensor]:
    """Draw a dtype and a padded tensor: vector, matrix or stack, in segments along N or K, or neither."""
    sizes = st.integers(0, 5)
    axis = draw(st.sampled_from((None, -1, -2, "none")))
    parts = [(size := draw(sizes), size + draw(sizes)) for _ in range(draw(st.integers(1, 3)))]
    cut = sum(part[0] for part in parts), sum(part[1] for part in parts)
    other = (size := draw(sizes), size + draw(sizes))
    num_matrices = draw(st.sampled_from((None, 1, 3)))
    n, k = (other, cut) if axis == -1 else (cut, other)
    logical: tuple[int, ...] = n[0], k[0]
    larger: tuple[int, ...] = n[1], k[1]
    if num_matrices:
        logical, larger = (num_matrices, *logical), (num_matrices, *larger)
    elif draw(st.booleans()) and axis in (None, "none"):
        logical, larger = (n[0],), (n[1],)
    segments = Segments(*zip(*parts, strict=True), axis=axis) if axis != "none" else None  # type: ignore[misc, arg-type]
    fill = draw(st.sampled_from((0, 1)))
    dtype = draw(st.sampled_from(("F32", "BF16", "F16") if fill else ("F8_E4M3", "F8_E5M2", "BF16", "U8")))
    return dtype, PaddedTensor(logical, larger, 1 if fill else 0, AXES, segments)


def expected_rows(rows: np.ndarray, tensor: PaddedTensor, dtype: str) -> np.ndarray:
    """Pad `[*logical_shape, element bytes]` with plain indexing, segment by segment."""
    one = {"F32": [0, 0, 128, 63], "BF16": [128, 63], "F16": [0, 60]}
    fill = np.array(one[dtype] if tensor.fill else [0] * rows.shape[-1], np.uint8)
    result = np.broadcast_to(fill, (*tensor.padded_shape, rows.shape[-1])).copy()
    axis = {1: 0, 2: 0}.get(rows.ndim - 1, 1)
    segments = tensor.segments or Segments((tensor.logical_shape[axis],), (tensor.padded_shape[axis],))
    if segments.axis is not None:
        axis = len(tensor.logical_shape) + segments.axis
    before = after = 0
    for logical, larger in zip(segments.logical, segments.padded, strict=True):
        source, target = [slice(size) for size in tensor.logical_shape], [slice(size) for size in tensor.logical_shape]
        source[axis], target[axis] = slice(before, before + logical), slice(after, after + logical)
        result[tuple(target)] = rows[tuple(source)]
        before, after = before + logical, after + larger
    return result


@settings(deadline=None, max_examples=150)
@given(drawn=st.lists(padded_tensors(), min_size=1, max_size=4), buffer_bytes=st.integers(1, 64), data=st.data())
def test_any_shard_is_padded_as_planned_and_back(
    tmp_path_factory: pytest.TempPathFactory,
    drawn: list[tuple[str, PaddedTensor]],
    buffer_bytes: int,
    data: st.DataObject,
) -> None:
    """Padding equals plain indexing, comparing finds nothing, and unpadding gives the source's bytes."""
    path = tmp_path_factory.mktemp("shard") / FILE
    tensors = {f"t{number}": (dtype, tensor.logical_shape) for number, (dtype, tensor) in enumerate(drawn)}
    tensors |= {"kept": ("F4", (3, 2)), "scalar": ("F32", ())}
    data_order, header_order = (data.draw(st.permutations(sorted(tensors))) for _ in range(2))
    metadata = data.draw(st.sampled_from((None, {"format": "pt"})))
    depth: VerifyDepth = data.draw(st.sampled_from(("none", "padded", "full")))
    path.write_bytes(safetensors_bytes({name: tensors[name] for name in data_order}, metadata, names=header_order))
    plan = {f"t{number}": tensor for number, (_, tensor) in enumerate(drawn)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fp8pad.checkpoint.moving.BUFFER_BYTES", buffer_bytes)
        patch.setattr("fp8pad.checkpoint.compare.BUFFER_BYTES", buffer_bytes)
        patch.setattr("fp8pad.checkpoint.moving.KERNEL_COPY_BYTES", 2 * buffer_bytes)
        sums = Sums(depth, hashed=depth == "full")
        with written(path, plan, sums) as (transfer, source, target), open_file(target, FILE) as output:
            assert target.stat().st_size == transfer.layout.target_bytes
            assert list(read_back(transfer, output, target_prefix(transfer, source), sums, silent)) == []
            assert list(compare_data(transfer, source, output, silent)) == []
            text = path.read_bytes()[8 : transfer.source_start].decode()
            original = data.draw(st.sampled_from((None, text)))
            inverse = original_layout(read_header(target, FILE), plan, original).transfer()
            restored = path.with_name("restored.safetensors")
            with create_file(restored, FILE) as back:
                write_shard(inverse, output, back, Sums("none"), silent)
            with open_file(restored, FILE) as back:
                assert list(compare_data(inverse, output, back, silent)) == []
    assert restored.read_bytes() == path.read_bytes()
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (target, path)]
    assert sums.hashes == (Hashes(*hashes) if depth == "full" else None)
    shapes = {name: tensor.logical_shape for name, tensor in plan.items()}
    assert logical_shard(transfer.layout.other()[0], shapes) == (transfer.layout.header, inverse.derived_prefix)
    for name, (dtype, _) in tensors.items():
        rows = tensor_rows(path, name) if dtype != "F4" else None
        if name in plan and rows is not None:
            assert np.array_equal(tensor_rows(target, name), expected_rows(rows, plan[name], dtype))
        elif rows is not None:
            assert np.array_equal(tensor_rows(target, name), rows)
    assert [name for name in stored_header(target) if name != "__metadata__"] == header_order


def test_every_damaged_byte_of_data_is_found(tmp_path: Path) -> None:
    """Flipping any byte is found at its position, and also when reading back without the source."""
    path = tmp_path / FILE
    path.write_bytes(safetensors_bytes({"a": ("BF16", (3,)), "w": ("F8_E4M3", (2, 3)), "s": ("F32", (2, 1))}))
    plan = {"w": padded((2, 3), (4, 4)), "s": padded((2, 1), (4, 1), 1)}
    sums = Sums("padded")
    with written(path, plan, sums) as (transfer, source, target):
        content, prefix = target.read_bytes(), target_prefix(transfer, source)
        for offset in range(transfer.target_start, len(content)):
            damaged = bytearray(content)
            damaged[offset] ^= 0x40
            target.write_bytes(damaged)
            with open_file(target, FILE) as output:
                found = list(compare_data(transfer, source, output, silent))
                read = list(read_back(transfer, output, prefix, sums, silent))
            position = offset - transfer.target_start
            place = f"a[{position // 2}]" if position < 6 else f"w[{(position - 6) // 4}, {(position - 6) % 4}]"
            place = place if position < 22 else f"s[{(position - 22) // 4}, 0]"
            assert found == [Mismatch(FILE, place, f"byte 0x{content[offset]:02x}", f"0x{damaged[offset]:02x}")]
            assert read == ([place.partition("[")[0]] if position >= 6 else [])


def test_each_damaged_tensor_is_reported_once(tmp_path: Path) -> None:
    """The first byte that differs is reported for each, and comparing continues after the tensor."""
    path = tmp_path / FILE
    path.write_bytes(safetensors_bytes(dict.fromkeys("abc", ("U8", (3,)))))
    transfer = lay_out(path, {})
    content = bytearray(path.read_bytes())
    for position in (-9, -8, -1):
        content[position] ^= 1
    target = tmp_path / "damaged"
    target.write_bytes(content)
    with open_file(path, FILE) as source, open_file(target, FILE) as output:
        found = list(compare_data(transfer, source, output, silent))
    assert [mismatch.place for mismatch in found] == ["a[0]", "c[2]"]


def test_headers_that_say_something_else_are_told_apart(tmp_path: Path) -> None:
    """Another shape, other metadata, and another formatting of the same header."""
    path = tmp_path / FILE
    path.write_bytes(safetensors_bytes({"a": ("U8", (4,)), "b": ("U8", (2,))}, {"format": "pt"}))
    expected = read_header(path, FILE)
    path.write_bytes(safetensors_bytes({"a": ("U8", (2, 2)), "b": ("U8", (2,))}, {"format": "np"}))
    mismatches = header_differences(expected, read_header(path, FILE))
    assert [str(mismatch) for mismatch in mismatches] == [
        f'{FILE}: __metadata__.format: expected "pt", got "np"',
        f"{FILE}: a: expected U8 [4] at 0, got U8 [2, 2] at 0",
        f"{FILE}: size: expected {expected.file_bytes} bytes, got {path.stat().st_size} bytes",
    ]


def test_another_header_is_noticed_when_a_shard_is_read_back(tmp_path: Path) -> None:
    """A moved space changes no meaning, but is not what was written; the same for another file size."""
    path = tmp_path / FILE
    path.write_bytes(safetensors_bytes({"a": ("U8", (4,))}, {"format": "pt!"}))
    transfer = lay_out(path, {})
    content = path.read_bytes()
    prefix = content[: transfer.source_start]
    assert prefix.endswith(b" ")
    for other in (prefix[:-1].replace(b'"a":', b'"a": ') + content[len(prefix) :], content + b"x", content[:-1]):
        path.write_bytes(other)
        with open_file(path, FILE) as found:
            assert list(read_back(transfer, found, prefix, Sums("none"), silent)) == ["header"]


@pytest.mark.parametrize("size", [0, 7, 511, 512, 4096, 4099])
def test_a_checksum_notices_what_happens_to_disks(size: int) -> None:
    """A flipped bit, a missing, old or misplaced sector, misplaced words; parts can be chained."""
    data = np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes()
    seen = {checksum(memoryview(data))}
    damaged = [data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :] for at in range(0, size, 101)]
    if size >= 4096:
        sectors = [data[begin : begin + 512] for begin in range(0, size, 512)]
        others = bytes(512), bytes(reversed(sectors[1])), sectors[2]
        damaged += [b"".join([sectors[0], other, *sectors[2:]]) for other in others if other != sectors[1]]
        damaged.append(b"".join([sectors[1], sectors[0], *sectors[2:]]))
        damaged += [data[8:16] + data[:8] + data[16:], data[8:512] + data[:8] + data[512:]]
        assert checksum(memoryview(data[512:]), checksum(memoryview(data[:512]))) in seen
    for other in damaged:
        assert checksum(memoryview(other)) not in seen


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_copies_in_the_kernel_bytes_go_through_a_buffer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """If the file systems cannot copy between each other, the result is the same."""

    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    path = tmp_path / FILE
    path.write_bytes(safetensors_bytes({"a": ("U8", (999,)), "w": ("U8", (2, 3))}))
    with written(path, {"w": padded((2, 3), (4, 4))}) as (transfer, source, target), open_file(target, FILE) as output:
        assert list(compare_data(transfer, source, output, silent)) == []


def test_copies_that_end_early_are_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may copy, read and write less than requested."""
    copy, read, write = os.copy_file_range, os.preadv, os.pwrite
    monkeypatch.setattr(os, "copy_file_range", lambda s, t, count, a, b: copy(s, t, min(count, 7), a, b))
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: read(fd, [buffers[0][:5]], offset))
    monkeypatch.setattr(os, "pwrite", lambda fd, view, offset: write(fd, view[:3], offset))
    path = tmp_path / FILE
    path.write_bytes(safetensors_bytes({"a": ("U8", (99,)), "w": ("U8", (20, 3))}))
    with (
        written(path, {"w": padded((20, 3), (32, 4))}) as (transfer, source, target),
        open_file(target, FILE) as output,
    ):
        assert list(compare_data(transfer, source, output, silent)) == []


@pytest.mark.parametrize("depth", ["none", "padded", "full"])
def test_holes_stay_holes(tmp_path: Path, depth: VerifyDepth) -> None:
    """A shard that is mostly holes takes as little space as before, and has the same contents."""
    path = tmp_path / FILE
    shape = (3000, 2**12 - 8)
    tensors = {"a": ("U8", (9 << 20,)), "w": ("F8_E4M3", shape), "s": ("F32", (3000, 1)), "b": ("U8", (1 << 22,))}
    header, end = {}, 0
    for name, (dtype, sizes) in tensors.items():
        begin, end = end, end + int(np.prod(sizes)) * {"F32": 4}.get(dtype, 1)
        header[name] = {"dtype": dtype, "shape": sizes, "data_offsets": [begin, end]}
    content = framed(json.dumps(header).encode())
    with path.open("wb") as file:
        file.write(content)
        file.truncate(len(content) + end)
        file.seek(len(content) + (20 << 20))
        file.write(b"data in the middle of w")
    plan = {"w": padded(shape, (3008, 2**12)), "s": padded((3000, 1), (3008, 1), 1)}
    sums = Sums(depth, hashed=depth == "full")
    with written(path, plan, sums) as (transfer, source, target), open_file(target, FILE) as output:
        assert list(read_back(transfer, output, target_prefix(transfer, source), sums, silent)) == []
        assert list(compare_data(transfer, source, output, silent)) == []
    assert target.stat().st_blocks * 512 < 3 << 20


@pytest.mark.parametrize("is_refused", [False, True])
def test_the_disk_begins_before_a_shard_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_refused: bool
) -> None:
    """Write-back is requested for every part that is written; if refused, the file is the same, and synced."""
    write, copy, end = os.pwrite, os.copy_file_range, 0
    parts: list[tuple[int, int]] = []
    parts_at_sync: list[int] = []

    def noted(offset: int, count: int) -> int:
        nonlocal end
        end = max(end, offset + count)
        return count

    def advise(_descriptor: int, offset: int, count: int, advice: int) -> None:
        assert (advice, offset + count) == (os.POSIX_FADV_DONTNEED, end)
        parts.append((offset, count))
        if is_refused:
            raise OSError(errno.EINVAL, "")

    monkeypatch.setattr(moving, "WRITE_BACK_BYTES", 1000)
    monkeypatch.setattr(moving, "BUFFER_BYTES", 256)
    monkeypatch.setattr(os, "pwrite", lambda fd, view, offset: noted(offset, write(fd, view, offset)))
    monkeypatch.setattr(os, "copy_file_range", lambda s, t, count, a, b: noted(b, copy(s, t, count, a, b)))
    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(os, "fsync", lambda _descriptor: parts_at_sync.append(len(parts)))
    path = tmp_path / FILE
    path.write_bytes(safetensors_bytes({"a": ("U8", (3000,)), "w": ("U8", (50, 30)), "z": ("U8", (9,))}))
    with written(path, {"w": padded((50, 30), (64, 32))}) as (transfer, source, target):
        assert (len(parts), parts_at_sync) == (3, [3])
        assert [offset for offset, _ in parts] == [0, *accumulate(count for _, count in parts[:-1])]
        assert all(count >= 1000 for _, count in parts)
        with open_file(target, FILE) as output:
            assert list(compare_data(transfer, source, output, silent)) == []


def test_a_source_that_ends_early_is_no_hole(tmp_path: Path) -> None:
    """There are no data after its end."""
    (tmp_path / "x").write_bytes(b"x")
    os.truncate(tmp_path / "x", 1 << 20)
    with open_file(tmp_path / "x", "x") as opened:
        assert list(opened.data_ranges(0, 1 << 20)) == [(0, 4096)]
        assert list(opened.data_ranges(1 << 16, 1 << 19)) == []
        assert list(opened.data_ranges(1 << 16, 1 << 20)) == [(1 << 16, 1 << 20)]


def test_a_source_that_shrinks_is_an_error(tmp_path: Path) -> None:
    """A copy that ends early names the file."""
    path = tmp_path / FILE
    path.write_bytes(safetensors_bytes({"a": ("U8", (999,)), "w": ("U8", (2, 3))}))
    transfer = lay_out(path, {"w": padded((2, 3), (4, 4))})
    os.truncate(path, 500)
    with (
        open_file(path, FILE) as source,
        create_file(tmp_path / "out", FILE) as output,
        pytest.raises(CheckpointError, match=f"{FILE}: ends early"),
    ):
        write_shard(transfer, source, output, Sums("none"), silent)


def test_a_full_disk_is_an_output_error() -> None:
    """The error names the file that could not be written."""
    with (
        Path("/dev/full").open("wb", buffering=0) as full,
        pytest.raises(OutputError, match=f"{FILE}: cannot be written: No space left"),
    ):
        OpenFile(full.fileno(), FILE).write(0, b"x")


def test_a_header_that_no_reader_accepts_is_not_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding makes it longer; the limit applies to what follows the length."""
    (tmp_path / FILE).write_bytes(safetensors_bytes({"w": ("F8_E4M3", (3, 5))}))
    header, tensors = read_header(tmp_path / FILE, FILE), {"w": padded((3, 5), (16, 16))}
    num_bytes = len(shard_layout(header, tensors).other()[1]) - 8
    monkeypatch.setattr("fp8pad.checkpoint.layout.MAX_HEADER_BYTES", num_bytes)
    shard_layout(header, tensors)
    monkeypatch.setattr("fp8pad.checkpoint.layout.MAX_HEADER_BYTES", num_bytes - 1)
    with pytest.raises(PlanError, match=r"its header would have \d+ bytes, more than the"):
        shard_layout(header, tensors)
