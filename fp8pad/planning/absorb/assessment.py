"""Whether an inner size can be absorbed, according to the config, its MLPs, and each tensor that it governs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fp8pad.errors import CheckpointError, ConfigError
from fp8pad.padded import PaddedTensor
from fp8pad.planning.absorb.config_size import config_size, multiplier
from fp8pad.planning.absorb.governed import GovernedAxis, GovernedSize
from fp8pad.planning.absorb.growth import NotAbsorbableError, grown
from fp8pad.planning.alignment import alignment_of
from fp8pad.planning.families import Mlp, Section
from fp8pad.planning.families.family import FINITE_AT_ZERO, ZERO_AT_ZERO
from fp8pad.planning.linear import Fp8Linear
from fp8pad.planning.plan import AbsorbableSize
from fp8pad.record import CONFIG_FILE, Policy
from fp8pad.text import matches


@dataclass(frozen=True, slots=True)
class AlikeTensors:
    """Tensors of one part of an MLP, in all layers and experts, that grow in the same way; `linear` is the first's.

    `times` is their inner size divided by the key's value.
    """

    members: list[GovernedAxis]
    linear: Fp8Linear | None
    times: int

    @property
    def example(self) -> GovernedAxis:
        """The first of them."""
        return self.members[0]

    def grown(self, old: int, new: int) -> PaddedTensor | None:
        """Return how each of them changes if the key's value grows from `old` to `new`; see `growth.grown`."""
        return grown(self.example, self.linear, old * self.times, new * self.times)

    def multiple(self, policy: Policy) -> int:
        """Return the multiple that the governed axis of an FP8 weight must have on a rank; 1 for other tensors."""
        return alignment_of(self.linear, policy)[0 if self.example.axis == "n" else 1] if self.linear else 1


@dataclass(frozen=True, slots=True)
class Assessment:
    """An inner size and its tensors: it is `absorbable`, or there is an `obstacle`."""

    size: GovernedSize
    tensors: tuple[AlikeTensors, ...]
    absorbable: AbsorbableSize | None = None
    obstacle: NotAbsorbableError | CheckpointError | None = None

    @property
    def has_fp8(self) -> bool:
        """Whether it sizes an FP8 Linear."""
        return any(alike.linear for alike in self.tensors)

    @property
    def weights(self) -> list[AlikeTensors]:
        """The weights among the tensors."""
        return [alike for alike in self.tensors if alike.example.leaf == "weight"]


def assess(size: GovernedSize, linears: Mapping[str, Fp8Linear], policy: Policy) -> Assessment:
    """Determine whether an inner size can be absorbed, asked for or not."""
    tensors = _alike(size, linears, None)
    try:
        old = config_size(size)
        tensors = _alike(size, linears, old)
        _check_sizes(size, tensors, old)
        if skipped := next((axis.module for axis in size.axes if matches((axis.module,), policy.skip)), None):
            raise NotAbsorbableError(f"{skipped} is to be carried unchanged (--skip)")
        for mlp in {governed.mlp for governed in size.axes}:
            check_activation(mlp, size.section)
        _check_complete(size)
        for alike in tensors:
            alike.grown(old, old)
    except (NotAbsorbableError, CheckpointError) as error:
        return Assessment(size, tensors, obstacle=error)
    return Assessment(size, tensors, _absorbable(size, tensors, old, policy))


def _alike(size: GovernedSize, linears: Mapping[str, Fp8Linear], old: int | None) -> tuple[AlikeTensors, ...]:
    """Group the tensors of a size; without its `old` value, their factors are not known, and not used."""
    found: dict[object, AlikeTensors] = {}
    for mlp in size.mlps:
        often, module = multiplier(mlp, size, old) if old else 1, ""
        for governed in mlp:
            if governed.module != module:
                module, linear = governed.module, linears.get(governed.module)
                part = id(governed.mlp), governed.role, governed.order, linear.kind if linear else None, often
            key = part, governed.leaf, governed.tensor.dtype, governed.tensor.shape
            if key not in found:
                found[key] = AlikeTensors([], linear, often)
            found[key].members.append(governed)
    return tuple(found.values())


def _absorbable(size: GovernedSize, tensors: Sequence[AlikeTensors], old: int, policy: Policy) -> AbsorbableSize:
    weights = [alike for alike in tensors if alike.example.leaf == "weight"]
    fp8 = [alike for alike in weights if alike.linear]
    return AbsorbableSize(
        path=size.path,
        old=old,
        is_expert=size.has_experts,
        governed={
            governed.module: (governed.axis, alike.times * governed.width)
            for alike in fp8
            for governed in alike.members
        },
        alignments=frozenset((alike.multiple(policy), alike.times) for alike in weights),
        weight_bytes=sum(len(alike.members) * alike.example.tensor.num_bytes for alike in fp8),
        other_bytes=sum(
            len(alike.members) * alike.example.tensor.num_bytes
            for alike in tensors
            if not (alike.linear and alike.example.tensor in (alike.linear.weight, alike.linear.scale))
            and alike.grown(old, 2 * old)
        ),
    )


def _check_sizes(size: GovernedSize, tensors: Sequence[AlikeTensors], value: int) -> None:
    """Raise `ConfigError` if a weight that the key sizes has another size."""
    for alike in tensors:
        governed, length = alike.example, value * alike.times * alike.example.width
        if governed.is_plain_weight and governed.tensor.shape[governed.dimension] != length:
            raise ConfigError(
                f"{CONFIG_FILE}: {size.path} asks for {length} {'rows' if governed.axis == 'n' else 'columns'}"
                f" of {governed.tensor.name}, got {list(governed.tensor.shape)}"
            )


def check_activation(mlp: Mlp, section: Section) -> None:
    """Raise `NotAbsorbableError` if zero outputs of gate and up may not be zero after the activation."""
    if mlp.unless and section.config.get(mlp.unless):
        raise NotAbsorbableError(f"{section.dotted(mlp.unless)} is set")
    named = section.config.get(mlp.activation_key) if mlp.activation_key else None
    activation = named or mlp.activation
    if not isinstance(activation, str) or activation.lower() not in FINITE_AT_ZERO:
        raise NotAbsorbableError(f"the activation {activation!r} is not known to be finite at 0")
    if not mlp.is_gated and activation.lower() not in ZERO_AT_ZERO:
        raise NotAbsorbableError(f"there is no gate and the activation {activation!r} is not 0 at 0")


def _check_complete(size: GovernedSize) -> None:
    """Refuse MLPs with missing parts, such as tied weights, and tensors that look governed but are not described."""
    for mlp in size.mlps:
        with_weight = {governed.role for governed in mlp if governed.leaf == "weight"}
        if role := next((role for role in mlp[0].mlp.parts if role not in with_weight), None):
            if other := next((governed.tensor.name for governed in mlp if governed.role == role), None):
                raise NotAbsorbableError(f"{other} has no weight: a layout that fp8pad does not pad")
            raise NotAbsorbableError(f"{mlp[0].block.rstrip('.')} has no {role} weight: it may be tied to another")
    for tensor in size.unclaimed_tensors:
        raise NotAbsorbableError(
            f"{tensor.name} {list(tensor.shape)} also has that size, but is not described by the family file"
        )
