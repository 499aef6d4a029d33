"""What one scale of an FP8 weight `[N, K]` belongs to: the whole weight, an output channel, or a block.

Each granularity has a `name`, the `scale_shape` of a weight, and a `block`: the sizes `(n, k)` that no split may cut,
`(1, 1)` where a weight may be split anywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from fp8pad.geometry import num_blocks

GranularityName = Literal["tensor", "channel", "block"]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for the whole weight."""

    name: ClassVar[GranularityName] = "tensor"
    block: ClassVar[tuple[int, int]] = (1, 1)

    def scale_shape(self, weight_shape: Sequence[int]) -> tuple[int, ...]:  # noqa: ARG002 (same for all granularities)
        """Return the shape of a scalar."""
        return ()


@dataclass(frozen=True, slots=True)
class PerChannel:
    """One scale for each of the N output channels, the rows of a weight."""

    name: ClassVar[GranularityName] = "channel"
    block: ClassVar[tuple[int, int]] = (1, 1)

    def scale_shape(self, weight_shape: Sequence[int]) -> tuple[int, ...]:
        """Return `(N, 1)`."""
        return weight_shape[0], 1


@dataclass(frozen=True, slots=True)
class PerBlock:
    """One scale for each block of `n` rows and `k` columns; the last blocks may be partial."""

    name: ClassVar[GranularityName] = "block"
    n: int
    k: int

    @property
    def block(self) -> tuple[int, int]:
        """The block's sizes, `(n, k)`."""
        return self.n, self.k

    def scale_shape(self, weight_shape: Sequence[int]) -> tuple[int, ...]:
        """Return the number of blocks along N and along K."""
        return num_blocks(weight_shape[0], self.n), num_blocks(weight_shape[1], self.k)


Granularity = PerTensor | PerChannel | PerBlock


# The order of the last two axes of a stored weight, which may be a stack: `[N, K]` or `[K, N]`.
Order = Literal["nk", "kn"]


def in_order(shape: Shape, order: Order) -> Shape:
    """Return a stored shape with N before K; an order applied twice gives the stored shape back."""
    return (*shape[:-2], shape[-1], shape[-2]) if order == "kn" else shape


def stored_scale_shapes(granularity: Granularity, weight_shape: Shape, order: Order = "nk") -> tuple[Shape, ...]:
    """Return the shapes in which tools store the scales of a weight, or of a stack of them; the usual one first.

    `weight_shape` is the stored shape; `order` counts for a stack only. A grid `[R, 1, C, 1]` is NVIDIA ModelOpt's. Two
    of the shapes may be equal only if they stay so when the weight is resized: `resized_scale` tells them apart by it.
    """
    if len(weight_shape) == 3:
        return _stacked_scale_shapes(granularity, weight_shape, order)
    usual = granularity.scale_shape(weight_shape)
    match granularity:
        case PerTensor():
            return usual, (1,), (1, 1)
        case PerChannel():
            return usual, usual[:1]
        case PerBlock():
            return usual, (usual[0], 1, usual[1], 1)


def _stacked_scale_shapes(granularity: Granularity, weight_shape: Shape, order: Order) -> tuple[Shape, ...]:
    """Return the shapes for stacked experts: `num_experts` comes before the shape of one expert's scales."""
    num_experts, *matrix = in_order(weight_shape, order)
    match granularity:
        case PerTensor():
            return (), (1,), (num_experts,), (num_experts, 1), (num_experts, 1, 1)
        case PerChannel():
            return (num_experts, matrix[0]), (num_experts, matrix[0], 1), (num_experts, 1, matrix[0])
        case PerBlock():
            return (in_order((num_experts, *granularity.scale_shape(matrix)), order),)


def resized_scale(
    granularity: Granularity, scale_shape: Shape, weight_shape: Shape, resized: Shape, order: Order = "nk"
) -> Shape:
    """Return the shape of a scale after its weight is `resized`, in the layout in which it is stored."""
    stored = stored_scale_shapes(granularity, weight_shape, order).index(scale_shape)
    return stored_scale_shapes(granularity, resized, order)[stored]
