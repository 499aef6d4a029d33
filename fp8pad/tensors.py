"""What the header of a safetensors file says about its tensors: plain data, no files, no tensor bytes.

Source of the layout: the safetensors format, https://github.com/huggingface/safetensors#format
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

# Bits per element of every dtype that the format names (safetensors 0.8, `Dtype` in tensor.rs).
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}

# Zero is the byte 0x00 in each of these, so that padding needs no arithmetic, only bytes.
FP8_WEIGHT_DTYPES = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})

# The bytes of 1.0, little-endian, in every dtype of scales that can be padded.
ONE_BYTES: Mapping[str, bytes] = {
    "F32": b"\x00\x00\x80\x3f",
    "BF16": b"\x80\x3f",
    "F16": b"\x00\x3c",
    "F8_E8M0": b"\x7f",
}


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor as its shard's header describes it; it begins at byte `begin` of the shard's data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int

    @property
    def num_bytes(self) -> int:
        """Bytes that the tensor's data takes."""
        return tensor_bytes(self.dtype, self.shape)

    @property
    def end(self) -> int:
        """The byte of the shard's data at which the tensor ends, itself excluded."""
        return self.begin + self.num_bytes


@dataclass(frozen=True, slots=True)
class ShardHeader:
    """One safetensors file as its header describes it.

    `file` is the name relative to the checkpoint folder. `tensors` keep the header's own order, which may differ from
    the order of their data. `metadata` is None if the header has no `__metadata__`. Data begins at byte `data_start`.
    """

    file: str
    file_bytes: int
    data_start: int
    tensors: tuple[TensorHeader, ...]
    metadata: Mapping[str, str] | None = None


def tensor_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor of `dtype` and `shape`; sub-byte dtypes are packed into whole bytes."""
    return prod(shape) * DTYPE_BITS[dtype] // 8
