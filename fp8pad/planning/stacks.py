"""Experts stacked in one weight, `[num_experts, N, K]` or `[num_experts, K, N]`, and the scales of each of them."""

from collections.abc import Sequence
from typing import Literal

from fp8pad.scales import Granularity, PerBlock, PerChannel, PerTensor

Order = Literal["nk", "kn"]
Shape = tuple[int, ...]


def in_order(shape: Shape, order: Order) -> Shape:
    """Return a stored shape with N before K; an order applied twice gives the stored shape back."""
    return shape if order == "nk" else (*shape[:-2], shape[-1], shape[-2])


def stacked_granularity(
    weight_shape: Shape, scale_shape: Shape, order: Order, allowed: Sequence[Granularity]
) -> Granularity | None:
    """Return the granularity of those that a config allows in which a stack is scaled; None if it is none of them."""
    return next((kind for kind in allowed if scale_shape in _scale_shapes(kind, weight_shape, order)), None)


def _scale_shapes(granularity: Granularity, weight_shape: Shape, order: Order) -> tuple[Shape, ...]:
    """The shapes in which tools store the scales of a stack: of all experts together, in front of those of one."""
    num_experts, *matrix = in_order(weight_shape, order)
    match granularity:
        case PerTensor():
            return (), (1,), (num_experts,), (num_experts, 1), (num_experts, 1, 1)
        case PerChannel():
            return (num_experts, matrix[0]), (num_experts, matrix[0], 1), (num_experts, 1, matrix[0])
        case PerBlock():
            return (in_order((num_experts, *granularity.scale_shape(matrix)), order),)
