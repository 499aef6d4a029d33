"""Absorbing: which config keys can be rounded up for good, and what that does to every tensor that they govern.

A key is absorbed whole or not at all. The entry is `absorb`; for what it refuses it gives the reason, and the layers
concerned are padded as if absorbing had not been asked for. That zeros are inert is arithmetic: with zero rows of gate
and up, and zero biases there, the added activations are act(0) * 0 = 0 or act(0) = 0, they leave the maximum of
dynamic activation scales alone, and the zero columns of down multiply zeros.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from fp8pad.errors import CheckpointError
from fp8pad.planning.absorb.conditions import check_absorbable, check_sizes, config_size, multipliers
from fp8pad.planning.absorb.cost import KeyCost, cost_notes, key_cost
from fp8pad.planning.absorb.governed import FLOAT_DTYPES, Axis, GovernedAxes, GovernedAxis, GovernedSize
from fp8pad.planning.absorb.growth import NotAbsorbableError, grown, growth_of
from fp8pad.planning.families import Section
from fp8pad.planning.layers import Fp8Linear
from fp8pad.planning.padding import alignment_of
from fp8pad.planning.plan import AbsorbableSize
from fp8pad.record import CONFIG_FILE, AxisActions, ConfigEdit, PaddedTensor, Policy

__all__ = ["Absorption", "absorb", "absorbable_sizes", "merged"]


@dataclass(frozen=True, slots=True)
class Absorption:
    """What absorbing changes.

    `tensors` are all tensors that grow: weights, biases and scales, FP8 or not. `refusals` maps the axes
    `(module, axis)` that were to be absorbed and are not to the reason. `notes` are sentences for the plan: costs,
    refusals, recommendations.
    """

    tensors: Mapping[str, PaddedTensor] = field(default_factory=dict)
    edits: tuple[ConfigEdit, ...] = ()
    refusals: Mapping[tuple[str, Axis], str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def absorb(
    governed_axes: GovernedAxes, sections: Sequence[Section], linears: Sequence[Fp8Linear], policy: Policy
) -> Absorption:
    """Decide what to absorb in a checkpoint, given all inner sizes that its `sections` have.

    Raises `ConfigError` where a size in the config is not that of the tensors, and `PlanError` where tensors of one
    module do not fit together.
    """
    if not (policy.absorb or policy.absorb_experts):
        return Absorption()
    by_name = {linear.name: linear for linear in linears}
    outcomes = [_outcome(size, by_name, policy) for size in governed_axes.sizes]
    refused = tuple(outcome for outcome in outcomes if outcome.reason)
    padded: dict[str, PaddedTensor] = {}
    for outcome in outcomes:
        for name, tensor in outcome.tensors.items():
            padded[name] = merged(padded[name], tensor) if name in padded else tensor
    return Absorption(
        tensors=padded,
        edits=tuple(edit for outcome in outcomes for edit in outcome.edits),
        refusals=_refusals(refused, governed_axes, sections, linears, policy),
        notes=(
            *cost_notes([outcome.cost for outcome in outcomes if outcome.cost]),
            *_default_notes(outcomes),
            *_float_notes(outcomes),
            *(outcome.sentence for outcome in refused if outcome.size.key),
        ),
    )


def merged(first: PaddedTensor, second: PaddedTensor) -> PaddedTensor:
    """Return one tensor that grows along one axis as `first` does and along the other as `second` does."""
    grown_first = [padded > logical for logical, padded in zip(first.logical_shape, first.padded_shape, strict=True)]
    shapes = zip(grown_first, first.padded_shape, second.padded_shape, strict=True)
    return replace(
        first,
        padded_shape=tuple(one if grows else other for grows, one, other in shapes),
        axes=AxisActions(
            second.axes.n if first.axes.n == "aligned" else first.axes.n,
            second.axes.k if first.axes.k == "aligned" else first.axes.k,
        ),
        segments=first.segments or second.segments,
    )


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What became of one inner size; `reason` says why it is refused."""

    size: GovernedSize
    reason: str | None = None
    tensors: Mapping[str, PaddedTensor] = field(default_factory=dict)
    edits: tuple[ConfigEdit, ...] = ()
    cost: KeyCost | None = None

    @property
    def sentence(self) -> str:
        """The reason with the key that it is about."""
        return f"{self.size.path} is not absorbed: {self.reason}" if self.size.key else str(self.reason)


def _outcome(size: GovernedSize, linears: Mapping[str, Fp8Linear], policy: Policy) -> _Outcome:
    weights = [governed for governed in size.axes if governed.leaf == "weight"]
    if not any(governed.module in linears for governed in weights):
        return _Outcome(size)
    if not policy.absorb and not any(governed.mlp.experts for governed in weights):
        return _Outcome(size)
    check_sizes(size)
    if not any(_is_unaligned(governed, linears, policy) for governed in weights):
        return _Outcome(size)
    try:
        return _absorbed(size, linears, policy)
    except NotAbsorbableError as error:
        return _Outcome(size, reason=str(error))


def absorbable_sizes(
    governed_axes: GovernedAxes, linears: Sequence[Fp8Linear], policy: Policy
) -> tuple[AbsorbableSize, ...]:
    """Return the inner sizes of FP8 weights that can be absorbed, if not for this policy's ranks then for others'."""
    by_name = {linear.name: linear for linear in linears}
    willing = replace(policy, absorb=True, absorb_experts=True)
    found = []
    for size in governed_axes.sizes:
        with suppress(NotAbsorbableError, CheckpointError):
            if any(governed.module in by_name for governed in size.axes):
                check_sizes(size)
                found.append(_absorbable(size, by_name, willing))
    return tuple(found)


def _absorbable(size: GovernedSize, linears: Mapping[str, Fp8Linear], policy: Policy) -> AbsorbableSize:
    """Describe an inner size; `NotAbsorbableError` where anything stands in the way."""
    old = config_size(size)
    check_absorbable(size, policy)
    times = multipliers(size, old)
    for governed in size.axes:
        growth_of(governed, linears.get(governed.module), old * times[governed.mlp_id])
    weights = [governed for governed in size.axes if governed.leaf == "weight" and governed.module in linears]
    return AbsorbableSize(
        path=size.path,
        old=old,
        is_expert=any(governed.mlp.experts for governed in weights),
        governed={
            governed.module: (governed.axis, times[governed.mlp_id] * governed.num_segments) for governed in weights
        },
        alignments=frozenset(
            (_alignment(governed, linears[governed.module], policy), times[governed.mlp_id]) for governed in weights
        ),
        weight_bytes=sum(governed.tensor.num_bytes for governed in weights),
    )


def _absorbed(size: GovernedSize, linears: Mapping[str, Fp8Linear], policy: Policy) -> _Outcome:
    absorbable, most = _absorbable(size, linears, policy), policy.tensor_parallel_size
    padded_sizes = {ranks: absorbable.size_at(ranks) for ranks in range(1, most + 1) if most % ranks == 0}
    old, new = absorbable.old, padded_sizes[most]
    times = multipliers(size, old)
    tensors = {}
    for governed in size.axes:
        inner, padded_inner = old * times[governed.mlp_id], new * times[governed.mlp_id]
        growth = growth_of(governed, linears.get(governed.module), inner)
        if growth and (tensor := grown(governed, growth, inner, padded_inner)):
            tensors[governed.tensor.name] = tensor
    return _Outcome(size, None, tensors, tuple(_edits(size, old, new)), key_cost(size, old, padded_sizes, tensors))


def _edits(size: GovernedSize, old: int, new: int) -> Iterator[ConfigEdit]:
    yield ConfigEdit(CONFIG_FILE, size.path, old, new)
    yield from (ConfigEdit(CONFIG_FILE, size.section.dotted(key), old, new) for key in size.repeats)
    for path, mirror in size.section.mirrors:
        if size.key in mirror:
            yield ConfigEdit(CONFIG_FILE, f"{path}.{size.key}" if path else str(size.key), old, new)


def _alignment(governed: GovernedAxis, linear: Fp8Linear, policy: Policy) -> int:
    return alignment_of(linear, policy)[0 if governed.axis == "n" else 1]


def _is_unaligned(governed: GovernedAxis, linears: Mapping[str, Fp8Linear], policy: Policy) -> bool:
    linear = linears.get(governed.module)
    if linear is None:
        return False
    return (
        not governed.is_plain_weight
        or governed.inner_size % (_alignment(governed, linear, policy) * policy.tensor_parallel_size) != 0
    )


def _default_notes(outcomes: Sequence[_Outcome]) -> Iterator[str]:
    """Say where config.json gets a key that it did not have."""
    for outcome in outcomes:
        if outcome.edits and outcome.size.section.config.get(outcome.size.key or "") is None:
            old = outcome.edits[0].old
            yield f"{outcome.size.path} is not in {CONFIG_FILE}, where {old} is the default; it is added"


def _float_notes(outcomes: Sequence[_Outcome]) -> Iterator[str]:
    """Say where a key sizes weights that are not FP8 too: libraries choose by size how to group a sum."""
    for outcome in outcomes:
        plain = [governed.tensor for governed in outcome.size.axes if governed.is_plain_weight]
        names = [tensor.name for tensor in plain if tensor.dtype in FLOAT_DTYPES and tensor.name in outcome.tensors]
        if names:
            yield (
                f"{outcome.size.path} also sizes {len(names)} weights that are not FP8, {names[0]} among them: a GPU "
                "may add their products in another order, which can change an answer's last digits"
            )


def _refusals(
    refused: Sequence[_Outcome],
    governed_axes: GovernedAxes,
    sections: Sequence[Section],
    linears: Sequence[Fp8Linear],
    policy: Policy,
) -> dict[tuple[str, Axis], str]:
    reasons: dict[str, str] = {}
    for section in reversed(sections):
        if section.family is None:
            reason = f"no file in planning/families knows the model type {section.model_type}"
            reasons |= {linear.name: reason for linear in linears if linear.name.startswith(section.prefixes)}
    reasons |= governed_axes.unabsorbable
    if policy.absorb_experts:
        described = governed_axes.routed_experts
        unknown = "no file in planning/families describes these experts"
        reasons |= {
            linear.name: unknown
            for linear in linears
            if linear.is_expert and linear.name not in described and linear.name not in reasons
        }
    refusals: dict[tuple[str, Axis], str] = {}
    for name, reason in reasons.items():
        refusals |= {(name, "n"): reason, (name, "k"): reason}
    for outcome in refused:
        refusals |= {(governed.module, governed.axis): outcome.sentence for governed in outcome.size.axes}
    return refusals
