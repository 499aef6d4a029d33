"""Dtypes: their sizes, and the bytes of the values that padding fills in."""

import json
import struct
from importlib.metadata import version

import pytest
from helpers import framed
from safetensors import SafetensorError, deserialize

from fp8pad.tensors import DTYPE_BITS, FP8_WEIGHT_DTYPES, ONE_BYTES, ShardHeader, TensorHeader, tensor_bytes


def test_the_bytes_of_one_are_those_of_one() -> None:
    """1.0 in IEEE single and half precision; bfloat16 is the upper half of a single."""
    assert ONE_BYTES["F32"] == struct.pack("<f", 1.0)
    assert ONE_BYTES["F16"] == struct.pack("<e", 1.0)
    assert ONE_BYTES["BF16"] == struct.pack("<f", 1.0)[2:]
    assert 2.0 ** (ONE_BYTES["F8_E8M0"][0] - 127) == 1.0  # only an exponent, without sign or fraction


NEWER_THAN_SAFETENSORS_0_4 = {"F4", "F6_E2M3", "F6_E3M2", "F8_E5M2FNUZ", "F8_E4M3FNUZ", "F8_E8M0", "C64"}


@pytest.mark.parametrize("dtype", DTYPE_BITS)
def test_the_safetensors_library_agrees_on_every_size(dtype: str) -> None:
    """A file with eight elements of each dtype is accepted by the library, and one byte more is not."""
    if dtype in NEWER_THAN_SAFETENSORS_0_4 and tuple(map(int, version("safetensors").split(".")[:2])) < (0, 8):
        pytest.skip("safetensors may not know it before 0.8")
    num_bytes = tensor_bytes(dtype, (2, 4))
    for extra, is_accepted in ((0, True), (1, False)):
        entry = {"dtype": dtype, "shape": [2, 4], "data_offsets": [0, num_bytes + extra]}
        content = framed(json.dumps({"a": entry}).encode()) + bytes(num_bytes + extra)
        if is_accepted:
            assert len(deserialize(content)) == 1  # type: ignore[no-untyped-call]
        else:
            with pytest.raises(SafetensorError):
                deserialize(content)  # type: ignore[no-untyped-call]


def test_scalars_have_one_element_and_empty_tensors_none() -> None:
    """The product of no sizes is one."""
    assert (tensor_bytes("U8", ()), tensor_bytes("U8", (3, 0)), tensor_bytes("U8", (2, 3))) == (1, 0, 6)


def test_weights_take_one_byte_an_element() -> None:
    """Padding relies on this: a column of an FP8 weight is one byte wide."""
    assert {DTYPE_BITS[dtype] for dtype in FP8_WEIGHT_DTYPES} == {8}


def test_headers_know_their_bytes() -> None:
    """A tensor's bytes are between its offsets; a shard has no metadata by default."""
    tensor = TensorHeader("a", "BF16", (3,), 10)
    assert tensor.num_bytes == tensor_bytes("BF16", (3,)) == 6
    assert ShardHeader("x", 100, 84, (tensor,)).metadata is None
