"""Headers: what the format forbids is refused, and what it allows is written again unchanged."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import framed, safetensors_bytes
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save

from fp8pad.checkpoint.headers import header_bytes, in_data_order, parse_header, read_header
from fp8pad.errors import CheckpointError, HeaderError
from fp8pad.tensors import ShardHeader, TensorHeader

A = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}
B = {"dtype": "U8", "shape": [3], "data_offsets": [2, 5]}


def parse(header: bytes, data_bytes: int) -> ShardHeader:
    """Parse a header before `data_bytes` of data."""
    prefix = framed(header)
    return parse_header(prefix, len(prefix) + data_bytes, "x.safetensors")


def parse_json(document: Any, data_bytes: int) -> ShardHeader:
    """Parse a header given as JSON."""
    return parse(json.dumps(document).encode(), data_bytes)


def test_orders_of_names_and_of_data_are_kept_apart() -> None:
    """Tensors keep the order of the header, which may differ from that of their data."""
    shard = parse_json({"b": B, "__metadata__": {"k": "v"}, "a": A}, 5)
    assert [tensor.name for tensor in shard.tensors] == ["b", "a"]
    assert [tensor.name for tensor in in_data_order(shard.tensors)] == ["a", "b"]
    assert shard.metadata == {"k": "v"}
    assert shard.file_bytes == shard.data_start + 5


def test_scalars_empty_tensors_and_sub_byte_dtypes_are_legal() -> None:
    """A scalar has one element, a size of zero none, and two F4 elements share a byte."""
    document = {
        "scalar": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]},
        "empty": {"dtype": "BF16", "shape": [0, 7], "data_offsets": [4, 4]},
        "half": {"dtype": "F4", "shape": [3, 2], "data_offsets": [4, 7]},
    }
    shard = parse_json(document, 7)
    assert [tensor.num_bytes for tensor in shard.tensors] == [4, 0, 3]
    assert shard.metadata is None


def test_a_shard_without_tensors_is_legal() -> None:
    """An empty header describes no tensor and no data."""
    assert parse(b"{}", 0).tensors == ()


def test_metadata_may_have_the_keys_of_a_tensor() -> None:
    """Only the position identifies a tensor: `__metadata__` may hold any strings."""
    metadata = {"dtype": "U8", "shape": "[2]", "data_offsets": "[0, 2]"}
    assert parse_json({"__metadata__": metadata}, 0).metadata == metadata


def test_tensors_may_have_the_names_of_keys() -> None:
    """Three of them, called as the entries of one, are a header."""
    entry = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    header = parse_json(dict.fromkeys(entry, entry), 0)
    assert [tensor.name for tensor in header.tensors] == list(entry)


@pytest.mark.parametrize(
    ("document", "data_bytes", "message"),
    [
        ({"a": A}, 1, "truncated"),
        ({"a": A}, 3, "belong to no tensor"),
        ({"a": A, "b": {**B, "data_offsets": [1, 4]}}, 4, "b: overlaps"),
        ({"a": A, "b": {**B, "data_offsets": [3, 6]}}, 6, "b: leaves a gap"),
        ({"a": {**A, "data_offsets": [-1, 1]}}, 1, "a: data_offsets"),
        ({"a": {**A, "data_offsets": [2, 0]}}, 2, "a: data_offsets"),
        ({"a": {**A, "data_offsets": [0, 2, 4]}}, 2, "a: data_offsets"),
        ({"a": {**A, "data_offsets": [0.0, 2.0]}}, 2, "a: data_offsets"),
        ({"a": {**A, "data_offsets": [False, 2]}}, 2, "a: data_offsets"),
        ({"a": {**A, "shape": [3]}}, 2, "a: data_offsets: expected 3 bytes"),
        ({"a": {**A, "shape": [-2]}}, 2, "a: shape"),
        ({"a": {**A, "shape": [True]}}, 1, "a: shape"),
        ({"a": {**A, "shape": 2}}, 2, "a: shape"),
        ({"a": {**A, "shape": [2**32, 2**32]}}, 2, "overflows"),
        ({"a": {**A, "shape": [2**62, 2**62, 0]}}, 2, "overflows"),
        ({"a": {**A, "shape": [10**400]}}, 2, "a: shape"),
        ({"a": {**A, "dtype": "F8_FOO"}}, 2, "a: dtype"),
        ({"a": {**A, "dtype": ["U8"]}}, 2, "a: dtype"),
        ({"a": {**A, "dtype": "F4", "shape": [3]}}, 2, "expected 1.5 bytes"),
        ({"a": {"dtype": "U8", "shape": [2]}}, 2, "a: expected dtype"),
        ({"a": {**A, "extra": 1}}, 2, "a: expected dtype"),
        ({"a": None}, 0, "a: expected dtype"),
        ({"__metadata__": {"k": 1}, "a": A}, 2, "__metadata__"),
        ({"__metadata__": A, "a": A}, 2, "__metadata__"),
        ({"__metadata__": ["pt"], "a": A}, 2, "__metadata__"),
        ([A], 2, "begins with"),
    ],
)
def test_what_the_format_forbids_is_refused(document: Any, data_bytes: int, message: str) -> None:
    """Every rule of the format has an error of its own, which names the file."""
    with pytest.raises(HeaderError, match=message) as caught:
        parse_json(document, data_bytes)
    assert str(caught.value).startswith("x.safetensors: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"U8","dtype":"I8","shape":[0],"data_offsets":[0,0]}}',
        b'{"__metadata__":{"k":"1","k":"2"}}',
        b'{"a":{"dtype":"U8","shape":[NaN],"data_offsets":[0,0]}}',
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[-0,0]}}',
        b'{"a":{"dtype":"U8","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,0]}}',
        b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"a":[' + b"[]," * 200_000 + b"0]}",
        b'{"\xff":1}',
        b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}',
        b"{} {}",
        b" {}",
        b"",
        b"null",
    ],
)
def test_json_that_cannot_be_trusted_is_refused(header: bytes) -> None:
    """Duplicate names, NaN, huge numbers, deep nesting, invalid UTF-8 and values that are not an object."""
    with pytest.raises(HeaderError, match=r"x\.safetensors: header"):
        parse(header, 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got 0 bytes"),
        (b"1234567", "got 7 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        ((2**63 + 5).to_bytes(8, "little") + b"{}", "header length"),
        ((100).to_bytes(8, "little") + b"{}", "header length"),
    ],
)
def test_files_without_a_header_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """A file that is too short, a Git LFS pointer, and an impossible header length."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(HeaderError, match=message):
        read_header(path, "x.safetensors")


def test_a_header_over_the_limit_is_not_even_read(tmp_path: Path) -> None:
    """The library refuses headers of more than 100 MB; a sparse file shows that only the length decides."""
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(200_000_000)
    with pytest.raises(HeaderError, match="expected at most 100000000"):
        read_header(path, "x.safetensors")


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    """A missing file, a dangling link, a loop of links, a folder and a pipe; none of them blocks."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    expected = {"none": "missing", "dangling": "dangling", "loop": "cannot be read", "pipe": "regular", ".": "regular"}
    for name, message in expected.items():
        with pytest.raises(CheckpointError, match=message):
            read_header(tmp_path / name, name)


def test_headers_are_written_as_the_safetensors_library_writes_them(tmp_path: Path) -> None:
    """A header that the library wrote is parsed and written again byte for byte."""
    arrays: dict[str, np.ndarray[Any, Any]]
    arrays = {"b": np.zeros((2, 3), np.float32), 'é\n"': np.ones(5, np.uint8), "empty": np.zeros((0, 4), np.int64)}
    for metadata in (None, {"format": "pt"}, {"é": "\x01\u2028"}):
        path = tmp_path / "x.safetensors"
        path.write_bytes(save(arrays, metadata))
        shard = read_header(path, path.name)
        assert header_bytes(shard.tensors, shard.metadata) == path.read_bytes()[: shard.data_start]


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_header_error(content: bytes) -> None:
    """Any header is parsed or refused."""
    prefix = len(content).to_bytes(8, "little") + content
    with suppress(HeaderError):
        parse_header(prefix, len(prefix), "x")


@given(st.data())
def test_one_damaged_byte_never_goes_unnoticed_as_another_error(data: st.DataObject) -> None:
    """A header with one changed byte is parsed or refused, and never raises another error."""
    content = bytearray(safetensors_bytes({"a": ("U8", (2, 3)), "b": ("BF16", (4,))}, {"format": "pt"}))
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    length = int.from_bytes(content[:8], "little")
    if length > len(content) - 8:
        return
    with suppress(HeaderError):
        parse_header(bytes(content[: 8 + length]), len(content), "x")


def test_empty_tensors_sort_before_what_begins_at_the_same_place() -> None:
    """A tensor without bytes leaves no gap, wherever it is in the header."""
    big, empty = TensorHeader("big", "U8", (4,), 0), TensorHeader("empty", "U8", (0,), 0)
    assert in_data_order([big, empty]) == [empty, big]
