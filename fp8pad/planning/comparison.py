"""What an engine does with each form of a checkpoint at several tensor-parallel sizes, and what helps."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from fp8pad.errors import NotServedError
from fp8pad.planning.engines import OUTCOMES, Outcome
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.planning.verdict import Judge, Verdict
from fp8pad.record import Policy

SIZES = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class Growth:
    """One inner size before and after absorbing, and the bytes of FP8 weights that this adds."""

    key: str
    old: int
    new: int
    added_bytes: int


@dataclass(frozen=True, slots=True)
class Absorbed:
    """What an engine does with an absorbed checkpoint, whether the routed experts are absorbed too, and the cost.

    `needs_runtime` says whether something is left to pad; `added_bytes` is what tensors grow by, absorbed and padded.
    """

    verdict: Verdict
    experts: bool
    needs_runtime: bool
    growths: tuple[Growth, ...]
    added_bytes: int

    def costs_the_same(self, plan: CheckpointPlan) -> bool:
        """Return whether absorbing adds no more to a checkpoint than the plan does, up to a thousandth of its size."""
        return self.added_bytes - (plan.bytes_after - plan.bytes_before) <= plan.bytes_before // 1000

    def to_json(self) -> dict[str, Any]:
        """Return what `fp8pad plan --json` says about it."""
        return {
            **_verdict_document(self.verdict),
            "absorb_experts": self.experts,
            "needs_runtime": self.needs_runtime,
            "added_bytes": self.added_bytes,
            "sizes": [asdict(growth) for growth in self.growths],
        }


@dataclass(frozen=True, slots=True)
class AtSize:
    """What an engine does with a checkpoint at a tensor-parallel size.

    `padded` and `absorbed` are about checkpoints converted for this size; `absorbed` is None if absorbing is of no use.
    `refused` is the verdict on an absorbed checkpoint if the engine refuses it.
    """

    num_ranks: int
    original: Verdict
    padded: Verdict
    absorbed: Absorbed | None
    refused: Verdict | None = None

    @property
    def is_helped(self) -> bool:
        """Whether the engine does better with a checkpoint converted for this size, padded or absorbed."""
        made = [self.padded, *([self.absorbed.verdict] if self.absorbed else [])]
        return min(OUTCOMES.index(verdict.outcome) for verdict in made) < OUTCOMES.index(self.original.outcome)

    def to_json(self) -> dict[str, Any]:
        """Return what `fp8pad plan --json` says about this size; `absorbed_refused` is omitted if it has no value."""
        return {
            "tensor_parallel_size": self.num_ranks,
            "original": _verdict_document(self.original),
            "padded": _verdict_document(self.padded),
            "absorbed": self.absorbed.to_json() if self.absorbed else None,
            **({"absorbed_refused": _verdict_document(self.refused)} if self.refused else {}),
        }


def compare_sizes(judge: Judge, sizes: Iterable[int] = ()) -> Iterator[AtSize]:
    """Yield what the engine does at each size; absorbing is not considered if it serves the original as it is.

    Without `sizes`, these are the usual ones and the plan's own.
    """
    for num_ranks in sizes or sorted({*SIZES, judge.plan.policy.tensor_parallel_size}):
        original, (padded, _) = judge.original(num_ranks), judge.padded(num_ranks)
        best = _best(judge, num_ranks) if original.findings else None
        refused = best.verdict if best and best.verdict.refused else None
        yield AtSize(num_ranks, original, padded, None if refused else best, refused)


def nearest_served_policy(judge: Judge) -> Policy | None:
    """Return the policy nearest to the plan's own whose checkpoint is not refused; None if there is none.

    At its own size padding alone is tried first, then absorbing, without the routed experts before with them; then the
    same at each smaller size, the largest first, as the plan asks before that.
    """
    policy, size = judge.plan.policy, judge.plan.policy.tensor_parallel_size
    fewer = [replace(policy, tensor_parallel_size=ranks) for ranks in range(size - 1, 0, -1) if size % ranks == 0]
    nearest = [*_alternatives(policy), *(each for asked in fewer for each in (asked, *_alternatives(asked)))]
    return next((policy for policy in nearest if not converted_by(policy, judge)[0].refused), None)


def check_worth_converting(judge: Judge) -> None:
    """Raise `NotServedError` if the engine is known to refuse the plan's checkpoint, but not every alternative.

    Alternatives are another policy's checkpoint and the original. If it refuses all of them, converting makes nothing
    worse, and the checkpoint may be for another engine. A method that the engine takes with an option is no reason.
    """
    try:
        judge.check_served()
    except NotServedError:
        if all(each.about == "method" for each in judge.converted.refusals):
            return
        if not judge.original(judge.plan.policy.tensor_parallel_size).refused or nearest_served_policy(judge):
            raise


def _alternatives(policy: Policy) -> list[Policy]:
    asked = (False, False), (True, False), (True, True)
    return [replace(policy, absorb=absorb, absorb_experts=experts) for absorb, experts in asked]


def converted_by(policy: Policy, judge: Judge) -> tuple[Verdict, bool]:
    """Return what the engine does with the checkpoint that another policy makes, and whether that is not the original.

    The tensor-parallel size is that policy's.
    """
    ranks = policy.tensor_parallel_size
    if policy.absorb or policy.absorb_experts:
        absorbed = absorbed_at(judge, ranks, policy.absorb_experts)
        return absorbed.verdict, absorbed.needs_runtime or bool(absorbed.growths)
    return judge.padded(ranks)


def better_absorbed(plan: CheckpointPlan, at: AtSize, made: Outcome) -> tuple[Absorbed, Policy] | None:
    """Return what absorbing more gives at the size that `at` is about, and the policy; None if not better.

    `made` is what the engine does there with the checkpoint that the plan makes, or with the original. The same outcome
    without the plugin is better if it costs the same.
    """
    if (absorbed := at.absorbed) is None:
        return None
    policy = replace(plan.policy, tensor_parallel_size=at.num_ranks, absorb=True, absorb_experts=absorbed.experts)
    gained = OUTCOMES.index(made) - OUTCOMES.index(absorbed.verdict.outcome)
    spares_plugin = plan.needs_runtime and not absorbed.needs_runtime and absorbed.costs_the_same(plan)
    is_better = gained > 0 or (gained == 0 and spares_plugin)
    return (absorbed, policy) if is_better and policy != plan.policy else None


def _best(judge: Judge, num_ranks: int) -> Absorbed | None:
    """Return what absorbing gives, with the routed experts only if that is better; None if nothing would grow."""
    dense, both = (absorbed_at(judge, num_ranks, experts) for experts in (False, True))
    gains = OUTCOMES.index(both.verdict.outcome) < OUTCOMES.index(dense.verdict.outcome)
    best = both if gains or not dense.growths else dense
    return best if best.growths else None


def absorbed_at(judge: Judge, num_ranks: int, experts: bool) -> Absorbed:
    """Return what an engine does if inner sizes are absorbed for `num_ranks`, with or without routed experts."""
    absorbed = [(size, size.size_at(num_ranks)) for size in judge.plan.absorbable if experts or not size.is_expert]
    growths = tuple(
        Growth(size.path, size.old, new, size.weight_bytes * (new - size.old) // size.old)
        for size, new in absorbed
        if new > size.old
    )
    grown = {size.path: (size.old, new) for size, new in absorbed}
    verdict, needs_runtime = judge.padded(num_ranks, grown)
    return Absorbed(verdict, experts, needs_runtime, growths, judge.added_bytes(grown))


def _verdict_document(verdict: Verdict) -> dict[str, Any]:
    findings = [
        {"outcome": each.outcome, "why": each.why, "num_layers": len(each.layers), "first": each.layers[0]}
        for each in verdict.findings
    ]
    return {"outcome": verdict.outcome, "findings": findings}
