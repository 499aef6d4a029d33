"""Padding one FP8 Linear: its alignment, its padded shape, and what that does to each of its tensors."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import lcm
from typing import Literal

from fp8pad.geometry import padded_shape
from fp8pad.planning.layers import Fp8Linear
from fp8pad.planning.plan import LayerPlan
from fp8pad.planning.reasons import reason_of
from fp8pad.planning.stacks import in_order
from fp8pad.planning.tensor_parallel import COLUMN, Sharding
from fp8pad.record import Alignment, AxisActions, Disposition, PaddedTensor, Policy, Shape
from fp8pad.scales import PerBlock, stored_scale_shapes

# CUTLASS and cuBLASLt want both dimensions of an FP8 matrix in multiples of 16 bytes
# (vllm csrc/quantization/w8a8/cutlass/scaled_mm_entry.cu; cuBLASLt documentation, "FP8 data types").
KERNEL_MULTIPLE = 16

# What some kernels want of N and of K, read in vLLM 0.33 (vllm/model_executor/layers/quantization/utils/marlin_utils.py
# `marlin_padded_nk`; vllm/model_executor/kernels/linear/scaled_mm/b12x.py `can_implement`; vllm/utils/deep_gemm.py
# `should_use_deepgemm_for_fp8_linear`).
KERNEL_MULTIPLES: Mapping[Alignment, tuple[int, int]] = {
    "marlin": (64, 128),
    "sm120": (128, 128),
    "deepgemm": (64, 128),
}


def alignment_of(linear: Fp8Linear, policy: Policy) -> tuple[int, int]:
    """Return the multiples `(n, k)` that a Linear's sizes are to have under a policy, for one rank."""
    granularity = linear.granularity
    block_n, block_k = granularity.block if granularity else (1, 1)
    if policy.alignment == "auto":
        return (block_n, block_k) if isinstance(granularity, PerBlock) else (KERNEL_MULTIPLE, KERNEL_MULTIPLE)
    multiple_n, multiple_k = _multiples(policy.alignment)
    return lcm(block_n, multiple_n), lcm(block_k, multiple_k)


def _multiples(alignment: Alignment) -> tuple[int, int]:
    return (alignment, alignment) if isinstance(alignment, int) else KERNEL_MULTIPLES[alignment]


class LayerPlanner:
    """Decides what becomes of Linears; those that are alike in all but their names are worked out once."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._known: dict[tuple[object, ...], LayerPlan] = {}

    def plan(
        self,
        linear: Fp8Linear,
        sharding: Sharding = COLUMN,
        absorbed: PaddedTensor | None = None,
        refusal: str = "",
        inner: Literal["n", "k"] | None = None,
    ) -> LayerPlan:
        """Return the plan of one Linear.

        `absorbed` is what absorbing does to its weight, `refusal` why it does not. `inner` is the axis that lies inside
        an MLP, if one does.
        """
        config_shape = absorbed.padded_shape if absorbed else None
        key = (*linear.kind, sharding, config_shape, refusal, inner)
        if key not in self._known:
            self._known[key] = _plan_layer(linear, self._policy, sharding, absorbed, refusal=refusal, inner=inner)
        return replace(self._known[key], name=linear.name)


def _plan_layer(
    linear: Fp8Linear,
    policy: Policy,
    sharding: Sharding,
    absorbed: PaddedTensor | None,
    *,
    refusal: str,
    inner: Literal["n", "k"] | None,
) -> LayerPlan:
    alignment = alignment_of(linear, policy)
    config_shape = in_order(absorbed.padded_shape, linear.order) if absorbed else linear.shape
    is_skipped = linear.skip_reason is not None
    padded = config_shape if is_skipped else padded_shape(config_shape, alignment)
    is_left = is_skipped and not (linear.is_expert and linear.granularity)
    axes = _axes(linear.shape, config_shape, padded, alignment, is_left)
    layer = LayerPlan(
        name=linear.name,
        granularity=linear.granularity,
        logical_shape=linear.shape,
        padded_shape=padded,
        alignment=alignment,
        axes=axes,
        reason="",
        config_shape=config_shape,
        sharding=sharding,
        inner=inner,
        is_expert=linear.is_expert,
        is_understood=linear.is_understood or absorbed is not None,
    )
    layer = replace(layer, rank_fit=layer.fit_at(policy.tensor_parallel_size))
    return replace(layer, reason=reason_of(layer, policy.tensor_parallel_size, linear.skip_reason, refusal))


def runtime_layers(layers: Sequence[LayerPlan]) -> list[LayerPlan]:
    """Return the layers that the runtime must know: padded on disk, or to be padded on a rank at load.

    With a block-scaled one go its siblings: where an engine fuses them, all their places in the grid of scales shift.
    """
    needed = {layer.name for layer in layers if layer.is_padded_at_load or "pad" in layer.axes.both}
    fused = {_input(layer) for layer in layers if _has_blocks(layer) and layer.name in needed}
    return [
        layer
        for layer in layers
        if layer.name in needed or (_has_blocks(layer) and layer.is_for_runtime and _input(layer) in fused)
    ]


def padded_tensors(linear: Fp8Linear, layer: LayerPlan) -> Iterator[tuple[str, PaddedTensor]]:
    """Yield what the disposition `pad` does to a layer's weight and to its scale, by name, where it does anything."""
    pads = AxisActions(*("pad" if axis == "pad" else "aligned" for axis in layer.axes.both))
    if "pad" not in pads.both:
        return
    (num_n, num_k), (padded_n, padded_k) = layer.logical_shape, layer.padded_shape
    shape = (padded_n if pads.n == "pad" else num_n, padded_k if pads.k == "pad" else num_k)
    yield linear.weight.name, PaddedTensor(layer.logical_shape, shape, 0, pads)
    if linear.scale is not None and (scale_shape := _scale_shape(linear, linear.scale.shape, shape)):
        grows = scale_shape[0] > linear.scale.shape[0], scale_shape[1:] > linear.scale.shape[1:]
        scale_axes = AxisActions(*("pad" if axis_grows else "aligned" for axis_grows in grows))
        yield linear.scale.name, PaddedTensor(linear.scale.shape, scale_shape, 1, scale_axes)


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
    logical: tuple[int, ...],
    config_shape: tuple[int, ...],
    padded: tuple[int, ...],
    alignment: tuple[int, int],
    is_left: bool,
) -> AxisActions:
    if is_left and config_shape == logical:
        return AxisActions("skip", "skip")
    actions: list[Disposition] = []
    for old, size, padded_size, multiple in zip(logical[-2:], config_shape[-2:], padded[-2:], alignment, strict=True):
        if size != old:
            actions.append("absorb")
        elif size != padded_size:
            actions.append("pad")
        else:
            actions.append("aligned" if size % multiple == 0 else "skip")
    return AxisActions(*actions)
