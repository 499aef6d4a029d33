"""One FP8 Linear: as it is recognised in a checkpoint, and what is planned for it."""

from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from fp8pad.geometry import is_aligned, padded_shape
from fp8pad.padded import Axis, AxisActions
from fp8pad.planning.sharding import COLUMN, Fit, RankPart, Shape, Sharding
from fp8pad.scales import Granularity, Order, in_order
from fp8pad.tensors import TensorHeader

ROTATED = "the model rotates activations while it runs (transform_config)"


class Fp8Linear(NamedTuple):
    """An FP8 weight `[N, K]`, or a stack of them, with its scale.

    `granularity` is None if fp8pad does not pad the layout of its scales. `skip_reason` is set if it must not be padded
    on its own; `is_understood` is False if that is because fp8pad cannot tell what it is. `is_expert` marks routed
    experts. Experts stacked in one weight have an extra first dimension. A weight may be stored in the `order` K, N.
    """

    name: str
    weight: TensorHeader
    scale: TensorHeader | None
    granularity: Granularity | None
    skip_reason: str | None = None
    is_understood: bool = True
    is_expert: bool = False
    order: Order = "nk"

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape as `[N, K]` or `[num_experts, N, K]`, whatever the order in which it is stored."""
        return self.weight.shape if self.order == "nk" else in_order(self.weight.shape, self.order)

    @property
    def kind(self) -> tuple[object, ...]:
        """Everything but the names: Linears of one kind are treated in the same way."""
        return self.shape, self.granularity, self.skip_reason, self.is_understood, self.is_expert, self.order


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What is planned for FP8 Linears that differ only in their names; shapes are `[N, K]`.

    `granularity` is None if fp8pad does not pad the layout of its scales. `reason` is a sentence for the user, never
    empty. `config_shape` is the logical shape that the *edited* config asks for: it differs from `logical_shape` if an
    axis is absorbed.
    `sharding` says how ranks divide it, `rank_fit` how the parts at the policy's tensor-parallel size fit.
    `is_expert` marks routed experts, which the runtime does not handle; `inner` is the axis that is inside an MLP, if
    any. `is_understood` is False if it is carried because fp8pad cannot tell what it is. `scale_bytes` is the size of
    one of its scales.
    """

    granularity: Granularity | None
    logical_shape: tuple[int, ...]
    padded_shape: tuple[int, ...]
    alignment: tuple[int, int]
    axes: AxisActions
    reason: str
    config_shape: tuple[int, ...]
    sharding: Sharding = COLUMN
    rank_fit: Fit = "aligned"
    is_expert: bool = False
    inner: Axis | None = None
    is_understood: bool = True
    scale_bytes: int = 0

    @property
    def block(self) -> Shape:
        """The sizes `(n, k)` of a scale block, which no split may cut; `(1, 1)` if there are no blocks."""
        return self.granularity.block if self.granularity else (1, 1)

    @property
    def matrix_shape(self) -> Shape:
        """The `(N, K)` that the edited config asks for; of one matrix, if several are stacked."""
        return self.config_shape[-2], self.config_shape[-1]

    @property
    def is_absorbed(self) -> bool:
        """Whether the edited config asks for another size."""
        return self.axes.is_absorbed

    @property
    def is_padded(self) -> bool:
        """Whether it is larger on disk than the edited config asks for."""
        return self.axes.is_padded

    @property
    def is_skipped(self) -> bool:
        """Whether an axis is left as it is, aligned or not."""
        return "skip" in self.axes.both

    @property
    def is_for_runtime(self) -> bool:
        """Whether the runtime handles the layer, if the checkpoint asks for the runtime at all."""
        return not (self.is_expert or self.is_skipped)

    @property
    def is_padded_at_load(self) -> bool:
        """Whether the runtime pads a rank's part of the layer, at the policy's tensor-parallel size."""
        return self.rank_fit == "unaligned" and self.is_for_runtime

    def bytes_at(self, shape: Shape) -> int:
        """Return the bytes of weight and scales on disk if each matrix is `(N, K)`."""
        num_scales = prod(self.granularity.scale_shape(shape)) if self.granularity else 0
        return prod(self.logical_shape[:-2]) * (prod(shape) + num_scales * self.scale_bytes)

    def part(self, num_ranks: int) -> RankPart:
        """Return what one of `num_ranks` ranks holds of the layer."""
        return self.sharding.part(self.matrix_shape, num_ranks)

    def fit_at(self, num_ranks: int, shape: Shape | None = None) -> Fit:
        """Return how the parts of `num_ranks` ranks fit; "not assessed" if the scales are not understood.

        `shape` is the `(N, K)` that is divided, by default `matrix_shape`.
        """
        if self.granularity is None:
            return "not assessed"
        shape = shape or self.matrix_shape
        fit = self.sharding.fit(shape, self.block, self.alignment, num_ranks)
        return "unaligned" if fit == "inside block" and self._may_begin_inside_block(shape[0]) else fit

    def pads(self, shape: Shape, num_ranks: int) -> bool:
        """Return whether converting pads the layer if it is `(N, K)`, on disk or on a rank at load."""
        if not self.is_for_runtime:
            return False
        return not is_aligned(shape, self.alignment) or self.fit_at(num_ranks, shape) == "unaligned"

    def aligned(self, shape: Shape) -> Shape:
        """Return `(N, K)` rounded up as padding does."""
        num_n, num_k = padded_shape(shape, self.alignment)
        return num_n, num_k

    def kernel_shape(self, shape: Shape, num_ranks: int) -> Shape:
        """Return the `(N, K)` on a rank of the layer that an engine makes of a matrix and those fused with it.

        For an expert, they are those of the matrix alone. A size that cannot be split evenly is 0.
        """
        part = self.sharding.part(shape, num_ranks)
        fused_n = None if self.is_expert else self.sharding.fused_n(shape[0], num_ranks)
        return fused_n or part.num_n or 0, part.num_k or 0

    def _may_begin_inside_block(self, num_n: int) -> bool:
        """Return whether the runtime can serve a share that begins inside a scale block, by zeros before and after it.

        It can inside an MLP, where the order of neurons does not matter, unless a block spans both gate and up.
        """
        if (self.inner, self.sharding.axis) not in (("n", "column"), ("k", "row")):
            return False
        matrices = self.sharding.group_rows(num_n)
        return len(matrices) == 1 or all(rows % self.block[0] == 0 for rows in matrices)


class Layer(NamedTuple):
    """One FP8 Linear by its module, in checkpoint names, with its plan, which it shares with all that are alike."""

    name: str
    plan: LayerPlan
