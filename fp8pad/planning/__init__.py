"""Headers, config and policy in, a `CheckpointPlan` out: pure, without torch, files or tensor bytes."""

import difflib
import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache

from fp8pad.errors import PlanError, UsageError
from fp8pad.padded import PaddedTensor
from fp8pad.planning.absorb.absorption import Absorption, absorb, merged
from fp8pad.planning.absorb.inner import inner_axes, shared_neurons
from fp8pad.planning.absorb.matching import find_governed
from fp8pad.planning.contradictions import check_consistent
from fp8pad.planning.families import sections_of
from fp8pad.planning.layers import recognise
from fp8pad.planning.left_alone import left_alone
from fp8pad.planning.linear import Fp8Linear, Layer
from fp8pad.planning.linear_names import module_name
from fp8pad.planning.padding import padded_tensors, plan_layers, runtime_layers
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.planning.quantization import find_quantization
from fp8pad.planning.tensor_parallel import shardings, shared_counts
from fp8pad.quantization_config import ModuleRecord
from fp8pad.record import CONFIG_FILE, Json, Policy
from fp8pad.tensors import ShardHeader, TensorHeader, tensor_bytes
from fp8pad.text import matches

_module = lru_cache(ModuleRecord)  # many layers are equal


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause the garbage collector: a plan has no cycles, and a million objects make collecting half of the work."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@_collector_paused()
def plan_checkpoint(shards: Sequence[ShardHeader], configs: Mapping[str, Json], policy: Policy) -> CheckpointPlan:
    """Decide what happens to every tensor of a checkpoint.

    `configs` maps file names to parsed JSON: config.json, and hf_quant_config.json if there is one. Raises
    `ConfigError` for a quantization config that cannot be read and `PlanError` for tensors that do not fit together.
    """
    config = configs[CONFIG_FILE]
    tensors = {tensor.name: tensor for shard in shards for tensor in shard.tensors}
    quantization = find_quantization(configs)
    sections = sections_of(config)
    governed = find_governed(sections, tensors)
    recognised, untouched = recognise(tensors, quantization, config, governed.modules)
    linears = tuple(left_alone(recognised, policy.skip, quantization, _architectures(config)))
    check_consistent(tensors, linears, quantization)
    _check_skip(tensors, policy)
    neurons = tuple(shared_neurons(governed, {linear.name for linear in linears}))
    absorption = absorb(governed, sections, linears, policy, neurons)
    shapes = {linear.name: (linear.shape[-2], linear.shape[-1]) for linear in linears}
    how = shardings(shapes, sections, governed.modules, governed.divided)
    layers = tuple(plan_layers(linears, policy, how, absorption, inner_axes(governed, linears)))
    padded = _all_tensors(linears, layers, absorption)
    bytes_before = sum(tensor.num_bytes for tensor in tensors.values())
    bytes_after = bytes_before + sum(
        tensor_bytes(tensors[name].dtype, tensor.padded_shape) - tensors[name].num_bytes
        for name, tensor in padded.items()
    )
    return CheckpointPlan(
        policy=policy,
        layers=layers,
        untouched=untouched,
        tensors=padded,
        modules={
            name: _module(layer.config_shape, layer.padded_shape, layer.alignment, layer.inner)
            for name, layer in runtime_layers(layers)
        },
        config_edits=absorption.edits,
        base=quantization.config if quantization else None,
        base_source=quantization.source if quantization else None,
        shards_rewritten=tuple(shard.file for shard in shards if any(t.name in padded for t in shard.tensors)),
        bytes_before=bytes_before,
        bytes_after=bytes_after,
        notes=(*(quantization.notes if quantization else ()), *absorption.notes),
        architectures=_architectures(config),
        absorbable=absorption.absorbable,
        unabsorbed=absorption.unabsorbed,
        shared_counts=(*shared_counts(config), *neurons),
    )


def check_understood(plan: CheckpointPlan) -> None:
    """Raise `PlanError` if FP8 weights are carried unchanged because fp8pad cannot tell what they are."""
    if unknown := plan.not_understood:
        count = "1 FP8 layer is" if len(unknown) == 1 else f"{len(unknown)} FP8 layers are"
        raise PlanError(f"{count} not understood: {'; '.join(f'{name}: {reason}' for name, reason in unknown[:3])}")


def _check_skip(tensors: Mapping[str, TensorHeader], policy: Policy) -> None:
    modules = {module_name(name) for name in tensors} if policy.skip else ()
    for pattern in policy.skip:
        if not matches(modules, (pattern,)):
            names = {module.rpartition(".")[2] for module in modules}
            close = difflib.get_close_matches(pattern.rpartition(".")[2], names, n=1)
            tried = (f"*{pattern}", f"{pattern}.*", f"*{pattern}.*", *(f"*.{name}" for name in close))
            found = next((wider for wider in tried if matches(modules, (wider,))), None)
            hint = f"; did you mean '{found}'?" if found else ""
            raise UsageError(f"--skip {pattern}: no module has this name, and patterns match whole names{hint}")


def _all_tensors(
    linears: Sequence[Fp8Linear], layers: Sequence[Layer], absorption: Absorption
) -> dict[str, PaddedTensor]:
    tensors = dict(absorption.tensors)
    shared: dict[PaddedTensor, PaddedTensor] = {}  # many tensors share a few dozen shapes
    for linear, (_, layer) in zip(linears, layers, strict=True):
        for name, tensor in padded_tensors(linear, layer):
            found = merged(tensors[name], tensor) if name in tensors else tensor
            tensors[name] = shared.setdefault(found, found)
    return tensors


def _architectures(config: Json) -> tuple[str, ...]:
    names = config.get("architectures")
    return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()
