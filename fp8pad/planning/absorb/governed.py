"""Which tensors the inner size of an MLP governs: family files matched against the names in a checkpoint."""

import re
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from fp8pad.errors import PlanError
from fp8pad.planning.absorb.names import NameIndex, any_number
from fp8pad.planning.families import Mlp, Section
from fp8pad.planning.families.family import Role
from fp8pad.planning.stacks import Order
from fp8pad.planning.tensor_parallel import Division
from fp8pad.tensors import FP8_WEIGHT_DTYPES, TensorHeader

Axis = Literal["n", "k"]

# Dtypes besides FP8 whose zero is all zero bytes and that hold one matrix entry per element.
FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})

# Where a weight `[N, K]`, or a stack of them, has its N and its K.
_WEIGHT_INDEX: Mapping[Order | None, Mapping[Axis, int]] = {
    None: {"n": 0, "k": 1},
    "nk": {"n": 1, "k": 2},
    "kn": {"n": 2, "k": 1},
}
_PLAIN = FP8_WEIGHT_DTYPES | FLOAT_DTYPES

# A rule, and what tells the MLPs of one rule apart.
MlpId = tuple[Mlp, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class GovernedAxis:
    """One tensor of an MLP, whose inner size governs one of its axes.

    `leaf` is the tensor's name inside its module: "weight", "bias", "weight_scale", ... `instance` tells the MLPs of
    one rule apart: the prefix, then the numbers that stood for `{layer}` and `{expert}`. `order` is that of the axes
    behind the first in a stack of experts: `[num_experts, N, K]` or `[num_experts, K, N]`.
    """

    tensor: TensorHeader
    module: str
    leaf: str
    role: Role
    mlp: Mlp
    instance: tuple[str, ...]
    order: Order | None = None

    @property
    def mlp_id(self) -> MlpId:
        """The MLP that the tensor belongs to."""
        return self.mlp, self.instance

    @property
    def axis(self) -> Axis:
        """The axis that is governed: the columns of down, the rows of everything else."""
        return "k" if self.role == "down" else "n"

    @property
    def index(self) -> int:
        """The dimension of the module's weight that is governed."""
        return _WEIGHT_INDEX[self.order][self.axis]

    @property
    def num_segments(self) -> int:
        """How many matrices lie behind each other along the governed axis."""
        return 2 if self.role == "gate_up" and not self.mlp.interleaved else 1

    @property
    def width(self) -> int:
        """How many rows or columns each neuron has along the governed axis."""
        return 2 if self.role == "gate_up" else 1

    @property
    def is_plain_weight(self) -> bool:
        """Whether this is a weight with one element per matrix entry, so that its shape can be compared with sizes."""
        num_dimensions = 3 if self.mlp.stacked else 2
        return self.leaf == "weight" and self.tensor.dtype in _PLAIN and len(self.tensor.shape) == num_dimensions

    @property
    def inner_size(self) -> int:
        """The inner size of the MLP as the shape of a plain weight has it."""
        return self.tensor.shape[self.index] // self.width

    @property
    def block(self) -> str:
        """The part of the layer that holds the MLP, routers and shared experts included: `model.layers.3.mlp.`."""
        in_front = self.mlp.parts[self.role].partition("}.")[0].count(".") + 1
        parts = self.module.removeprefix(self.instance[0]).split(".")
        return self.instance[0] + ".".join(parts[: min(in_front + 1, len(parts) - 1)]) + "."


@dataclass(frozen=True)
class GovernedSize:
    """An inner size and everything that it governs; `unclaimed_tensors` look governed too, but are in no family file.

    `key` is None where the size is no config key of its own.
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
        """Other keys of the same config that say the size again."""
        keys = dict.fromkeys(key for governed in self.axes for key in governed.mlp.repeats)
        return tuple(key for key in keys if key != self.key and self.section.config.get(key) is not None)

    @property
    def has_experts(self) -> bool:
        """Whether it sizes routed experts."""
        return any(governed.mlp.experts for governed in self.axes)

    def governs_any(self, modules: Container[str]) -> bool:
        """Return whether it sizes any of these modules."""
        return any(governed.module in modules for governed in self.axes)

    @cached_property
    def mlps(self) -> tuple[tuple[GovernedAxis, ...], ...]:
        """The axes by the MLP that they belong to."""
        mlps: defaultdict[MlpId, list[GovernedAxis]] = defaultdict(list)
        for governed in self.axes:
            mlps[governed.mlp_id].append(governed)
        return tuple(map(tuple, mlps.values()))


@dataclass(frozen=True, slots=True)
class GovernedAxes:
    """All inner sizes of a model, and the modules that family files rule out, with the reason.

    `divided` are modules of which they say how ranks divide them.
    """

    sizes: tuple[GovernedSize, ...]
    unabsorbable: Mapping[str, str]
    divided: Mapping[str, Division] = field(default_factory=dict)

    @property
    def roles(self) -> Mapping[str, Role]:
        """What each module that is described does in its MLP."""
        return {governed.module: governed.role for size in self.sizes for governed in size.axes}

    @property
    def padded_at_load(self) -> frozenset[str]:
        """The modules whose blocks the model's own code in vLLM makes whole."""
        return frozenset(
            governed.module for size in self.sizes for governed in size.axes if governed.mlp.padded_at_load
        )

    @property
    def routed_experts(self) -> Mapping[str, Order | None]:
        """The modules of routed experts, and for those that are stacked the order of their axes."""
        return {
            governed.module: governed.order for size in self.sizes for governed in size.axes if governed.mlp.experts
        }


def find_governed(sections: Sequence[Section], tensors: Mapping[str, TensorHeader]) -> GovernedAxes:
    """Match every section's family against the tensors; `PlanError` where one axis of a tensor is governed twice."""
    index = NameIndex(tensors)
    sizes: dict[object, GovernedSize] = {}
    owners: dict[tuple[str, Axis], str] = {}
    for section, mlp in _rules(sections, index):
        key = _key(section, mlp)
        path = section.dotted(key or mlp.down)
        axes = _in_order(section, mlp, tuple(_matches(section, mlp, tensors, index)))
        for governed in axes:
            other = owners.setdefault((governed.tensor.name, governed.axis), path)
            if other != path:
                raise PlanError(
                    f"{governed.tensor.name}: both {other} and {path} govern its axis {governed.axis.upper()}"
                )
        size = sizes.setdefault(path, GovernedSize(section, key, ()))
        sizes[path] = replace(size, axes=size.axes + axes)
    unabsorbable = _unabsorbable(sections, index)
    known = {name for name, _ in owners} | _ignored(sections, tensors, index)
    unclaimed = [
        tensor for name, tensor in tensors.items() if name not in known and name.rpartition(".")[0] not in unabsorbable
    ]
    with_unclaimed = tuple(_with_unclaimed(size, unclaimed) for size in sizes.values() if size.axes)
    return GovernedAxes(with_unclaimed, unabsorbable, dict(_divided(sections, index)))


def _divided(sections: Sequence[Section], index: NameIndex) -> Iterator[tuple[str, Division]]:
    for section in sections:
        if family := section.family:
            divisions: dict[Division, tuple[str, ...]] = {
                "column": family.column, "row": family.row, "replicated": family.replicated
            }  # fmt: skip
            for division, patterns in divisions.items():
                yield from ((module, division) for module in index.modules(section.prefixes, patterns))


def _key(section: Section, mlp: Mlp) -> str | None:
    """The config key that is the size of an MLP in this model: the first that the config has a value for."""
    keys = [key for key in (mlp.size_key, *mlp.other_keys) if key]
    return next((key for key in keys if section.config.get(key) is not None), mlp.size_key)


def _rules(sections: Sequence[Section], index: NameIndex) -> Iterator[tuple[Section, Mlp]]:
    for section in sections:
        for mlp in section.family.mlp if section.family else ():
            yield section, mlp
            if mlp.experts and not mlp.stacked:
                yield section, _stacked_form(section, mlp, index)


def _stacked_form(section: Section, mlp: Mlp, index: NameIndex) -> Mlp:
    """Experts that the family has one by one as tools stack them: gate and up in one weight, or apart."""
    folder = mlp.down.partition("{expert}")[0]
    if mlp.is_gated and any(index.find(section.prefixes, f"{folder}gate_up_proj")):
        parts: dict[str, str | None] = {
            "gate": None,
            "up": None,
            "gate_up": f"{folder}gate_up_proj",
            "down": f"{folder}down_proj",
        }
    else:
        parts = {str(role): pattern.replace("{expert}.", "") for role, pattern in mlp.parts.items()}
    return replace(mlp, stacked=True, **parts)  # type: ignore[arg-type]


def _matches(
    section: Section, mlp: Mlp, tensors: Mapping[str, TensorHeader], index: NameIndex
) -> Iterator[GovernedAxis]:
    for role, pattern in mlp.parts.items():
        for name, match in index.find(section.prefixes, pattern):
            if leaf := _leaf(name[match.end() :], mlp):
                order: Order | None = "nk" if mlp.stacked else None
                yield GovernedAxis(tensors[name], match.group(), leaf, role, mlp, match.groups(), order)


def _leaf(rest: str, mlp: Mlp) -> str | None:
    """The name behind the module's; stacked weights are bare parameters, and their scales are named `module_scale`."""
    if rest.startswith("."):
        return rest[1:]
    if mlp.stacked and (not rest or rest.startswith("_")):
        return rest[1:] or "weight"
    return None


def _in_order(section: Section, mlp: Mlp, axes: tuple[GovernedAxis, ...]) -> tuple[GovernedAxis, ...]:
    """Decide between the two orders of stacked axes: in one of them all weights have one inner size, the config's."""
    if not mlp.stacked:
        return axes
    turned = tuple(replace(governed, order="kn") for governed in axes)
    asked = section.config.get(_key(section, mlp) or "")
    orders = [(axes, list(inner_sizes(axes))), (turned, list(inner_sizes(turned)))]
    fitting = [order for order, sizes in orders if sizes == [asked]] or [
        order for order, sizes in orders if len(sizes) == 1
    ]
    return fitting[0] if fitting else axes


def inner_sizes(axes: Sequence[GovernedAxis]) -> set[int]:
    """Return the inner sizes that weights have: one, if they are those of an MLP."""
    return {governed.inner_size for governed in axes if governed.is_plain_weight}


def _unabsorbable(sections: Sequence[Section], index: NameIndex) -> dict[str, str]:
    return {
        module: rule.reason
        for section in sections
        for rule in (section.family.unabsorbable if section.family else ())
        for module in index.modules(section.prefixes, rule.modules)
    }


def _ignored(sections: Sequence[Section], tensors: Mapping[str, TensorHeader], index: NameIndex) -> set[str]:
    modules = {
        module
        for section in sections
        for module in index.modules(section.prefixes, section.family.ignore if section.family else ())
    }
    return {name for name in tensors if name.rpartition(".")[0] in modules}


def _with_unclaimed(size: GovernedSize, unclaimed: Sequence[TensorHeader]) -> GovernedSize:
    """Find tensors of a governed size in a governed MLP, or at its modules' names elsewhere (`mtp.layers.0.mlp`)."""
    sizes = inner_sizes(size.axes)
    alike = [tensor for tensor in unclaimed if not sizes.isdisjoint(tensor.shape)]
    if not alike:
        return size
    blocks = tuple({governed.block for governed in size.axes if governed.role == "down"})
    mlps = {governed.mlp for governed in size.axes}
    texts = {pattern.partition("}.")[2] for mlp in mlps for pattern in mlp.parts.values()} - {""}
    elsewhere = re.compile("|".join(rf"(^|\.){any_number(text)}\." for text in texts) or r"(?!)")
    found = (tensor for tensor in alike if tensor.name.startswith(blocks) or elsewhere.search(tensor.name))
    return replace(size, unclaimed_tensors=tuple(found))
