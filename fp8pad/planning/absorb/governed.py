"""Which tensors the inner size of an MLP governs: family files matched against the names in a checkpoint."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from fp8pad.padded import Axis
from fp8pad.planning.families import Mlp, Section
from fp8pad.planning.families.family import Role
from fp8pad.planning.linear_names import Division
from fp8pad.scales import Order
from fp8pad.tensors import FP8_WEIGHT_DTYPES, TensorHeader

# Dtypes besides FP8 whose zero is all zero bytes and that hold one matrix entry per element.
FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})

_PLAIN = FP8_WEIGHT_DTYPES | FLOAT_DTYPES


class GovernedAxis(NamedTuple):
    """One tensor of an MLP, with an axis that the MLP's inner size governs.

    `leaf` is the tensor's name inside its module: "weight", "bias", "weight_scale", ... `instance` distinguishes the
    MLPs of one rule: the prefix, then the numbers in place of `{layer}` and `{expert}`. A stack of experts may have the
    last two axes in the `order` K, N.
    """

    tensor: TensorHeader
    module: str
    leaf: str
    role: Role
    mlp: Mlp
    instance: tuple[str, ...]
    order: Order = "nk"

    @property
    def axis(self) -> Axis:
        """The axis that is governed: the columns of down, the rows of everything else."""
        return "k" if self.role == "down" else "n"

    @property
    def dimension(self) -> int:
        """The dimension of the module's weight that is governed."""
        return self.num_dimensions - 2 + self.order.index(self.axis)

    @property
    def num_dimensions(self) -> int:
        """How many dimensions the module's weight has."""
        return 3 if self.mlp.stacked else 2

    @property
    def num_segments(self) -> int:
        """How many matrices are concatenated along the governed axis."""
        return 2 if self.role == "gate_up" and not self.mlp.interleaved else 1

    @property
    def width(self) -> int:
        """How many rows or columns each neuron has along the governed axis."""
        return 2 if self.role == "gate_up" else 1

    @property
    def is_plain_weight(self) -> bool:
        """Whether this is a weight with one element per matrix entry, so that its shape can be compared with sizes."""
        is_matrix = len(self.tensor.shape) == self.num_dimensions
        return self.leaf == "weight" and self.tensor.dtype in _PLAIN and is_matrix

    @property
    def inner_size(self) -> int:
        """The inner size of the MLP according to the shape of this plain weight."""
        return self.tensor.shape[self.dimension] // self.width

    @property
    def block(self) -> str:
        """The part of the layer that holds the MLP, routers and shared experts included: `model.layers.3.mlp.`."""
        in_front = self.mlp.parts[self.role].partition("}.")[0].count(".") + 1
        parts = self.module.removeprefix(self.instance[0]).split(".")
        return self.instance[0] + ".".join(parts[: min(in_front + 1, len(parts) - 1)]) + "."


@dataclass(frozen=True)
class GovernedSize:
    """An inner size and everything that it governs; `unclaimed_tensors` look governed too, but are in no family file.

    `key` is None if the size is not a config key of its own.
    """

    section: Section
    key: str | None
    axes: tuple[GovernedAxis, ...]
    unclaimed_tensors: tuple[TensorHeader, ...] = ()

    @property
    def path(self) -> str:
        """The key's dotted path in config.json."""
        return self.section.dotted(self.key or "")

    @property
    def repeats(self) -> tuple[str, ...]:
        """Other keys of the same config that repeat the size."""
        keys = dict.fromkeys(key for governed in self.axes for key in governed.mlp.repeats)
        return tuple(key for key in keys if key != self.key and self.section.config.get(key) is not None)

    @property
    def has_experts(self) -> bool:
        """Whether it sizes routed experts."""
        return any(governed.mlp.experts for governed in self.axes)

    @cached_property
    def mlps(self) -> tuple[tuple[GovernedAxis, ...], ...]:
        """The axes, grouped by MLP."""
        mlps: defaultdict[object, list[GovernedAxis]] = defaultdict(list)
        for governed in self.axes:
            mlps[governed.mlp, governed.instance].append(governed)
        return tuple(map(tuple, mlps.values()))


@dataclass(frozen=True)
class GovernedAxes:
    """All inner sizes of a model, and the modules that family files rule out, with the reason.

    `divided` are the modules for which family files say how ranks divide them.
    """

    sizes: tuple[GovernedSize, ...]
    unabsorbable: Mapping[str, str]
    divided: Mapping[str, Division] = field(default_factory=dict)

    @cached_property
    def modules(self) -> Mapping[str, GovernedAxis]:
        """The modules of MLPs, each with the axis of one of its tensors, which has its MLP, role and order."""
        return {governed.module: governed for size in self.sizes for governed in size.axes}


def inner_sizes(axes: Sequence[GovernedAxis]) -> set[int]:
    """Return the inner sizes of the weights among `axes`: a single one if the axes belong to one MLP."""
    return {governed.inner_size for governed in axes if governed.is_plain_weight}
