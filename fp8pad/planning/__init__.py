"""Headers, config and policy in, a `CheckpointPlan` out: pure, without torch, files or tensor bytes."""

from collections.abc import Mapping, Sequence

from fp8pad.planning.architectures import architecture_of
from fp8pad.planning.layers import recognise
from fp8pad.planning.plan import CheckpointPlan, LayerPlan
from fp8pad.planning.quantization import CONFIG_FILE, find_quantization
from fp8pad.planning.settling import needs_runtime, padded_tensors, settle, with_rank_reason
from fp8pad.record import Json, ModuleRecord, PaddedTensor, Policy
from fp8pad.tensors import ShardHeader, tensor_bytes

__all__ = ["plan_checkpoint"]


def plan_checkpoint(shards: Sequence[ShardHeader], configs: Mapping[str, Json], policy: Policy) -> CheckpointPlan:
    """Decide what happens to every tensor of a checkpoint.

    `configs` maps file names to parsed JSON: config.json, and hf_quant_config.json where there is one. Raises
    `ConfigError` for a quantization config that cannot be read and `PlanError` for tensors that do not fit together.
    """
    tensors = {tensor.name: tensor for shard in shards for tensor in shard.tensors}
    quantization = find_quantization(configs)
    linears, untouched = recognise(tensors, quantization, configs[CONFIG_FILE])
    sections = architecture_of(configs[CONFIG_FILE])
    layers = tuple(
        with_rank_reason(settle(linear, policy), policy.tensor_parallel_size, sections) for linear in linears
    )
    padded: dict[str, PaddedTensor] = {}
    for linear, layer in zip(linears, layers, strict=True):
        padded.update(padded_tensors(linear, layer))
    bytes_before = sum(tensor.num_bytes for tensor in tensors.values())
    bytes_added = sum(
        tensor_bytes(tensors[name].dtype, tensor.padded_shape) - tensors[name].num_bytes
        for name, tensor in padded.items()
    )
    return CheckpointPlan(
        policy=policy,
        layers=layers,
        untouched=untouched,
        tensors=padded,
        modules={layer.name: _module(layer) for layer in layers if needs_runtime(layer, policy, sections)},
        config_edits=(),
        base=quantization.config if quantization else None,
        base_source=quantization.source if quantization else None,
        shards_rewritten=tuple(shard.file for shard in shards if any(t.name in padded for t in shard.tensors)),
        bytes_before=bytes_before,
        bytes_after=bytes_before + bytes_added,
    )


def _module(layer: LayerPlan) -> ModuleRecord:
    (logical_n, logical_k), (padded_n, padded_k) = layer.config_shape, layer.padded_shape
    return ModuleRecord((logical_n, logical_k), (padded_n, padded_k), layer.alignment)
