"""Padding FP8 Linears: their padded shapes, and how each of their tensors changes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from fp8pad.geometry import padded_shape
from fp8pad.padded import Axis, AxisActions, Disposition, PaddedTensor, Shape
from fp8pad.planning.absorb.absorption import Absorption
from fp8pad.planning.alignment import alignment_of
from fp8pad.planning.linear import Fp8Linear, Layer, LayerPlan
from fp8pad.planning.reasons import reason_of
from fp8pad.planning.sharding import Sharding
from fp8pad.record import Policy
from fp8pad.scales import PerBlock, in_order, resized_scale
from fp8pad.tensors import tensor_bytes


def plan_layers(
    linears: Sequence[Fp8Linear],
    policy: Policy,
    shardings: Mapping[str, Sharding],
    absorption: Absorption,
    inner: Mapping[str, Axis],
) -> Iterator[Layer]:
    """Yield the plan of each Linear; Linears that differ only in their names share one.

    `inner` are the axes that are inside an MLP.
    """
    known: dict[tuple[object, ...], LayerPlan] = {}
    for linear in linears:
        absorbed = absorption.tensors.get(linear.weight.name)
        config_shape = in_order(absorbed.padded_shape, linear.order) if absorbed else linear.shape
        refusal = absorption.refused.get(linear.name, "")
        how, inner_axis = shardings[linear.name], inner.get(linear.name)
        kind = linear.kind, linear.scale and linear.scale.dtype, how, config_shape, refusal, inner_axis
        if kind not in known:
            known[kind] = _plan_layer(linear, policy, how, config_shape, refusal=refusal, inner=inner_axis)
        yield Layer(linear.name, known[kind])


def _plan_layer(
    linear: Fp8Linear,
    policy: Policy,
    sharding: Sharding,
    config_shape: tuple[int, ...],
    *,
    refusal: str,
    inner: Axis | None,
) -> LayerPlan:
    alignment = alignment_of(linear, policy)
    is_skipped = linear.skip_reason is not None
    padded = config_shape if is_skipped else padded_shape(config_shape, alignment)
    is_left = is_skipped and not (linear.is_expert and linear.granularity)
    axes = _axes(linear.shape, config_shape, padded, alignment, is_left)
    layer = LayerPlan(
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
        is_understood=linear.is_understood or config_shape != linear.shape,
        scale_bytes=tensor_bytes(linear.scale.dtype, (1,)) if linear.scale else 0,
    )
    layer = replace(layer, rank_fit=layer.fit_at(policy.tensor_parallel_size))
    return replace(layer, reason=reason_of(layer, policy.tensor_parallel_size, linear.skip_reason, refusal))


def runtime_layers(layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers that the runtime must know: padded on disk, or to be padded on a rank at load.

    A block-scaled one brings its siblings: if an engine fuses them, the positions of all in the grid of scales shift.
    """
    needed = {name for name, layer in layers if layer.is_padded_at_load or layer.is_padded}
    fused = {_input(name, layer) for name, layer in layers if _has_blocks(layer) and name in needed}
    return [
        Layer(name, layer)
        for name, layer in layers
        if name in needed or (_has_blocks(layer) and layer.is_for_runtime and _input(name, layer) in fused)
    ]


def padded_tensors(linear: Fp8Linear, layer: LayerPlan) -> Iterator[tuple[str, PaddedTensor]]:
    """Yield how the disposition `pad` changes a layer's weight and its scale, by name, if it changes them."""
    if not layer.is_padded:
        return
    sizes = zip(layer.axes.both, layer.logical_shape, layer.padded_shape, strict=True)
    shape = tuple(padded if done == "pad" else logical for done, logical, padded in sizes)
    yield linear.weight.name, _padded(layer.logical_shape, shape, 0)
    if linear.scale is None or linear.granularity is None:
        return
    old = linear.scale.shape
    new = resized_scale(linear.granularity, old, linear.weight.shape, shape)
    if new != old:
        yield linear.scale.name, _padded(old, new, 1)


def _padded(old: Shape, new: Shape, fill: Literal[0, 1]) -> PaddedTensor:
    return PaddedTensor(old, new, fill, AxisActions.where_larger("pad", old, new))


def _has_blocks(layer: LayerPlan) -> bool:
    return isinstance(layer.granularity, PerBlock)


def _input(name: str, layer: LayerPlan) -> tuple[str, int]:
    """Return what layers with the same input have in common: the parent module and K."""
    return name.rpartition(".")[0], layer.config_shape[-1]


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
