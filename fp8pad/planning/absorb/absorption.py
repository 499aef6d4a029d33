"""Absorbing: which config keys can be rounded up permanently, and how every tensor that they govern grows.

A key is absorbed completely or not at all. The entry point is `absorb`; it gives a reason for each key that it refuses,
and the layers concerned are padded as if absorbing had not been asked for. Added zeros do not change outputs: with zero
rows and zero biases in gate and up, the added activations are act(0) * 0 = 0 or act(0) = 0. They do not change the
maximum that dynamic activation scales are made of, and zero columns of down multiply them.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from fp8pad.errors import CheckpointError, PlanError
from fp8pad.padded import PaddedTensor
from fp8pad.planning.absorb.assessment import AlikeTensors, Assessment, assess
from fp8pad.planning.absorb.governed import FLOAT_DTYPES, GovernedAxes
from fp8pad.planning.alignment import alignment_of
from fp8pad.planning.families import Section
from fp8pad.planning.linear import Fp8Linear
from fp8pad.planning.linear_names import is_scale_name, module_name
from fp8pad.planning.plan import AbsorbableSize
from fp8pad.planning.tensor_parallel import SharedCount
from fp8pad.record import CONFIG_FILE, ConfigEdit, Policy

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class Absorption:
    """What absorbing changes.

    `tensors` are all tensors that grow: weights, biases and scales, FP8 or not. `refused` says why FP8 layers are not
    absorbed that were to be, `unabsorbed` why other modules cannot be, unless a note says it. `notes` are sentences for
    the plan. `absorbable` are the inner sizes that could be absorbed, asked for or not.
    """

    tensors: Mapping[str, PaddedTensor] = field(default_factory=dict)
    edits: tuple[ConfigEdit, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    unabsorbed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    absorbable: tuple[AbsorbableSize, ...] = ()


def absorb(
    governed_axes: GovernedAxes,
    sections: Sequence[Section],
    linears: Sequence[Fp8Linear],
    policy: Policy,
    neurons: Sequence[SharedCount] = (),
) -> Absorption:
    """Decide what to absorb in a checkpoint, given all inner sizes that its `sections` have; apply it if asked to.

    `neurons` are those of MLPs that are not FP8: their sizes are absorbed only if ranks cannot share them evenly.
    Raises `ConfigError` if a size that is to be absorbed is not that of the tensors (without absorbing, this is only a
    note), and `PlanError` if tensors of one module contradict each other.
    """
    is_asked = policy.absorb or policy.absorb_experts
    assumed = policy if is_asked else replace(policy, absorb=True, absorb_experts=True)
    assessed = _assessed(governed_axes, linears, policy, neurons)
    padded: dict[str, PaddedTensor] = {}
    edits: list[ConfigEdit] = []
    notes: list[str] = []
    refused: list[tuple[Assessment, str]] = []
    for each in assessed:
        if is_asked and not _is_asked_for(each, policy, neurons):
            continue
        if reason := _why_not(each, assumed):
            refused.append((each, reason))
        elif is_asked and each.absorbable:
            old, new = each.absorbable.old, each.absorbable.size_at(policy.tensor_parallel_size)
            for name, tensor in _grown_tensors(each, old, new):
                padded[name] = merged(padded[name], tensor) if name in padded else tensor
            edits += _edits(each, old, new)
            notes += _notes(each, old)
    if is_asked:
        notes += [*(reason for each, reason in refused if each.size.key), *_lora_notes(padded)]
    else:
        contradictions = [each.obstacle for each in assessed if isinstance(each.obstacle, CheckpointError)]
        notes += [f"{contradiction}; both are left unchanged" for contradiction in contradictions]
    reasons = _reasons(refused, governed_axes, sections, linears, assumed)
    layers = _refused_layers(reasons, linears, policy) if is_asked else {}
    return Absorption(
        tensors=padded,
        edits=tuple(edits),
        refused=layers,
        unabsorbed={
            name: why
            for name, of_axes in reasons.items()
            if (why := _joined(of_axes)) != layers.get(name) and why not in notes
        },
        notes=tuple(notes),
        absorbable=tuple(each.absorbable for each in assessed if each.absorbable),
    )


def _assessed(
    governed_axes: GovernedAxes, linears: Sequence[Fp8Linear], policy: Policy, neurons: Sequence[SharedCount]
) -> list[Assessment]:
    """Find out which sizes of FP8 MLPs, and of `neurons`, can be absorbed; `PlanError` as `absorb` raises it."""
    by_name = {linear.name: linear for linear in linears}
    others = {count.path for count in neurons}
    found = []
    for size in governed_axes.sizes:
        if size.path in others or any(governed.module in by_name for governed in size.axes):
            each = assess(size, by_name, policy)
            # MLPs that are not FP8 are ignored if they contradict the config.
            if each.has_fp8 or not isinstance(each.obstacle, CheckpointError):
                found.append(each)
    for each in found:
        if isinstance(each.obstacle, PlanError):  # within the tensors: a bias of another length
            raise each.obstacle
    return found


def merged(first: PaddedTensor, second: PaddedTensor) -> PaddedTensor:
    """Return one tensor that grows along one axis as `first` does and along the other as `second` does."""
    return replace(
        first,
        padded_shape=tuple(map(max, first.padded_shape, second.padded_shape)),
        axes=first.axes.and_then(second.axes),
        segments=first.segments or second.segments,
    )


def _is_asked_for(assessment: Assessment, policy: Policy, neurons: Sequence[SharedCount]) -> bool:
    """Return whether a policy wants a size absorbed; raise an error if the size is not that of the tensors."""
    if not policy.absorb and not assessment.size.has_experts:
        return False
    if isinstance(assessment.obstacle, CheckpointError):
        raise assessment.obstacle
    own = [count for count in neurons if count.path == assessment.size.path]
    return any(_is_unaligned(alike, policy) for alike in assessment.weights) or not all(
        count.is_shared_by(policy.tensor_parallel_size) for count in own
    )


def _is_unaligned(alike: AlikeTensors, policy: Policy) -> bool:
    if alike.linear is None:
        return False
    multiple = alike.multiple(policy) * policy.tensor_parallel_size
    return not alike.example.is_plain_weight or alike.example.inner_size % multiple != 0


def _why_not(assessment: Assessment, policy: Policy) -> str:
    """Return why a size is not absorbed, as a sentence with its key; empty if it is absorbed."""
    size, reason = assessment.size, str(assessment.obstacle or "")
    if not reason and size.has_experts and not policy.absorb_experts:
        too = "" if all(governed.mlp.experts for governed in size.axes) else " too"
        reason = f"it sizes the routed experts{too}, which are absorbed only with --absorb-experts"
    return f"{size.path} is not absorbed: {reason}" if reason and size.key else reason


def _grown_tensors(assessment: Assessment, old: int, new: int) -> Iterator[tuple[str, PaddedTensor]]:
    """Yield each tensor that grows with a size, as it will be, in the order of the checkpoint."""
    found: dict[str, PaddedTensor] = {}
    for alike in assessment.tensors:
        if tensor := alike.grown(old, new):
            found |= {governed.tensor.name: tensor for governed in alike.members}
    names = (governed.tensor.name for governed in assessment.size.axes)
    return ((name, found[name]) for name in names if name in found)


def _notes(assessment: Assessment, old: int) -> Iterator[str]:
    """Yield a note if a key is added to config.json, and one if weights that are not FP8 grow too."""
    size = assessment.size
    if size.section.config.get(size.key or "") is None:
        yield f"{size.path} is not in {CONFIG_FILE}, so that it has its default, {old}; it is added"
    alike = [each for each in assessment.weights if each.example.tensor.dtype in FLOAT_DTYPES]
    names = [governed.tensor.name for each in alike for governed in each.members]
    if names:  # libraries choose the order of additions by size
        also = "also " if assessment.has_fp8 else ""
        yield (
            f"{size.path} {also}sizes {len(names)} weights that are not FP8, such as {names[0]}: "
            "a GPU may sum their products in another order, which can change the last digits of an output"
        )


def _edits(assessment: Assessment, old: int, new: int) -> Iterator[ConfigEdit]:
    section, key = assessment.size.section, assessment.size.key or ""
    sizes = {section.dotted(other): section.config.get(other) for other in (key, *assessment.size.repeats)}
    sizes |= {f"{path}.{key}" if path else key: mirror[key] for path, mirror in section.mirrors if key in mirror}
    for path, value in sizes.items():
        places = [f"{path}.{place}" for place in range(len(value))] if isinstance(value, list) else [path]
        yield from (ConfigEdit(CONFIG_FILE, place, old, new) for place in places)


def _lora_notes(padded: Iterable[str]) -> Iterator[str]:
    """Yield a note on the LoRA adapters that no longer fit: those of modules whose sizes change in the config."""
    weights = (module_name(name) for name in padded if not is_scale_name(name) and not name.endswith("bias"))
    if patterns := dict.fromkeys(_NUMBER.sub("*", module) for module in weights):
        yield f"LoRA adapters trained on the original do not fit the absorbed modules: {', '.join(patterns)}"


def _refused_layers(
    reasons: Mapping[str, tuple[str, str]], linears: Sequence[Fp8Linear], policy: Policy
) -> dict[str, str]:
    """Return why layers are not absorbed of which a size should be: experts, and others that are not aligned."""
    refused = {}
    for linear in linears:
        if linear.name in reasons:
            axes = zip(reasons[linear.name], linear.shape[-2:], alignment_of(linear, policy), strict=True)
            ranks = policy.tensor_parallel_size
            refused[linear.name] = _joined(
                why for why, size, multiple in axes if linear.is_expert or size % (multiple * ranks)
            )
    return refused


def _joined(reasons: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(filter(None, reasons)))


def _reasons(
    refused: Sequence[tuple[Assessment, str]],
    governed_axes: GovernedAxes,
    sections: Sequence[Section],
    linears: Sequence[Fp8Linear],
    policy: Policy,
) -> dict[str, tuple[str, str]]:
    """Return why N and K of modules cannot be absorbed; empty where nothing is known against it."""
    reasons: dict[str, str] = {}
    for section in reversed(sections):
        if section.family is None:
            reason = f"no file in planning/families describes the model type {section.model_type}"
            reasons |= {linear.name: reason for linear in linears if linear.name.startswith(section.prefixes)}
    reasons |= governed_axes.unabsorbable
    if policy.absorb_experts:
        unknown = "no file in planning/families describes these experts"
        reasons |= {
            linear.name: unknown
            for linear in linears
            if linear.is_expert and linear.name not in governed_axes.modules and linear.name not in reasons
        }
    of_axes = {name: (reason, reason) for name, reason in reasons.items()}
    for assessment, reason in refused:
        for governed in assessment.size.axes:
            of_n, of_k = of_axes.get(governed.module, ("", ""))
            of_axes[governed.module] = (reason, of_k) if governed.axis == "n" else (of_n, reason)
    return of_axes
