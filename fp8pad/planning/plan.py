"""The plan: one frozen object that the table, the writer, the records, verify and unpad all read."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from math import gcd, lcm, prod
from operator import attrgetter

from fp8pad.geometry import round_up
from fp8pad.planning.tensor_parallel import COLUMN, Fit, RankPart, Sharding
from fp8pad.record import Axis, AxisActions, BaseSource, ConfigEdit, Json, ModuleRecord, PaddedTensor, Policy
from fp8pad.scales import Granularity


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One FP8 Linear, shapes `[N, K]`; `granularity` is None where its scales are of a layout that is not padded.

    `name` is the module, in checkpoint names. `reason` is a sentence for the user, never empty. `config_shape` is the
    logical shape that the *edited* config asks for: it differs from `logical_shape` where an axis is absorbed.
    `sharding` says how ranks divide it, `rank_fit` how the parts at the policy's tensor-parallel size fit.
    `is_expert` marks routed experts, which the runtime does not handle; `inner` is the axis that lies inside an MLP, if
    one does. `is_understood` is False where it is carried because fp8pad cannot tell what it is. `scale_bytes` is what
    one of its scales takes.
    """

    name: str
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

    def named(self, name: str) -> "LayerPlan":
        """Return the plan of another layer, which is like this one in all but its name."""
        return LayerPlan(name, *_ALL_BUT_NAME(self))

    @property
    def block(self) -> tuple[int, int]:
        """The sizes `(n, k)` of a scale block, which no split may cut; `(1, 1)` where there are no blocks."""
        return self.granularity.block if self.granularity else (1, 1)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """The `(N, K)` that the edited config asks for: of one matrix, where several are stacked."""
        num_n, num_k = self.config_shape[-2:]
        return num_n, num_k

    @property
    def logical_matrix(self) -> tuple[int, int]:
        """The `(N, K)` of the source: of one matrix, where several are stacked."""
        num_n, num_k = self.logical_shape[-2:]
        return num_n, num_k

    @property
    def is_for_runtime(self) -> bool:
        """Whether the runtime takes the layer, where the checkpoint asks for it at all."""
        return not self.is_expert and "skip" not in self.axes.both

    @property
    def is_padded_at_load(self) -> bool:
        """Whether the runtime pads a rank's part of the layer, at the policy's tensor-parallel size."""
        return self.rank_fit == "unaligned" and self.is_for_runtime

    def bytes_at(self, shape: tuple[int, int]) -> int:
        """Return what weight and scales take on disk if each matrix is `(N, K)`."""
        num_scales = prod(self.granularity.scale_shape(shape)) if self.granularity else 0
        return prod(self.logical_shape[:-2]) * (prod(shape) + num_scales * self.scale_bytes)

    def part(self, num_ranks: int) -> RankPart:
        """Return what one of `num_ranks` ranks holds of the layer."""
        return self.sharding.part(self.matrix_shape, num_ranks)

    def fit_at(self, num_ranks: int, shape: tuple[int, int] | None = None) -> Fit:
        """Return how the parts of `num_ranks` ranks fit; "not assessed" where the scales are not understood.

        `shape` is the `(N, K)` that is divided: `matrix_shape`, if not given.
        """
        if self.granularity is None:
            return "not assessed"
        shape = shape or self.matrix_shape
        fit = self.sharding.fit(shape, self.block, self.alignment, num_ranks)
        return "unaligned" if fit == "inside block" and self._may_begin_inside_block(shape[0]) else fit

    def _may_begin_inside_block(self, num_n: int) -> bool:
        """Whether the runtime can serve a share that begins inside a scale block, by zeros before it as well as behind.

        It can inside an MLP, where the order of neurons does not matter, unless a block lies on both gate and up.
        """
        if (self.inner, self.sharding.axis) not in (("n", "column"), ("k", "row")):
            return False
        matrices = self.sharding.group_rows(num_n)
        return len(matrices) == 1 or all(rows % self.block[0] == 0 for rows in matrices)


_ALL_BUT_NAME = attrgetter(*(field.name for field in fields(LayerPlan)[1:]))  # `replace` takes twice as long


@dataclass(frozen=True, slots=True)
class AbsorbableSize:
    """An inner size that could be absorbed, whether the plan does it or not.

    `path` is its key in config.json and `old` its value. `governed` maps each FP8 weight's module to the axis that it
    sizes and how often it goes into it; `weight_bytes` is what these weights take. `alignments` are pairs: a multiple
    that an axis must have on each rank, and how often the size goes into one matrix of it. `other_bytes` is what
    tensors take that grow with it and are neither weights nor scales of FP8 Linears.
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

    `is_understood` is False for FP8 weights of which fp8pad cannot tell what they are.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    reason: str
    is_understood: bool = True


@dataclass(frozen=True, slots=True)
class AlikeLayers:
    """Layers that are alike to every engine: one of them, and the places of all in the plan.

    `grows` are the places of the absorbable sizes that go into it, each with an axis and how often.
    """

    example: LayerPlan
    places: list[int]
    grows: tuple[tuple[int, Axis, int], ...]


@dataclass(frozen=True)
class CheckpointPlan:
    """What converting a checkpoint will do, whole.

    `tensors` holds every tensor whose bytes change, by name. `modules` is what config.json will tell the runtime; it is
    empty where no runtime is needed. `base` is the original quantization config and `base_source` where it stood; both
    are None in a checkpoint without one. `notes` are sentences for the user that belong to no layer.
    `architectures` are the classes that config.json names. `absorbable` are the inner sizes that can be absorbed,
    `num_heads` the attention heads of the text model, if the config says.
    `bytes_before` and `bytes_after` count tensor data.
    """

    policy: Policy
    layers: tuple[LayerPlan, ...]
    untouched: tuple[UntouchedTensor, ...]
    tensors: Mapping[str, PaddedTensor]
    modules: Mapping[str, ModuleRecord]
    config_edits: tuple[ConfigEdit, ...]
    base: Json | None
    base_source: BaseSource | None
    shards_rewritten: tuple[str, ...]
    bytes_before: int
    bytes_after: int
    notes: tuple[str, ...] = field(default=())
    architectures: tuple[str, ...] = ()
    absorbable: tuple[AbsorbableSize, ...] = ()
    num_heads: int | None = None

    @cached_property
    def alike(self) -> tuple[AlikeLayers, ...]:
        """The layers in groups, so that what is said of a group is worked out once."""
        grows: dict[str, list[tuple[int, Axis, int]]] = {}
        for place, size in enumerate(self.absorbable):
            for name, (axis, times) in size.governed.items():
                grows.setdefault(name, []).append((place, axis, times))
        groups: dict[object, AlikeLayers] = {}
        for place, layer in enumerate(self.layers):
            sizes = tuple(grows.get(layer.name, ()))
            shapes = layer.logical_shape, layer.config_shape, layer.alignment, layer.scale_bytes
            key = shapes, layer.granularity, layer.sharding, layer.axes, layer.is_expert, layer.inner, sizes
            if key not in groups:
                groups[key] = AlikeLayers(layer, [], sizes)
            groups[key].places.append(place)
        return tuple(groups.values())

    @property
    def needs_runtime(self) -> bool:
        """Whether the converted checkpoint asks for fp8pad's runtime."""
        return bool(self.modules)

    @property
    def not_understood(self) -> tuple["LayerPlan | UntouchedTensor", ...]:
        """The FP8 weights that are carried unchanged because fp8pad cannot tell what they are, each with a reason."""
        layers = (layer for layer in self.layers if not layer.is_understood)
        return (*layers, *(tensor for tensor in self.untouched if not tensor.is_understood))

    @property
    def edits_config(self) -> bool:
        """Whether config.json will differ from the source's."""
        return bool(self.modules or self.config_edits)

    @property
    def changes_nothing(self) -> bool:
        """Whether the converted checkpoint will equal its source."""
        return not (self.tensors or self.modules or self.config_edits)
