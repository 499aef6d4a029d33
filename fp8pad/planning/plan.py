"""The plan: one frozen object that the screen, the writer and the records all read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import gcd, lcm

from fp8pad.geometry import round_up
from fp8pad.padded import Axis, PaddedTensor
from fp8pad.planning.linear import Layer, LayerPlan
from fp8pad.planning.tensor_parallel import SharedCount, Sizes
from fp8pad.quantization_config import ModuleRecord
from fp8pad.record import BaseSource, ConfigEdit, Json, Policy, by_key


@dataclass(frozen=True, slots=True)
class AbsorbableSize:
    """An inner size that could be absorbed, whether the plan does it or not.

    `path` is its key in config.json and `old` its value. `governed` maps each FP8 weight's module to the axis that the
    size governs and the factor between them; `weight_bytes` is the size of these weights. `alignments` are pairs: a
    multiple that an axis must have on each rank, and the factor between the size and the axis of one matrix.
    `other_bytes` is the size of the other tensors that grow with it, except scales of FP8 Linears.
    """

    path: str
    old: int
    is_expert: bool
    governed: Mapping[str, tuple[Axis, int]]
    alignments: frozenset[tuple[int, int]]
    weight_bytes: int
    other_bytes: int = 0

    def size_at(self, num_ranks: int) -> int:
        """Return the smallest value that aligns everything on each of `num_ranks` ranks."""
        multiples = (num_ranks * multiple // gcd(num_ranks * multiple, times) for multiple, times in self.alignments)
        return round_up(self.old, lcm(*multiples))


@dataclass(frozen=True, slots=True)
class UntouchedTensor:
    """A weight that is not an FP8 Linear at all, and why it is not padded.

    `is_understood` is False for FP8 weights if fp8pad cannot tell what they are.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    reason: str
    is_understood: bool = True


@dataclass(frozen=True, slots=True)
class AlikeLayers:
    """Layers that every engine treats in the same way: their plan, and the indices of all in the checkpoint's plan.

    `grows` are the absorbable sizes that govern an axis of it: their paths, each with the axis and the factor.
    """

    plan: LayerPlan
    places: list[int]
    grows: tuple[tuple[str, Axis, int], ...]

    def grown(self, sizes: Sizes) -> tuple[int, int]:
        """Return the `(N, K)` of one of their matrices if `sizes`, old and new by path, are absorbed."""
        num_n, num_k = self.plan.logical_shape[-2:]
        for path, axis, times in self.grows:
            if path in sizes:
                grown = sizes[path][1] * times
                num_n, num_k = (grown, num_k) if axis == "n" else (num_n, grown)
        return num_n, num_k


@dataclass(frozen=True)
class CheckpointPlan:
    """Everything that converting a checkpoint will do.

    `tensors` holds every tensor whose bytes change, by name. `modules` is what config.json will tell the runtime; it is
    empty if no runtime is needed. `base` is the original quantization config and `base_source` where it was; both are
    None in a checkpoint without one. `notes` are sentences for the user that belong to no layer. `architectures` are
    the classes that config.json names. `absorbable` are the inner sizes that can be absorbed, `unabsorbed` says why
    modules cannot be, unless their layers' reasons or a note do. `shared_counts` is what ranks must share evenly
    besides FP8 layers: heads, groups, neurons of other MLPs.
    `bytes_before` and `bytes_after` count tensor data.
    """

    policy: Policy
    layers: tuple[Layer, ...]
    untouched: tuple[UntouchedTensor, ...]
    tensors: Mapping[str, PaddedTensor]
    modules: Mapping[str, ModuleRecord]
    config_edits: tuple[ConfigEdit, ...]
    base: Json | None
    base_source: BaseSource | None
    shards_rewritten: tuple[str, ...]
    bytes_before: int
    bytes_after: int
    notes: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    absorbable: tuple[AbsorbableSize, ...] = ()
    unabsorbed: Mapping[str, str] = field(default_factory=dict)
    shared_counts: tuple[SharedCount, ...] = ()

    def __repr__(self) -> str:
        """Short, for notebooks: there can be a million layers."""
        return f"CheckpointPlan({len(self.layers)} layers, {len(self.tensors)} changed tensors)"

    @cached_property
    def alike(self) -> tuple[AlikeLayers, ...]:
        """The layers in groups that share a plan, so that each group is assessed only once."""
        grows: dict[str, list[tuple[str, Axis, int]]] = {}
        for size in self.absorbable:
            for name, (axis, times) in size.governed.items():
                grows.setdefault(name, []).append((size.path, axis, times))
        groups: dict[object, AlikeLayers] = {}
        for place, (name, plan) in enumerate(self.layers):
            sizes = tuple(grows.get(name, ()))
            groups.setdefault((id(plan), sizes), AlikeLayers(plan, [], sizes)).places.append(place)
        return tuple(groups.values())

    @property
    def needs_runtime(self) -> bool:
        """Whether the converted checkpoint asks for fp8pad's runtime."""
        return bool(self.modules)

    @property
    def not_understood(self) -> tuple[tuple[str, str], ...]:
        """The FP8 weights that are carried unchanged because fp8pad cannot tell what they are, each with a reason."""
        layers = ((name, layer.reason) for name, layer in self.layers if not layer.is_understood)
        return (*layers, *((tensor.name, tensor.reason) for tensor in self.untouched if not tensor.is_understood))

    @property
    def grown(self) -> Sizes:
        """The old and the new value of each config key that absorbing changes, by path; of a list, of the whole."""
        return {edit.key: (edit.old, edit.new) for edit in by_key(self.config_edits)}

    @property
    def edits_config(self) -> bool:
        """Whether config.json will differ from the source's."""
        return bool(self.modules or self.config_edits)

    @property
    def changes_nothing(self) -> bool:
        """Whether the converted checkpoint will equal its source."""
        return not (self.tensors or self.modules or self.config_edits)
