"""The multiples that the sizes of a Linear must have on one rank."""

from collections.abc import Mapping
from math import lcm

from fp8pad.planning.linear import Fp8Linear
from fp8pad.record import Alignment, Policy
from fp8pad.scales import PerBlock

# CUTLASS and cuBLASLt require both dimensions of an FP8 matrix to be multiples of 16 bytes
# (vllm csrc/quantization/w8a8/cutlass/scaled_mm_entry.cu; cuBLASLt documentation, "FP8 data types").
KERNEL_MULTIPLE = 16

# What some kernels require of N and K, read in vLLM 0.33 (vllm/model_executor/layers/quantization/utils/marlin_utils.py
# `marlin_padded_nk`; vllm/model_executor/kernels/linear/scaled_mm/b12x.py `can_implement`; vllm/utils/deep_gemm.py
# `should_use_deepgemm_for_fp8_linear`).
KERNEL_MULTIPLES: Mapping[Alignment, tuple[int, int]] = {
    "marlin": (64, 128),
    "sm120": (128, 128),
    "deepgemm": (64, 128),
}


def alignment_of(linear: Fp8Linear, policy: Policy) -> tuple[int, int]:
    """Return the multiples `(n, k)` that a Linear's sizes must have on one rank under a policy."""
    granularity = linear.granularity
    block_n, block_k = granularity.block if granularity else (1, 1)
    if policy.alignment == "auto":
        return (block_n, block_k) if isinstance(granularity, PerBlock) else (KERNEL_MULTIPLE, KERNEL_MULTIPLE)
    asked = policy.alignment
    multiple_n, multiple_k = (asked, asked) if isinstance(asked, int) else KERNEL_MULTIPLES[asked]
    return lcm(block_n, multiple_n), lcm(block_k, multiple_k)
