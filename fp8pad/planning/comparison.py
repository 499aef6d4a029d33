"""What an engine does at each tensor-parallel size with a checkpoint as it is, padded, and absorbed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fp8pad.errors import CheckpointError
from fp8pad.planning import plan_checkpoint
from fp8pad.planning.engines import Engine
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.planning.verdict import Verdict, converted_verdict, original_verdict, padded_verdict
from fp8pad.record import Json
from fp8pad.tensors import ShardHeader

SIZES = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class Absorbed:
    """What absorbing for a tensor-parallel size gives, and the bytes of tensors that it adds.

    `needs_runtime` says that something is left to pad.
    """

    verdict: Verdict
    added_bytes: int
    needs_runtime: bool


@dataclass(frozen=True, slots=True)
class AtSize:
    """What an engine does with a checkpoint at a tensor-parallel size; `absorbed` is None where nothing can be."""

    num_ranks: int
    original: Verdict
    padded: Verdict
    absorbed: Absorbed | None


def compare_sizes(
    shards: Sequence[ShardHeader],
    configs: Mapping[str, Json],
    plan: CheckpointPlan,
    engine: Engine,
    sizes: Sequence[int] = SIZES,
) -> Iterator[AtSize]:
    """Yield what `engine` does at each size; a size at which it serves the original needs no conversion."""
    for num_ranks in sizes:
        original = original_verdict(plan, engine, num_ranks)
        absorbed = _absorbed(shards, configs, plan, engine, num_ranks) if original.findings else None
        yield AtSize(num_ranks, original, padded_verdict(plan, engine, num_ranks), absorbed)


def _absorbed(
    shards: Sequence[ShardHeader], configs: Mapping[str, Json], plan: CheckpointPlan, engine: Engine, num_ranks: int
) -> Absorbed | None:
    """Absorb the MLPs, and the routed experts too if that alone does not help."""
    for experts in dict.fromkeys((plan.policy.absorb_experts, True)):
        policy = replace(plan.policy, absorb=True, absorb_experts=experts, tensor_parallel_size=num_ranks)
        try:
            absorbing = plan if policy == plan.policy else plan_checkpoint(shards, configs, policy)
        except CheckpointError:  # a config that only absorbing reads, and that disagrees with the tensors
            return None
        verdict = converted_verdict(absorbing, engine)
        if absorbing.config_edits and not verdict.refused:
            return Absorbed(verdict, absorbing.bytes_after - absorbing.bytes_before, absorbing.needs_runtime)
    return None
