# mypy: disable-error-code="untyped-decorator"
"""Quantize an activation to FP8 and pad its K in one launch, byte for byte as vLLM quantizes it; cut an output to N.

`quantize_and_pad(x, padded_k, scale=..., scale_ub=..., per_token=...) -> (x_fp8, x_scale)`; a vLLM layer calls it
through `activations.pad_where_quantized`. Nothing here pads a weight or waits for the device, so a CUDA graph can
capture it; `torch.compile` traces into the operators, so that compiled code launches their kernels itself.

What vLLM 0.26 to 0.33 computes (its `csrc`, `w8a8/fp8/common.cu`), with absmax over all values that share a scale:

* dynamic, per token: `scale = max(min(absmax, scale_ub) / 448, 1 / (448 * 512))`, and x is *divided* by it;
* dynamic, per tensor: `scale = absmax / 448`, and x is *multiplied by its reciprocal*, even where that is infinite;
* static: the given scale, and x is multiplied by its reciprocal;
* NaN is ignored in absmax, and every NaN, including that of inf / inf, becomes the largest value, +448.
"""

from math import gcd

import torch
import triton
from torch.library import triton_op, wrap_triton

from fp8pad.geometry import num_blocks
from fp8pad.runtime.triton_kernels import cut_kernel, maxima_kernel, per_tensor_kernel, per_token_kernel

# Longer rows are read block by block, and twice: the second time from the cache. Registers for a whole row would leave
# too few programs running (13653 wide, 16384 rows, H100: 263 us in blocks of 8192, 452 us in one block).
LONGEST_BLOCK = 8192
VALUES_PER_WARP = 1024
MOST_WARPS = 8
# A tensor's absmax takes two launches: every program of the second reads all results of the first. With a fixed number
# of results (a power of two), one kernel serves any number of tokens.
NUM_MAXIMA = 512


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
    `per_token`, one for all, `[1]`, not set if M is 0. Rows of `x` may be strided. `padded_k` is a multiple of 16 and
    at least K. Raises `ValueError` if it is not, or if `x` has another shape or dtype.
    """
    if scale is not None:
        return torch.ops.fp8pad.quantize_static(x, scale, padded_k), scale
    if per_token:
        x_fp8, x_scale = torch.ops.fp8pad.quantize_per_token(x, scale_ub, padded_k)
    else:
        x_fp8, x_scale = torch.ops.fp8pad.quantize_per_tensor(x, padded_k)
    return x_fp8, x_scale


@triton_op("fp8pad::quantize_per_token", mutates_args=())
def _quantize_per_token(
    x: torch.Tensor, scale_ub: torch.Tensor | None, padded_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    x = _checked_rows(x, padded_k)
    x_fp8, scale = _empty_fp8(x, padded_k), _empty_scale(x, x.shape[0], 1)
    block = _block(padded_k)
    wrap_triton(per_token_kernel)[x.shape[0],](
        x, x_fp8, scale, scale_ub, *_layout(x), padded_k, block, num_warps=_num_warps(block)
    )
    return x_fp8, scale


@triton_op("fp8pad::quantize_static", mutates_args=())
def _quantize_static(x: torch.Tensor, scale: torch.Tensor, padded_k: int) -> torch.Tensor:
    x = _checked_rows(x, padded_k)
    x_fp8, tile = _empty_fp8(x, padded_k), _block(padded_k)
    wrap_triton(per_tensor_kernel)[x.shape[0], num_blocks(padded_k, tile)](
        x, x_fp8, scale, None, *_layout(x), padded_k, tile, 0, num_warps=_num_warps(tile)
    )
    return x_fp8


@triton_op("fp8pad::quantize_per_tensor", mutates_args=())
def _quantize_per_tensor(x: torch.Tensor, padded_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    x = _checked_rows(x, padded_k)
    x_fp8, scale, maxima = _empty_fp8(x, padded_k), _empty_scale(x, 1), _empty_scale(x, NUM_MAXIMA)
    block, tile = _block(x.shape[1]), _block(padded_k)
    wrap_triton(maxima_kernel)[NUM_MAXIMA,](x, maxima, x.shape[0], *_layout(x), block, num_warps=_num_warps(block))
    wrap_triton(per_tensor_kernel)[x.shape[0], num_blocks(padded_k, tile)](
        x, x_fp8, scale, maxima, *_layout(x), padded_k, tile, NUM_MAXIMA, num_warps=_num_warps(tile)
    )
    return x_fp8, scale


def _empty_fp8(x: torch.Tensor, padded_k: int) -> torch.Tensor:
    return x.new_empty((x.shape[0], padded_k), dtype=torch.float8_e4m3fn)


def _empty_scale(x: torch.Tensor, *shape: int) -> torch.Tensor:
    return x.new_empty(shape, dtype=torch.float32)


def cut_columns(x: torch.Tensor, n: int) -> torch.Tensor:
    """Return the first `n` columns of `x` `[M, padded_n]` as a contiguous tensor, fastest if 16 divides `padded_n`.

    torch's own copy of such a slice moves single values: it takes 1.6 times as long (6840 of 6848, H100).
    """
    if not x.is_contiguous() or x.shape[1] % 16:
        return x[:, :n].clone(memory_format=torch.contiguous_format)
    out, tile = x.new_empty((x.shape[0], n)), _block(n)
    cut_kernel[x.shape[0], num_blocks(n, tile)](x, out, x.shape[1], gcd(n, 16), n, tile, num_warps=_num_warps(tile))
    return out


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
