"""Quantize an activation to FP8 and pad its K in one launch, byte for byte as vLLM quantizes it; cut an output to N.

`quantize_and_pad(x, padded_k, scale=..., scale_ub=..., per_token=...) -> (x_fp8, x_scale)`; a vLLM layer calls it
through `activations.pad_where_quantized`. Nothing here pads a weight or waits for the device, so a CUDA graph can
capture it; `torch.compile` sees operators with fake implementations.

What vLLM 0.26 to 0.33 computes (its `csrc`, `w8a8/fp8/common.cu`), with absmax over all values that share a scale:

* dynamic, per token: `scale = max(min(absmax, scale_ub) / 448, 1 / (448 * 512))`, and x is *divided* by it;
* dynamic, per tensor: `scale = absmax / 448`, and x is *multiplied by its reciprocal*, even where that is infinite;
* static: the given scale, and x is multiplied by its reciprocal;
* NaN is ignored in absmax, and every NaN, including that of inf / inf, becomes the largest value, +448.
"""

from collections.abc import Callable
from math import gcd
from typing import Any

import torch
import triton

from fp8pad.geometry import num_blocks
from fp8pad.runtime import triton_kernels

# Longer rows are read block by block, and twice: the second time from the cache. Registers for a whole row would leave
# too few programs running (13653 wide, 16384 rows, H100: 263 us in blocks of 8192, 452 us in one block).
LONGEST_BLOCK = 8192
VALUES_PER_WARP = 1024
MOST_WARPS = 8
# A tensor's absmax takes two launches: every program of the second reads all results of the first. With a fixed number
# of results (a power of two), one kernel serves any number of tokens.
NUM_MAXIMA = 512

_library = torch.library.Library("fp8pad", "FRAGMENT")


def quantize_and_pad(
    x: torch.Tensor,
    padded_k: int,
    *,
    scale: torch.Tensor | None = None,
    scale_ub: torch.Tensor | None = None,
    per_token: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `x` `[M, K]`, BF16 or FP16, as FP8 e4m3fn `[M, padded_k]` with a tail of zeros, and its FP32 scale.

    With `scale` (one element, FP32) the quantization is static, and that scale is returned. Otherwise it is dynamic:
    one scale per token, `[M, 1]`, its absmax limited by `scale_ub` (one element, FP32) if given; or, if not
    `per_token`, one for all, `[1]`. Rows of `x` may be strided. `padded_k` is a multiple of 16 and at least K.
    Raises `ValueError` if it is not, or if `x` has another shape or dtype.
    """
    if scale is not None:
        return torch.ops.fp8pad.quantize_static(x, scale, padded_k), scale
    if per_token:
        x_fp8, x_scale = torch.ops.fp8pad.quantize_per_token(x, scale_ub, padded_k)
    else:
        x_fp8, x_scale = torch.ops.fp8pad.quantize_per_tensor(x, padded_k)
    return x_fp8, x_scale


def _operator(schema: str, fake: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function as `torch.ops.fp8pad.<schema>`, for any device that Triton compiles for."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        name = _library.define(schema)
        _library.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"fp8pad::{name}", fake, lib=_library)
        return function

    return register


def _empty_fp8(x: torch.Tensor, padded_k: int) -> torch.Tensor:
    return x.new_empty((x.shape[0], padded_k), dtype=torch.float8_e4m3fn)


def _empty_scale(x: torch.Tensor, *shape: int) -> torch.Tensor:
    return x.new_empty(shape, dtype=torch.float32)


@_operator(
    "quantize_per_token(Tensor x, Tensor? scale_ub, int padded_k) -> (Tensor, Tensor)",
    fake=lambda x, _, padded_k: (_empty_fp8(x, padded_k), _empty_scale(x, x.shape[0], 1)),
)
def _quantize_per_token(
    x: torch.Tensor, scale_ub: torch.Tensor | None, padded_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    x = _checked_rows(x, padded_k)
    x_fp8, scale = _empty_fp8(x, padded_k), _empty_scale(x, x.shape[0], 1)
    if x.shape[0]:
        block = _block(padded_k)
        triton_kernels.per_token_kernel[(x.shape[0],)](
            x, x_fp8, scale, scale_ub, *_layout(x), padded_k, block, num_warps=_num_warps(block)
        )
    return x_fp8, scale


@_operator(
    "quantize_static(Tensor x, Tensor scale, int padded_k) -> Tensor",
    fake=lambda x, _, padded_k: _empty_fp8(x, padded_k),
)
def _quantize_static(x: torch.Tensor, scale: torch.Tensor, padded_k: int) -> torch.Tensor:
    x = _checked_rows(x, padded_k)
    x_fp8 = _empty_fp8(x, padded_k)
    _quantize_tiles(x, x_fp8, scale, maxima=None)
    return x_fp8


@_operator(
    "quantize_per_tensor(Tensor x, int padded_k) -> (Tensor, Tensor)",
    fake=lambda x, padded_k: (_empty_fp8(x, padded_k), _empty_scale(x, 1)),
)
def _quantize_per_tensor(x: torch.Tensor, padded_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = _checked_rows(x, padded_k)
    x_fp8, scale = _empty_fp8(x, padded_k), _empty_scale(x, 1)
    if not x.shape[0]:
        return x_fp8, scale.zero_()
    maxima = _empty_scale(x, NUM_MAXIMA)
    block = _block(x.shape[1])
    triton_kernels.maxima_kernel[maxima.shape](x, maxima, x.shape[0], *_layout(x), block, num_warps=_num_warps(block))
    _quantize_tiles(x, x_fp8, scale, maxima)
    return x_fp8, scale


def cut_columns(x: torch.Tensor, n: int) -> torch.Tensor:
    """Return the first `n` columns of `x` `[M, padded_n]` as a contiguous tensor, fastest if 16 divides `padded_n`.

    torch's own copy of such a slice moves single values: it takes 1.6 times as long (6840 of 6848, H100).
    """
    if not x.is_contiguous() or x.shape[1] % 16:
        return x[:, :n].clone(memory_format=torch.contiguous_format)
    out = x.new_empty((x.shape[0], n))
    if x.shape[0]:
        tile = _block(n)
        triton_kernels.cut_kernel[(x.shape[0], num_blocks(n, tile))](
            x, out, x.shape[1], gcd(n, 16), n, tile, num_warps=_num_warps(tile)
        )
    return out


def _quantize_tiles(x: torch.Tensor, x_fp8: torch.Tensor, scale: torch.Tensor, maxima: torch.Tensor | None) -> None:
    if not x.shape[0]:
        return
    padded_k = x_fp8.shape[1]
    tile = _block(padded_k)
    num_maxima = 0 if maxima is None else maxima.numel()
    triton_kernels.per_tensor_kernel[(x.shape[0], num_blocks(padded_k, tile))](
        x, x_fp8, scale, maxima, *_layout(x), padded_k, tile, num_maxima, num_warps=_num_warps(tile)
    )


def _checked_rows(x: torch.Tensor, padded_k: int) -> torch.Tensor:
    """Return `x` with the values of each row contiguous, as vLLM's activations already are."""
    if x.dim() != 2 or x.dtype not in (torch.bfloat16, torch.float16):
        raise ValueError(f"activation: expected [M, K] of BF16 or FP16, got {list(x.shape)} of {x.dtype}")
    if padded_k < x.shape[1] or padded_k % 16:
        raise ValueError(f"padded K: expected a multiple of 16, at least {x.shape[1]}, got {padded_k}")
    return x if x.stride(1) == 1 else x.contiguous()


def _layout(x: torch.Tensor) -> tuple[int, int, int]:
    """Return the row stride, a power of two that divides it, and K."""
    return x.stride(0), gcd(x.stride(0), 16), x.shape[1]


def _block(size: int) -> int:
    return int(min(triton.next_power_of_2(size), LONGEST_BLOCK))


def _num_warps(block: int) -> int:
    return min(max(block // VALUES_PER_WARP, 1), MOST_WARPS)
