"""What other tensor-parallel sizes would meet in the converted checkpoint, and the options that help."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from fp8pad.errors import CheckpointError
from fp8pad.geometry import is_aligned
from fp8pad.planning import plan_checkpoint
from fp8pad.planning.engines import Engine
from fp8pad.planning.plan import CheckpointPlan, LayerPlan
from fp8pad.planning.verdict import converted_verdict
from fp8pad.record import Json, Policy
from fp8pad.tensors import ShardHeader


@dataclass(frozen=True, slots=True)
class RankOutlook:
    """What a tensor-parallel size would meet in the converted checkpoint, by module names.

    `unaligned` layers have a size on a rank that is not a multiple of their alignment; `indivisible` ones cannot be
    split evenly, which engines refuse. `inside_block` are the block-scaled layers that no padding at load helps,
    unaligned or not: a fused one may be aligned though its matrices are not. `not_assessed` are layers whose scales are
    not understood.
    """

    tensor_parallel_size: int
    unaligned: tuple[str, ...] = ()
    indivisible: tuple[str, ...] = ()
    inside_block: tuple[str, ...] = ()
    not_assessed: tuple[str, ...] = ()

    @property
    def is_clear(self) -> bool:
        """Whether every layer that is understood is aligned on every rank, and every matrix of a block-scaled one."""
        return not (self.unaligned or self.indivisible or self.inside_block)


def outlook(layers: Sequence[LayerPlan], sizes: Sequence[int] = (2, 4, 8)) -> tuple[RankOutlook, ...]:
    """Return what each tensor-parallel size would meet, for the FP8 Linears of a plan."""
    return tuple(_at(layers, size) for size in sizes)


def remedy(shards: Sequence[ShardHeader], configs: Mapping[str, Json], plan: CheckpointPlan) -> Policy | None:
    """Return the policy that absorbs for the largest of TP 2, 4 and 8 that meets sizes it cannot use.

    None if all is well, or if absorbing would settle nothing of it. Without trouble at other sizes, it is that of the
    plan's own size, where layers are left unaligned. Routed experts are absorbed only if nothing else helps.
    """
    if plan.policy.absorb:
        return None
    troubled = [at.tensor_parallel_size for at in outlook(plan.layers) if not at.is_clear]
    if any(_is_left_unaligned(layer) for layer in plan.layers):
        troubled.append(plan.policy.tensor_parallel_size)
    for experts in (False, True) if troubled else ():
        policy = replace(plan.policy, absorb=True, absorb_experts=experts, tensor_parallel_size=max(troubled))
        try:
            if plan_checkpoint(shards, configs, policy).config_edits:
                return policy
        except CheckpointError:  # a config that only absorbing reads, and that disagrees with the tensors
            return None
    return None


def way_out(
    shards: Sequence[ShardHeader], configs: Mapping[str, Json], plan: CheckpointPlan, engine: Engine
) -> Policy | None:
    """Return the policy nearest to the plan's own whose checkpoint `engine` does not refuse; None if there is none.

    Absorbing comes first, with the routed experts only where it takes that, then fewer ranks.
    """
    policy, size = plan.policy, plan.policy.tensor_parallel_size
    absorbing = (replace(policy, absorb=True), replace(policy, absorb=True, absorb_experts=True))
    fewer = (replace(policy, tensor_parallel_size=ranks) for ranks in range(size - 1, 0, -1) if size % ranks == 0)
    for other in (*absorbing, *fewer):
        try:
            other_plan = plan_checkpoint(shards, configs, other) if other != policy else plan
        except CheckpointError:  # a config that only absorbing reads, and that disagrees with the tensors
            continue
        if not converted_verdict(other_plan, engine).refused:
            return other
    return None


def _at(layers: Iterable[LayerPlan], size: int) -> RankOutlook:
    unaligned, indivisible, inside_block, not_assessed = [], [], [], []
    for layer in layers:
        match layer.fit_at(size):
            case "not assessed":
                not_assessed.append(layer.name)
                continue
            case "indivisible":
                indivisible.append(layer.name)
                continue
            case "inside block":
                inside_block.append(layer.name)
        if not layer.part(size).is_aligned(layer.alignment):
            unaligned.append(layer.name)
    return RankOutlook(size, *map(tuple, (unaligned, indivisible, inside_block, not_assessed)))


def _is_left_unaligned(layer: LayerPlan) -> bool:
    return "skip" in (layer.axes.n, layer.axes.k) and not is_aligned(layer.logical_shape[-2:], layer.alignment)
