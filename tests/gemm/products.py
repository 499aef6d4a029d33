"""Sums of products of FP8 bytes, a bounded piece at a time: exact in float64, or as a GPU's tensor cores compute them.

**Why float64 is exact here.** Activations are integers of at most 8 in size. An FP8 weight is a multiple of 2^-17 and
at most 57,344 in size (E5M2FNUZ, the widest; E4M3 is a multiple of 2^-9 and at most 448). So every product, and every
sum of products in any order, is a multiple of 2^-17 and at most K x 458,752 in size: for K up to 2^17 that is at most
2^53 multiples, which float64 represents. In any order that a BLAS chooses, the sum is exact, and zeros add nothing.

**On a GPU.** `torch._scaled_mm` rounds, in an order that depends on the shape. Two forms of a weight that have equal
bytes in equal shapes give equal sums, so the logical form is padded in memory, as by an engine that pads at load.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fp8pad.geometry import round_up
from gemm.float8 import Bytes, Floats, fp8_bytes, fp8_values

MAX_EXACT_K = 2**17
MAX_ACTIVATION = 8
ROWS_AT_A_TIME_BYTES = 2**22  # of FP8; eight times as much once decoded

# FP8 dtypes that CUDA's tensor cores support, with torch's names.
_TORCH_DTYPES = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}

Positions = np.ndarray[Any, np.dtype[np.int64]]
Multiply = Callable[[Floats, Bytes, str], Floats]


@dataclass(frozen=True, slots=True)
class Matrix:
    """An FP8 weight `[N, K]`; `read(begin, end)` returns rows as bytes `[end - begin, K]`."""

    dtype: str
    num_n: int
    num_k: int
    read: Callable[[int, int], Bytes]

    def chunks(self) -> Iterator[tuple[slice, Bytes]]:
        """Yield all rows, in pieces of the same bounded size whatever the form of the matrix."""
        step = max(16, ROWS_AT_A_TIME_BYTES // max(1, self.num_k) // 16 * 16)
        for begin in range(0, self.num_n, step):
            end = min(begin + step, self.num_n)
            yield slice(begin, end), self.read(begin, end)


@dataclass(frozen=True, slots=True)
class Operands:
    """The factors of activations `[M, K]`: a weight, and scales `[N, num_blocks]`, one for every `block_k` columns."""

    weight: Matrix
    scales: Floats
    block_k: int
    bias: Floats


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """A way to multiply: activations `[M, K]`, FP8 bytes `[n, K]` and their dtype give `[M, n]`.

    `takes_any_shape` says that n and K need not be multiples of 16.
    """

    name: str
    takes_any_shape: bool
    multiply: Multiply


def output(operands: Operands, activations: Floats, arithmetic: Arithmetic) -> Floats:
    """Return `activations @ weight.T * scales + bias`, `[M, N]`; blocks of columns are added in order."""
    weight, block_k = operands.weight, operands.block_k
    total = np.zeros((len(activations), weight.num_n))
    for rows, data in weight.chunks():
        for block, begin in enumerate(range(0, weight.num_k, block_k)):
            columns = slice(begin, begin + block_k)
            sums = arithmetic.multiply(activations[:, columns], data[:, columns], weight.dtype)
            total[:, rows] += sums * operands.scales[rows, block]
    return total + operands.bias


def on_disk(path: Path, begin: int, dtype: str, num_n: int, num_k: int) -> Matrix:
    """Return the matrix that is stored row by row in the file `path`, beginning at byte `begin`."""

    def read(first: int, last: int) -> Bytes:
        return np.fromfile(path, np.uint8, (last - first) * num_k, offset=begin + first * num_k).reshape(-1, num_k)

    return Matrix(dtype, num_n, num_k, read)


def padded_in_memory(logical: Operands, like: Operands, rows: Positions, columns: Positions) -> Operands:
    """Return `logical` in the shape of `like`: its rows and columns at the given ascending positions, else zeros."""

    def read(first: int, last: int) -> Bytes:
        begin, end = np.searchsorted(rows, (first, last))
        padded = np.zeros((last - first, like.weight.num_k), np.uint8)
        padded[np.ix_(rows[begin:end] - first, columns)] = logical.weight.read(int(begin), int(end))
        return padded

    weight = Matrix(logical.weight.dtype, like.weight.num_n, like.weight.num_k, read)
    scales, bias = np.ones_like(like.scales), np.zeros_like(like.bias)
    blocks = columns[:: logical.block_k] // like.block_k
    scales[np.ix_(rows, blocks)] = logical.scales
    bias[rows] = logical.bias
    return Operands(weight, scales, like.block_k, bias)


def best_arithmetic(dtypes: frozenset[str]) -> Arithmetic:
    """Return the GPU's arithmetic if a GPU's tensor cores support all of `dtypes`, else the exact one."""
    try:
        import torch
    except ImportError:
        return EXACT
    takes_fp8 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9)
    if not takes_fp8 or not dtypes <= _TORCH_DTYPES.keys():
        return EXACT
    return scaled_mm("cuda")


def scaled_mm(device: str) -> Arithmetic:
    """Return the arithmetic of `torch._scaled_mm` on a torch device: float32 sums, in the order of its kernel."""
    import torch

    one = torch.ones((), device=device)

    def on_device(data: Bytes, dtype: str) -> Any:
        return torch.from_numpy(np.ascontiguousarray(data)).to(device).view(getattr(torch, _TORCH_DTYPES[dtype]))

    def multiply(activations: Floats, weight: Bytes, dtype: str) -> Floats:
        left = on_device(_filled_up(fp8_bytes("F8_E4M3", activations)), "F8_E4M3")  # [M, K]
        right = on_device(_filled_up(weight), dtype).t()  # [K, n], column by column, as tensor cores need it
        sums = torch._scaled_mm(left, right, scale_a=one, scale_b=one, out_dtype=torch.float32)
        return sums[: len(activations), : len(weight)].double().cpu().numpy()  # type: ignore[no-any-return]

    return Arithmetic(f"torch._scaled_mm on {device}", False, multiply)


def _filled_up(data: Bytes) -> Bytes:
    """Append rows and columns of zero bytes up to multiples of 16, if an axis was not padded on disk (experts)."""
    fill = [(0, round_up(size, 16) - size) for size in data.shape]
    return np.pad(data, fill) if any(added for _, added in fill) else data


def _multiply_exactly(activations: Floats, weight: Bytes, dtype: str) -> Floats:
    # In this order a BLAS reads the large matrix row by row; the other order took 40 times as long.
    return (fp8_values(dtype)[weight] @ activations.T).T


EXACT = Arithmetic("exact float64", True, _multiply_exactly)
