"""Settling one FP8 Linear by padding: its alignment, its padded shape, and what that does to each of its tensors."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import lcm

from fp8pad.geometry import padded_shape
from fp8pad.planning.architectures import Section
from fp8pad.planning.layers import Fp8Linear
from fp8pad.planning.outlook import rank_shape
from fp8pad.planning.plan import LayerPlan
from fp8pad.record import Axes, Disposition, PaddedTensor, Policy

# CUTLASS and cuBLASLt want both dimensions of an FP8 matrix in multiples of 16 bytes
# (vllm csrc/quantization/w8a8/cutlass/scaled_mm_entry.cu; cuBLASLt documentation, "FP8 data types").
KERNEL_MULTIPLE = 16
BLOCK_REASON = "block scales: padded only by --absorb, or by a runtime that knows blocks"


def alignment_of(linear: Fp8Linear, policy: Policy) -> tuple[int, int]:
    """Return the multiples `(n, k)` that a Linear's sizes are to have under a policy, for one rank."""
    if policy.alignment == "auto":
        return linear.block or (KERNEL_MULTIPLE, KERNEL_MULTIPLE)
    block_n, block_k = linear.block or (1, 1)
    return lcm(block_n, policy.alignment), lcm(block_k, policy.alignment)


def settle(linear: Fp8Linear, policy: Policy) -> LayerPlan:
    """Decide how a Linear is padded when nothing of it is absorbed."""
    alignment = alignment_of(linear, policy)
    logical = linear.weight.shape
    skip_reason = linear.skip_reason or (BLOCK_REASON if linear.scheme == "block" else None)
    if skip_reason:
        return LayerPlan(
            linear.name, linear.scheme, logical, logical, alignment, Axes("skip", "skip"), skip_reason, logical
        )
    padded = padded_shape(logical, alignment)
    axes = Axes(_disposition(logical[0], padded[0]), _disposition(logical[1], padded[1]))
    return LayerPlan(linear.name, linear.scheme, logical, padded, alignment, axes, _reason(logical, alignment), logical)


def with_rank_reason(layer: LayerPlan, tensor_parallel_size: int, sections: Sequence[Section]) -> LayerPlan:
    """Add to a layer's reason what is unaligned on one of `tensor_parallel_size` ranks, though not as a whole."""
    broken = _broken_on_rank(layer, tensor_parallel_size, sections)
    if not broken:
        return layer
    return replace(layer, reason=f"{layer.reason}; {' and '.join(broken)}: the runtime pads it at load")


def needs_runtime(layer: LayerPlan, policy: Policy, sections: Sequence[Section]) -> bool:
    """Return whether the runtime must know a layer: it is padded on disk, or unaligned on a rank."""
    on_disk = "pad" in (layer.axes.n, layer.axes.k)
    return on_disk or bool(_broken_on_rank(layer, policy.tensor_parallel_size, sections))


def padded_tensors(linear: Fp8Linear, layer: LayerPlan) -> Iterator[tuple[str, PaddedTensor]]:
    """Yield what a layer's padding does to its weight and to its scale, by name, where it does anything."""
    if layer.padded_shape == layer.logical_shape:
        return
    yield linear.weight.name, PaddedTensor(layer.logical_shape, layer.padded_shape, 0, layer.axes)
    if linear.scale is not None and linear.scheme == "channel" and layer.axes.n == "pad":
        shape = linear.scale.shape
        padded = (layer.padded_shape[0], *shape[1:])
        yield linear.scale.name, PaddedTensor(shape, padded, 1, Axes("pad", "aligned"))


def _disposition(logical_size: int, padded_size: int) -> Disposition:
    return "aligned" if logical_size == padded_size else "pad"


def _broken_on_rank(layer: LayerPlan, num_ranks: int, sections: Sequence[Section]) -> list[str]:
    if num_ranks == 1 or layer.axes.n == "skip":
        return []
    shapes = zip("NK", layer.config_shape, rank_shape(layer, num_ranks, sections), layer.alignment, strict=True)
    return [
        f"{axis} = {size} / {num_ranks} = {share} is not a multiple of {multiple}"
        for axis, size, share, multiple in shapes
        if share is not None and share != size and share % multiple
    ]


def _reason(logical: tuple[int, ...], alignment: tuple[int, int]) -> str:
    broken = [
        f"{axis} = {size} is not a multiple of {multiple}"
        for axis, size, multiple in zip("NK", logical, alignment, strict=True)
        if size % multiple
    ]
    return " and ".join(broken) or "N and K are multiples of " + " and ".join(map(str, dict.fromkeys(alignment)))
