"""The header of a safetensors file: parsed strictly, and written as the safetensors library writes it.

Stricter than that library, which accepts a tensor that is named twice. Source of the rules: the safetensors format,
https://github.com/huggingface/safetensors#format, and `Metadata::validate` in its tensor.rs.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from fp8pad.checkpoint.files import OpenFile, open_file
from fp8pad.errors import HeaderError, shown
from fp8pad.parsing import check_density
from fp8pad.tensors import DTYPE_BITS, ShardHeader, TensorHeader

METADATA = "__metadata__"
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # the library's own limit
LFS_POINTER = b"version https://git-lfs"


def read_header(path: Path, file: str) -> ShardHeader:
    """Read and check the header of the safetensors file at `path`, called `file` in its checkpoint.

    Raises `CheckpointError` if it cannot be read and `HeaderError` if its header violates the format.
    """
    with open_file(path, file) as shard:
        return header_of(shard, shard.identity.size)


def header_of(shard: OpenFile, file_bytes: int) -> ShardHeader:
    """Read the header of an open safetensors file; raises as `read_header` does."""
    return parse_header(read_prefix(shard, file_bytes), file_bytes, shard.file)


def read_prefix(shard: OpenFile, file_bytes: int) -> bytes:
    """Return the first bytes of an open safetensors file of `file_bytes` bytes, up to where its data begins."""
    start = shard.read(0, min(file_bytes, len(LFS_POINTER))).tobytes()
    if start == LFS_POINTER:
        raise HeaderError(f"{shard.file}: is a Git LFS pointer, not the file itself; run `git lfs pull` there")
    if file_bytes < LENGTH_BYTES:
        raise HeaderError(f"{shard.file}: expected a safetensors file, got {file_bytes} bytes")
    num_bytes, limit = int.from_bytes(start[:LENGTH_BYTES], "little"), min(MAX_HEADER_BYTES, file_bytes - LENGTH_BYTES)
    if num_bytes > limit:
        raise HeaderError(
            f"{shard.file}: header length: expected at most {limit} in a file of {file_bytes} bytes, got {num_bytes}"
        )
    return shard.read(0, LENGTH_BYTES + num_bytes).tobytes()


def parse_header(prefix: bytes, file_bytes: int, file: str) -> ShardHeader:
    """Parse the first bytes of a safetensors file of `file_bytes` bytes: the length, then the JSON header.

    Raises `HeaderError` for anything that the format forbids, a tensor named twice included.
    """
    if not prefix.startswith(b"{", LENGTH_BYTES):
        got = prefix[LENGTH_BYTES : 2 * LENGTH_BYTES]
        raise HeaderError(f"{file}: header: expected JSON that begins with '{{', got {got!r}")
    data_start = len(prefix)
    try:
        text = str(memoryview(prefix)[LENGTH_BYTES:], "utf-8")
        del prefix  # a header of many tensors takes so much memory that each copy of it counts
        document = _parse_json(text)
        del text
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"{file}: header: {error}") from error
    metadata = _metadata(document.pop(METADATA, None), file)
    tensors = tuple(_tensor(name, document.pop(name), file) for name in list(document))
    _check_dense(tensors, file_bytes - data_start, file)
    return ShardHeader(file, file_bytes, data_start, tensors, metadata)


def header_bytes(tensors: Iterable[TensorHeader], metadata: Mapping[str, str] | None) -> bytes:
    """Return the first bytes of a safetensors file, byte for byte as the safetensors library writes them."""
    encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
    entries = [] if metadata is None else [f'"{METADATA}":{encode(dict(metadata))}']
    for tensor in tensors:  # encoding them as one object would take several times as much memory
        shape = ",".join(map(str, tensor.shape))
        offsets = f"{tensor.begin},{tensor.end}"
        entries.append(
            f'{encode(tensor.name)}:{{"dtype":"{tensor.dtype}","shape":[{shape}],"data_offsets":[{offsets}]}}'
        )
    text = f"{{{','.join(entries)}}}".encode()
    return framed(text + b" " * (-len(text) % 8))


def framed(text: bytes) -> bytes:
    """Return a header with its length, 8 bytes in little-endian order, before it."""
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def in_data_order(tensors: Iterable[TensorHeader]) -> list[TensorHeader]:
    """Sort tensors by the position of their data; empty tensors come before one that begins at the same position."""
    return sorted(tensors, key=lambda tensor: (tensor.begin, tensor.end))


def _whole_number(digits: str) -> int:
    if digits == "-0":
        raise ValueError("the safetensors library does not accept -0 as an integer")
    return int(digits)


def _parse_json(text: str) -> dict[str, Any]:
    def refuse_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    # Many tensors share few shapes. The key is text, since a malicious file could use numbers with equal hashes.
    shapes: dict[str, tuple[object, ...]] = {}

    def compact(pairs: list[tuple[str, Any]]) -> dict[str, Any] | tuple[object, ...]:
        """Return the entry of a tensor as a tuple, which takes a third of the memory."""
        document = dict(pairs)
        if len(document) < len(pairs):
            ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
            raise ValueError(f"{name} occurs twice")
        if document.keys() != {"dtype", "shape", "data_offsets"} or isinstance(document["shape"], str | tuple | dict):
            return document  # perhaps the metadata, or the whole header, of three tensors with these names
        if isinstance(shape := document["shape"], list):
            shape = shapes.setdefault(repr(shape), tuple(shape))
        return document["dtype"], shape, document["data_offsets"]

    check_density((text,))
    parse_int = _whole_number if "-0" in text else None  # Python's own is faster
    document = json.loads(text, object_pairs_hook=compact, parse_constant=refuse_constant, parse_int=parse_int)
    if "\\u" in text:
        json.dumps(document, ensure_ascii=False).encode()  # a lone surrogate could not be written again
    if not isinstance(document, dict):
        raise ValueError("expected an object")
    return document


def _metadata(entry: object, file: str) -> dict[str, str] | None:
    if entry is None:
        return None
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise HeaderError(f"{file}: {METADATA}: expected an object of strings, got {shown(entry)}")
    return entry


def _tensor(name: str, entry: object, file: str) -> TensorHeader:
    where = f"{file}: {name}"
    if not isinstance(entry, tuple):
        raise HeaderError(f"{where}: expected dtype, shape and data_offsets, got {shown(entry)}")
    dtype, shape, offsets = entry
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise HeaderError(f"{where}: dtype: expected one of {', '.join(DTYPE_BITS)}, got {shown(dtype)}")
    if not _are_sizes(shape):
        raise HeaderError(f"{where}: shape: expected a list of sizes, got {shown(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise HeaderError(f"{where}: data_offsets: expected [begin, end], got {shown(offsets)}")
    _check_size(where, dtype, shape, offsets[1] - offsets[0])
    return TensorHeader(name, sys.intern(dtype), shape, offsets[0])


def _check_size(where: str, dtype: str, shape: tuple[int, ...], num_bytes: int) -> None:
    num_bits = DTYPE_BITS[dtype]
    for size in shape:
        num_bits *= size
        if num_bits >= 2**64:
            raise HeaderError(f"{where}: shape: {shown(list(shape))} of {dtype} overflows 64 bits")
    if num_bits != num_bytes * 8:
        raise HeaderError(
            f"{where}: data_offsets: expected {num_bits / 8:g} bytes for {dtype} {list(shape)}, got {num_bytes}"
        )


def _check_dense(tensors: Iterable[TensorHeader], data_bytes: int, file: str) -> None:
    position = 0
    for tensor in in_data_order(tensors):
        if tensor.begin != position:
            cause = "overlaps the tensor before it" if tensor.begin < position else "leaves a gap before it"
            raise HeaderError(f"{file}: {tensor.name}: {cause}: expected begin {position}, got {tensor.begin}")
        position = tensor.end
    if position != data_bytes:
        cause = "is truncated" if position > data_bytes else "has bytes that belong to no tensor"
        raise HeaderError(f"{file}: {cause}: expected {position} bytes of data, got {data_bytes}")


def _are_sizes(value: object) -> bool:
    if not isinstance(value, (tuple, list)):
        return False
    for size in value:  # noqa: SIM110  `all` takes twice as long, for every tensor
        if type(size) is not int or not 0 <= size < 2**63:
            return False
    return True
