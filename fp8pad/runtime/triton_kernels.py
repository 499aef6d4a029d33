# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803, PLR0917
"""The Triton kernels of `kernels.quantize_and_pad`; the docstrings there say what they compute, and why.

One program handles one row, or one tile of a row. The sizes of a layer are compile-time constants: a model has few of
them, and their common divisors tell the compiler how wide its loads and stores may be.
"""

import triton
import triton.language as tl

FP8_MAX = tl.constexpr(448.0)
SMALLEST_TOKEN_SCALE = tl.constexpr(1.0 / (448.0 * 512.0))


@triton.jit
def _row(ptr, row, stride, ALIGNMENT: tl.constexpr):
    """Return the pointer to a row. ALIGNMENT divides the stride; it tells Triton how wide its accesses may be."""
    return ptr + tl.multiple_of(tl.cast(row, tl.int64) * stride, ALIGNMENT)


@triton.jit
def _load(x_row, begin, ALIGNMENT: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    """Read BLOCK values from column `begin` on, zeros beyond K.

    Triton gives each lane as many adjacent values as one FP8 store writes, 16; lanes that can only load one or two
    values at a time then each touch a different cache line. With the shape `[1, BLOCK]` adjacent lanes load adjacent
    values, which are then exchanged through shared memory (13653 wide, 16384 rows, H100: 279 us instead of 447).
    """
    columns = begin + tl.arange(0, BLOCK)
    if ALIGNMENT < 4:
        columns = columns[None, :]
    return tl.reshape(tl.load(x_row + columns, mask=columns < K, other=0.0), [BLOCK]).to(tl.float32)


@triton.jit
def _store(out_row, begin, quotient, K: tl.constexpr, PADDED_K: tl.constexpr, BLOCK: tl.constexpr):
    """Clamp as vLLM does (min first: it turns NaN into +448), round to FP8, and write; beyond K, write zeros.

    The zeros are set in FP8, not before rounding: otherwise the compiler rounds them once, as a constant, and ptxas
    12.8 then merged another value's bits into the store of two such adjacent results (1025 to 1040, sm_90).
    """
    columns = begin + tl.arange(0, BLOCK)
    clamped = tl.maximum(tl.minimum(quotient, FP8_MAX), -FP8_MAX)
    rounded = clamped.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    x_fp8 = tl.where(columns < K, rounded, 0).to(tl.uint8).to(tl.float8e4nv, bitcast=True)
    tl.store(out_row + columns, x_fp8, mask=columns < PADDED_K)


@triton.jit
def _row_absmax(x_row, ALIGNMENT: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    absmax = tl.zeros([BLOCK], tl.float32)
    for begin in tl.static_range(0, K, BLOCK):
        absmax = tl.maximum(absmax, tl.abs(_load(x_row, begin, ALIGNMENT, K, BLOCK)))
    return tl.max(absmax)


@triton.jit
def _divide(x, scale, LIMITED: tl.constexpr):
    """Return `x / scale` as IEEE 754 rounds it, at the cost of four operations per value.

    One Newton step on `x * (1 / scale)` is enough: over all 2^23 significands of an FP32 scale and all 2^10 of an FP16
    value it never differs from a division (and BF16 has fewer), and it takes less than half the time. If scale is
    infinite, finite values become 0 and infinite ones NaN. Both factors of the last product are written so that -0
    stays -0 (Triton's `-x` is `0 - x`). LIMITED says that scale_ub may be so far below x that the quotient overflows;
    512 is beyond FP8's range, and close enough for the step to end beyond it too.
    """
    reciprocal = tl.div_rn(1.0, scale)
    finite_scale = tl.where(scale == float("inf"), 0.0, scale)
    quotient = x * reciprocal
    if LIMITED:
        quotient = tl.maximum(tl.minimum(quotient, 512.0), -512.0)
    excess = tl.fma(quotient, finite_scale, -x)
    return tl.fma(excess, reciprocal * -1.0, quotient)


@triton.jit
def per_token_kernel(
    x_ptr,
    out_ptr,
    scale_ptr,
    scale_ub_ptr,
    x_stride,
    ALIGNMENT: tl.constexpr,
    K: tl.constexpr,
    PADDED_K: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Quantize one token per program: its absmax, its scale, its quotients and its tail.

    If the row fits into one block, both loops run once and Triton's compiler merges their two equal loads into one.
    """
    row = tl.program_id(0)
    x_row = _row(x_ptr, row, x_stride, ALIGNMENT)
    out_row = _row(out_ptr, row, PADDED_K, 16)
    absmax = _row_absmax(x_row, ALIGNMENT, K, BLOCK)
    if scale_ub_ptr is not None:
        absmax = tl.minimum(absmax, tl.load(scale_ub_ptr))
    scale = tl.maximum(tl.div_rn(absmax, FP8_MAX), SMALLEST_TOKEN_SCALE)
    for begin in tl.static_range(0, PADDED_K, BLOCK):
        quotient = _divide(_load(x_row, begin, ALIGNMENT, K, BLOCK), scale, scale_ub_ptr is not None)
        _store(out_row, begin, quotient, K, PADDED_K, BLOCK)
    tl.store(scale_ptr + row, scale)


@triton.jit(do_not_specialize=["num_rows"])
def maxima_kernel(x_ptr, maxima_ptr, num_rows, x_stride, ALIGNMENT: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    """Find the absmax of every `num_programs`-th row, one result per program."""
    absmax = tl.zeros([], tl.float32)
    for row in range(tl.program_id(0), num_rows, tl.num_programs(0)):
        absmax = tl.maximum(absmax, _row_absmax(_row(x_ptr, row, x_stride, ALIGNMENT), ALIGNMENT, K, BLOCK))
    tl.store(maxima_ptr + tl.program_id(0), absmax)


@triton.jit
def per_tensor_kernel(
    x_ptr,
    out_ptr,
    scale_ptr,
    maxima_ptr,
    x_stride,
    ALIGNMENT: tl.constexpr,
    K: tl.constexpr,
    PADDED_K: tl.constexpr,
    BLOCK: tl.constexpr,
    NUM_MAXIMA: tl.constexpr,
):
    """Quantize one tile of one row per program, with the scale at `scale_ptr`: given, or computed from the maxima."""
    if NUM_MAXIMA:
        scale = tl.div_rn(tl.max(tl.load(maxima_ptr + tl.arange(0, NUM_MAXIMA))), FP8_MAX)
        tl.store(scale_ptr, scale)
    else:
        scale = tl.load(scale_ptr)
    row = tl.program_id(0)
    begin = tl.program_id(1) * BLOCK
    x = _load(_row(x_ptr, row, x_stride, ALIGNMENT), begin, ALIGNMENT, K, BLOCK)
    _store(_row(out_ptr, row, PADDED_K, 16), begin, x * tl.div_rn(1.0, scale), K, PADDED_K, BLOCK)


@triton.jit
def cut_kernel(x_ptr, out_ptr, PADDED_N: tl.constexpr, ALIGNMENT: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr):
    """Copy the first N values of each row of PADDED_N, one tile per program; ALIGNMENT divides N."""
    row = tl.program_id(0)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(_row(x_ptr, row, PADDED_N, 16) + columns, mask=columns < N)
    tl.store(_row(out_ptr, row, N, ALIGNMENT) + columns, values, mask=columns < N)
