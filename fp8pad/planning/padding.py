"""Settling one FP8 Linear by padding: its alignment, its padded shape, and what that does to each of its tensors."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import lcm

from fp8pad.geometry import padded_shape
from fp8pad.planning.families import Section
from fp8pad.planning.layers import Fp8Linear
from fp8pad.planning.plan import LayerPlan
from fp8pad.planning.tensor_parallel import (
    begins_inside_block,
    is_attention,
    rank_rows,
    rank_shape,
    straddles_gate_and_up,
)
from fp8pad.record import AxisActions, Disposition, PaddedTensor, Policy, Shape
from fp8pad.scales import PerBlock, stored_scale_shapes

# CUTLASS and cuBLASLt want both dimensions of an FP8 matrix in multiples of 16 bytes
# (vllm csrc/quantization/w8a8/cutlass/scaled_mm_entry.cu; cuBLASLt documentation, "FP8 data types").
KERNEL_MULTIPLE = 16


def alignment_of(linear: Fp8Linear, policy: Policy) -> tuple[int, int]:
    """Return the multiples `(n, k)` that a Linear's sizes are to have under a policy, for one rank."""
    granularity = linear.granularity
    block_n, block_k = granularity.block if granularity else (1, 1)
    if policy.alignment == "auto":
        return (block_n, block_k) if isinstance(granularity, PerBlock) else (KERNEL_MULTIPLE, KERNEL_MULTIPLE)
    return lcm(block_n, policy.alignment), lcm(block_k, policy.alignment)


def plan_layer(linear: Fp8Linear, policy: Policy, absorbed: PaddedTensor | None = None, refusal: str = "") -> LayerPlan:
    """Decide what becomes of a Linear; `absorbed` is what absorbing does to its weight, `refusal` why it does not."""
    alignment = alignment_of(linear, policy)
    logical = linear.weight.shape
    config_shape = absorbed.padded_shape if absorbed else logical
    skip_reason = linear.skip_reason
    padded = config_shape if skip_reason else padded_shape(config_shape, alignment)
    axes = _axes(absorbed, config_shape, padded, alignment, is_skipped=skip_reason is not None)
    parts = [_absorbed_reason(logical, config_shape), _own_reason(axes, config_shape, alignment, skip_reason), refusal]
    reason = "; ".join(part for part in parts if part)
    return LayerPlan(linear.name, linear.granularity, logical, padded, alignment, axes, reason, config_shape)


def with_rank_reason(layer: LayerPlan, policy: Policy, sections: Sequence[Section]) -> LayerPlan:
    """Add to a layer's reason what is unaligned on one of a policy's ranks, though not as a whole."""
    broken = _broken_on_rank(layer, policy.tensor_parallel_size, sections)
    if not broken:
        return layer
    return replace(layer, reason=f"{layer.reason}; {' and '.join(broken)}: {_consequence(layer, policy, sections)}")


def runtime_layers(layers: Sequence[LayerPlan], policy: Policy, sections: Sequence[Section]) -> list[LayerPlan]:
    """Return the layers that the runtime must know: padded on disk, or to be padded on a rank at load.

    With a block-scaled one go its siblings: where an engine fuses them, all their places in the grid of scales shift.
    """
    needed = {layer.name for layer in layers if _needs_runtime(layer, policy, sections)}
    fused = {_input(layer) for layer in layers if _has_blocks(layer) and layer.name in needed}
    return [
        layer
        for layer in layers
        if layer.name in needed or (_has_blocks(layer) and "skip" not in _both(layer.axes) and _input(layer) in fused)
    ]


def padded_tensors(linear: Fp8Linear, layer: LayerPlan) -> Iterator[tuple[str, PaddedTensor]]:
    """Yield what the disposition `pad` does to a layer's weight and to its scale, by name, where it does anything."""
    pads = AxisActions(*("pad" if axis == "pad" else "aligned" for axis in _both(layer.axes)))
    if "pad" not in _both(pads):
        return
    (num_n, num_k), (padded_n, padded_k) = layer.logical_shape, layer.padded_shape
    shape = (padded_n if pads.n == "pad" else num_n, padded_k if pads.k == "pad" else num_k)
    yield linear.weight.name, PaddedTensor(layer.logical_shape, shape, 0, pads)
    if linear.scale is not None and (scale_shape := _scale_shape(linear, linear.scale.shape, shape)):
        grows = scale_shape[0] > linear.scale.shape[0], scale_shape[1:] > linear.scale.shape[1:]
        scale_axes = AxisActions(*("pad" if axis_grows else "aligned" for axis_grows in grows))
        yield linear.scale.name, PaddedTensor(linear.scale.shape, scale_shape, 1, scale_axes)


def _both(axes: AxisActions) -> tuple[Disposition, Disposition]:
    return axes.n, axes.k


def _has_blocks(layer: LayerPlan) -> bool:
    return isinstance(layer.granularity, PerBlock)


def _input(layer: LayerPlan) -> tuple[str, int]:
    """What layers have in common that take the same activation."""
    return layer.name.rpartition(".")[0], layer.config_shape[-1]


def _scale_shape(linear: Fp8Linear, shape: Shape, weight_shape: Shape) -> Shape | None:
    """Return the shape of a scale, now `shape`, for a weight padded to `weight_shape`; None if it does not grow."""
    if linear.granularity is None:
        return None
    stored = stored_scale_shapes(linear.granularity, linear.weight.shape).index(shape)
    padded = stored_scale_shapes(linear.granularity, weight_shape)[stored]
    return padded if padded != shape else None


def _axes(
    absorbed: PaddedTensor | None,
    config_shape: tuple[int, ...],
    padded: tuple[int, ...],
    alignment: tuple[int, int],
    is_skipped: bool,
) -> AxisActions:
    if is_skipped and absorbed is None:
        return AxisActions("skip", "skip")
    settled: list[Disposition] = []
    for axis, size, padded_size, multiple in zip("nk", config_shape[-2:], padded[-2:], alignment, strict=True):
        if absorbed and getattr(absorbed.axes, axis) == "absorb":
            settled.append("absorb")
        elif size != padded_size:
            settled.append("pad")
        else:
            settled.append("aligned" if size % multiple == 0 else "skip")
    return AxisActions(*settled)


def _absorbed_reason(logical: tuple[int, ...], config_shape: tuple[int, ...]) -> str:
    sizes = zip(("", "", "N", "K")[-len(logical) :], logical, config_shape, strict=True)
    grown = [f"{axis} = {old} becomes {new}" for axis, old, new in sizes if old != new]
    return f"{' and '.join(grown)} in the config" if grown else ""


def _own_reason(
    axes: AxisActions, config_shape: tuple[int, ...], alignment: tuple[int, int], skip_reason: str | None
) -> str:
    """Why the axes that are not absorbed are settled as they are; nothing where there is nothing left to say."""
    if skip_reason:
        return skip_reason if "skip" in (axes.n, axes.k) else ""
    broken = [
        f"{axis} = {size} is not a multiple of {multiple}"
        for axis, size, multiple in zip("NK", config_shape, alignment, strict=True)
        if size % multiple
    ]
    if broken or "absorb" in (axes.n, axes.k):
        return " and ".join(broken)
    return "N and K are multiples of " + " and ".join(map(str, dict.fromkeys(alignment)))


def _needs_runtime(layer: LayerPlan, policy: Policy, sections: Sequence[Section]) -> bool:
    num_ranks = policy.tensor_parallel_size
    pads_at_load = _broken_on_rank(layer, num_ranks, sections) and not begins_inside_block(layer, num_ranks, sections)
    return "pad" in _both(layer.axes) or bool(pads_at_load)


def _broken_on_rank(layer: LayerPlan, num_ranks: int, sections: Sequence[Section]) -> list[str]:
    if num_ranks == 1 or "skip" in _both(layer.axes):
        return []
    is_inside = begins_inside_block(layer, num_ranks, sections)
    shares = rank_shape(layer, num_ranks, sections)
    shapes = zip("NK", layer.config_shape, shares, layer.block if is_inside else layer.alignment, strict=True)
    broken = [
        f"{axis} = {_split(size, share, num_ranks)} is not a multiple of {multiple}"
        for axis, size, share, multiple in shapes
        if share is not None and share != size and share % multiple
    ]
    if is_inside and not broken:
        return [_broken_rows(layer, rank_rows(layer, num_ranks, sections), layer.block[0], num_ranks)]
    return broken


def _split(size: int, share: int, num_ranks: int) -> str:
    """A rank's share of a size, in words; key-value heads that ranks hold copies of make it more than an even one."""
    return f"{size} / {num_ranks} = {share}" if share * num_ranks == size else f"{share} on each of {num_ranks} ranks"


def _broken_rows(layer: LayerPlan, rows: tuple[int, ...], block: int, num_ranks: int) -> str:
    """Which of a rank's matrices is not whole blocks, though all of them together are, or though it is not split."""
    broken = next(num_n for num_n in rows if num_n % block)
    if len(rows) == 1:
        return f"N = {broken} on each of {num_ranks} ranks is not a multiple of {block}"
    held = f"N = {layer.config_shape[-2]} is {' + '.join(map(str, rows))} on each of {num_ranks} ranks"
    return f"{held}, where {broken} is not a multiple of {block}"


def _consequence(layer: LayerPlan, policy: Policy, sections: Sequence[Section]) -> str:
    num_ranks = policy.tensor_parallel_size
    if not begins_inside_block(layer, num_ranks, sections):
        return "the runtime pads it at load"
    reason = "a rank's share would begin inside a scale block"
    if policy.absorb or is_attention(layer.name) or straddles_gate_and_up(layer):
        return reason
    return f"{reason}; --absorb --tensor-parallel-size {num_ranks}"
