"""FP8 and the dtypes of scales as numbers: with numpy only, so that neither an engine nor torch is needed.

Sources: OCP 8-bit Floating Point Specification 1.0 (E4M3, E5M2); the FNUZ variants as in LLVM's APFloat
(`Float8E4M3FNUZ`, `Float8E5M2FNUZ`): a bias larger by one, no infinity, no negative zero, and 0x80 as the only NaN.
"""

from dataclasses import dataclass
from functools import cache
from math import inf, nan
from typing import Any

import numpy as np

from fp8pad.errors import CheckpointError

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class _Format:
    mantissa_bits: int
    bias: int
    is_fnuz: bool = False


_FORMATS = {
    "F8_E4M3": _Format(3, 7),
    "F8_E5M2": _Format(2, 15),
    "F8_E4M3FNUZ": _Format(3, 8, is_fnuz=True),
    "F8_E5M2FNUZ": _Format(2, 16, is_fnuz=True),
}


@cache
def fp8_values(dtype: str) -> Floats:
    """Return the values of the 256 bytes of an FP8 `dtype`, so that `fp8_values(dtype)[data]` decodes `data`."""
    return np.array([_value(byte, dtype) for byte in range(256)])


def _value(byte: int, dtype: str) -> float:
    form = _FORMATS[dtype]
    magnitude = byte & 0x7F
    exponent, mantissa = magnitude >> form.mantissa_bits, magnitude & ((1 << form.mantissa_bits) - 1)
    sign = -1.0 if byte & 0x80 else 1.0
    if form.is_fnuz:
        if byte == 0x80:
            return nan
    elif dtype == "F8_E4M3" and magnitude == 0x7F:
        return nan
    elif dtype == "F8_E5M2" and exponent == 0x1F:
        return nan if mantissa else sign * inf
    significand = mantissa + (1 << form.mantissa_bits if exponent else 0)
    return sign * significand * 2.0 ** (max(exponent, 1) - form.bias - form.mantissa_bits)


def fp8_bytes(dtype: str, values: Floats) -> Bytes:
    """Encode values that FP8 `dtype` represents exactly; raises `ValueError` for others."""
    table = fp8_values(dtype)
    order = np.argsort(table)[: np.count_nonzero(~np.isnan(table))]
    data: Bytes = order[np.searchsorted(table[order], values).clip(max=len(order) - 1)].astype(np.uint8)
    if not np.array_equal(table[data], values):
        raise ValueError(f"values that {dtype} does not hold")
    return data


def scale_values(dtype: str, data: Bytes) -> Floats:
    """Decode the bytes of a scale or a bias; raises `CheckpointError` for an unsupported dtype."""
    if dtype == "BF16":
        return (data.view("<u2").astype("<u4") << 16).view("<f4").astype(np.float64)
    if dtype in ("F16", "F32", "F64"):
        return data.view({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).astype(np.float64)
    if dtype == "F8_E8M0":
        return np.where(data == 255, np.nan, 2.0 ** (data.astype(np.float64) - 127))
    raise CheckpointError(f"dtype {dtype}: expected F32, F16, BF16 or F8_E8M0 for a scale or a bias")
