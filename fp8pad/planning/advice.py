"""What keeps layers of a converted checkpoint from other tensor-parallel sizes, and the options that help."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from fp8pad.planning.comparison import absorbed_at
from fp8pad.planning.engines import Engine
from fp8pad.planning.plan import CheckpointPlan, LayerPlan
from fp8pad.planning.verdict import padded_verdict
from fp8pad.record import Policy


@dataclass(frozen=True, slots=True)
class SizeProblems:
    """The layers of a converted checkpoint that do not fit a tensor-parallel size, by module names.

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


def problems_at_sizes(layers: Sequence[LayerPlan], sizes: Sequence[int] = (2, 4, 8)) -> tuple[SizeProblems, ...]:
    """Return the layers of a plan that do not fit, for each tensor-parallel size."""
    return tuple(_at(layers, size) for size in sizes)


def nearest_served_policy(plan: CheckpointPlan, engine: Engine) -> Policy | None:
    """Return the policy nearest to the plan's own whose checkpoint `engine` does not refuse; None if there is none.

    Absorbing comes first, with the routed experts only where it takes that, then fewer ranks.
    """
    policy, size = plan.policy, plan.policy.tensor_parallel_size
    for experts in (False, True):
        if not absorbed_at(plan, engine, size, experts).verdict.refused:
            return replace(policy, absorb=True, absorb_experts=experts)
    fewer = (ranks for ranks in range(size - 1, 0, -1) if size % ranks == 0)
    served = (ranks for ranks in fewer if not padded_verdict(plan, engine, ranks).refused)
    found = next(served, None)
    return replace(policy, tensor_parallel_size=found) if found else None


def _at(layers: Iterable[LayerPlan], size: int) -> SizeProblems:
    found: dict[str, list[str]] = {"unaligned": [], "indivisible": [], "inside_block": [], "not_assessed": []}
    known: dict[object, list[str]] = {}
    for layer in layers:
        key = layer.sharding, layer.config_shape, layer.granularity, layer.alignment, layer.inner
        if key not in known:
            known[key] = list(_problems(layer, size))
        for problem in known[key]:
            found[problem].append(layer.name)
    return SizeProblems(size, **{problem: tuple(names) for problem, names in found.items()})


def _problems(layer: LayerPlan, size: int) -> Iterator[str]:
    fit = layer.fit_at(size)
    if fit in ("not assessed", "indivisible", "inside block"):
        yield fit.replace(" ", "_")
    if fit not in ("not assessed", "indivisible") and not layer.part(size).is_aligned(layer.alignment):
        yield "unaligned"
