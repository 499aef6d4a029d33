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
from fp8pad.planning.quantization import CONFIG_FILE
from fp8pad.record import AxisActions, ConfigEdit, PaddedTensor, Policy

__all__ = ["Absorption", "absorb", "absorbable_sizes", "merged"]


@dataclass(frozen=True, slots=True)
class Absorption:
    """What absorbing settles.

    `tensors` are all tensors that grow: weights, biases and scales, FP8 or not. `refusals` maps the axes
    `(module, axis)` that were to be absorbed and are not to the reason. `notes` are sentences for the plan: costs,
    refusals, recommendations.
    """

    tensors: Mapping[str, PaddedTensor] = field(default_factory=dict)
    edits: tuple[ConfigEdit, ...] = ()
    refusals: Mapping[tuple[str, Axis], str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def absorb(
    governed: GovernedAxes, sections: Sequence[Section], linears: Sequence[Fp8Linear], policy: Policy
) -> Absorption:
    """Decide what to absorb in a checkpoint, given all inner sizes that its `sections` have.

    Raises `ConfigError` where a size in the config is not that of the tensors, and `PlanError` where tensors of one
    module do not fit together.
    """
    if not (policy.absorb or policy.absorb_experts):
        return Absorption()
    by_name = {linear.name: linear for linear in linears}
    outcomes = [_settle(size, by_name, policy) for size in governed.sizes]
    refused = tuple(outcome for outcome in outcomes if outcome.reason)
    padded: dict[str, PaddedTensor] = {}
    for outcome in outcomes:
        for name, tensor in outcome.tensors.items():
            padded[name] = merged(padded[name], tensor) if name in padded else tensor
    return Absorption(
        tensors=padded,
        edits=tuple(edit for outcome in outcomes for edit in outcome.edits),
        refusals=_refusals(refused, governed, sections, linears, policy),
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


def _settle(size: GovernedSize, linears: Mapping[str, Fp8Linear], policy: Policy) -> _Outcome:
    weights = [claim for claim in size.claims if claim.leaf == "weight"]
    if not any(claim.module in linears for claim in weights):
        return _Outcome(size)
    if not policy.absorb and not any(claim.mlp.experts for claim in weights):
        return _Outcome(size)
    check_sizes(size)
    if not any(_is_unaligned(claim, linears, policy) for claim in weights):
        return _Outcome(size)
    try:
        return _absorbed(size, linears, policy)
    except NotAbsorbableError as error:
        return _Outcome(size, reason=str(error))


def absorbable_sizes(
    governed: GovernedAxes, linears: Sequence[Fp8Linear], policy: Policy
) -> tuple[AbsorbableSize, ...]:
    """Return the inner sizes of FP8 weights that can be absorbed, if not for this policy's ranks then for others'."""
    by_name = {linear.name: linear for linear in linears}
    willing = replace(policy, absorb=True, absorb_experts=True)
    found = []
    for size in governed.sizes:
        with suppress(NotAbsorbableError, CheckpointError):
            if any(claim.module in by_name for claim in size.claims):
                check_sizes(size)
                found.append(_absorbable(size, by_name, willing))
    return tuple(found)


def _absorbable(size: GovernedSize, linears: Mapping[str, Fp8Linear], policy: Policy) -> AbsorbableSize:
    """Describe an inner size; `NotAbsorbableError` where anything stands in the way."""
    old = config_size(size)
    check_absorbable(size, policy)
    times = multipliers(size, old)
    for claim in size.claims:
        growth_of(claim, linears.get(claim.module), old * times[claim.mlp_id])
    weights = [claim for claim in size.claims if claim.leaf == "weight" and claim.module in linears]
    return AbsorbableSize(
        path=size.path,
        old=old,
        is_expert=any(claim.mlp.experts for claim in weights),
        governed={claim.module: (claim.axis, times[claim.mlp_id] * claim.num_segments) for claim in weights},
        alignments=frozenset(
            (_alignment(claim, linears[claim.module], policy), times[claim.mlp_id]) for claim in weights
        ),
        weight_bytes=sum(claim.tensor.num_bytes for claim in weights),
    )


def _absorbed(size: GovernedSize, linears: Mapping[str, Fp8Linear], policy: Policy) -> _Outcome:
    absorbable, most = _absorbable(size, linears, policy), policy.tensor_parallel_size
    padded_sizes = {ranks: absorbable.size_at(ranks) for ranks in range(1, most + 1) if most % ranks == 0}
    old, new = absorbable.old, padded_sizes[most]
    times = multipliers(size, old)
    tensors = {}
    for claim in size.claims:
        inner, padded_inner = old * times[claim.mlp_id], new * times[claim.mlp_id]
        growth = growth_of(claim, linears.get(claim.module), inner)
        if growth and (tensor := grown(claim, growth, inner, padded_inner)):
            tensors[claim.tensor.name] = tensor
    return _Outcome(size, None, tensors, tuple(_edits(size, old, new)), key_cost(size, old, padded_sizes, tensors))


def _edits(size: GovernedSize, old: int, new: int) -> Iterator[ConfigEdit]:
    yield ConfigEdit(CONFIG_FILE, size.path, old, new)
    yield from (ConfigEdit(CONFIG_FILE, size.section.dotted(key), old, new) for key in size.repeats)
    for path, mirror in size.section.mirrors:
        if size.key in mirror:
            yield ConfigEdit(CONFIG_FILE, f"{path}.{size.key}" if path else str(size.key), old, new)


def _alignment(claim: GovernedAxis, linear: Fp8Linear, policy: Policy) -> int:
    return alignment_of(linear, policy)[0 if claim.axis == "n" else 1]


def _is_unaligned(claim: GovernedAxis, linears: Mapping[str, Fp8Linear], policy: Policy) -> bool:
    linear = linears.get(claim.module)
    if linear is None:
        return False
    return (
        not claim.is_plain_weight
        or claim.inner_size % (_alignment(claim, linear, policy) * policy.tensor_parallel_size) != 0
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
        plain = [claim.tensor for claim in outcome.size.claims if claim.is_plain_weight]
        names = [tensor.name for tensor in plain if tensor.dtype in FLOAT_DTYPES and tensor.name in outcome.tensors]
        if names:
            yield (
                f"{outcome.size.path} also sizes {len(names)} weights that are not FP8, {names[0]} among them: a GPU "
                "may add their products in another order, which can change an answer's last digits"
            )


def _refusals(
    refused: Sequence[_Outcome],
    governed: GovernedAxes,
    sections: Sequence[Section],
    linears: Sequence[Fp8Linear],
    policy: Policy,
) -> dict[tuple[str, Axis], str]:
    reasons: dict[str, str] = {}
    for section in reversed(sections):
        if section.family is None:
            reason = f"no file in planning/families knows the model type {section.model_type}"
            reasons |= {linear.name: reason for linear in linears if linear.name.startswith(section.prefixes)}
    reasons |= governed.unabsorbable
    if policy.absorb_experts:
        described = governed.routed_experts
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
        refusals |= {(claim.module, claim.axis): outcome.sentence for claim in outcome.size.claims}
    return refusals
