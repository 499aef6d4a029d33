"""What an engine does at each tensor-parallel size with a checkpoint as it is, padded, and absorbed."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from fp8pad.planning.engines import OUTCOMES, Engine
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.planning.verdict import Judge, Verdict

SIZES = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class Growth:
    """One inner size as absorbing would make it, and the FP8 weights that this adds, in bytes."""

    key: str
    old: int
    new: int
    added_bytes: int


@dataclass(frozen=True, slots=True)
class Absorbed:
    """What an engine does with an absorbed checkpoint: with the routed experts absorbed or without, and at what cost.

    `needs_runtime` says that something is left to pad.
    """

    verdict: Verdict
    experts: bool
    needs_runtime: bool
    growths: tuple[Growth, ...]

    @property
    def added_bytes(self) -> int:
        """The FP8 weights that absorbing adds, in bytes."""
        return sum(growth.added_bytes for growth in self.growths)

    def to_json(self) -> dict[str, Any]:
        """Return what `fp8pad plan --json` says of it."""
        return {
            **_verdict_document(self.verdict),
            "absorb_experts": self.experts,
            "needs_runtime": self.needs_runtime,
            "sizes": [asdict(growth) for growth in self.growths],
        }


@dataclass(frozen=True, slots=True)
class AtSize:
    """What an engine does with a checkpoint at a tensor-parallel size.

    `padded` and `absorbed` are what converting for this size makes of it; `absorbed` is None where that does not help.
    """

    num_ranks: int
    original: Verdict
    padded: Verdict
    absorbed: Absorbed | None

    def to_json(self) -> dict[str, Any]:
        """Return what `fp8pad plan --json` says of this size."""
        return {
            "tensor_parallel_size": self.num_ranks,
            "original": _verdict_document(self.original),
            "padded": _verdict_document(self.padded),
            "absorbed": self.absorbed.to_json() if self.absorbed else None,
        }


def compare_sizes(plan: CheckpointPlan, engine: Engine, sizes: Iterable[int] = SIZES) -> Iterator[AtSize]:
    """Yield what `engine` does at each size; a size at which it serves the original needs no absorbing."""
    judge = Judge(plan, engine)
    for num_ranks in sizes:
        original, (padded, _) = judge.original(num_ranks), judge.padded(num_ranks)
        yield AtSize(num_ranks, original, padded, _best(plan, judge, num_ranks) if original.findings else None)


def absorbed_at(plan: CheckpointPlan, engine: Engine, num_ranks: int, experts: bool) -> Absorbed:
    """Return what an engine does where inner sizes are absorbed for `num_ranks`, with routed experts or without."""
    return _absorbed(plan, Judge(plan, engine), num_ranks, experts)


def _best(plan: CheckpointPlan, judge: Judge, num_ranks: int) -> Absorbed | None:
    """Absorb the MLPs, and the routed experts only where that is better."""
    dense, both = (_absorbed(plan, judge, num_ranks, experts) for experts in (False, True))
    gains = OUTCOMES.index(both.verdict.outcome) < OUTCOMES.index(dense.verdict.outcome)
    best = both if gains or not dense.growths else dense
    return best if best.growths and not best.verdict.refused else None


def _absorbed(plan: CheckpointPlan, judge: Judge, num_ranks: int, experts: bool) -> Absorbed:
    sizes = {
        place: size.size_at(num_ranks) for place, size in enumerate(plan.absorbable) if experts or not size.is_expert
    }
    growths = tuple(
        Growth(size.path, size.old, new, size.weight_bytes * (new - size.old) // size.old)
        for size, new in ((plan.absorbable[place], new) for place, new in sizes.items())
        if new > size.old
    )
    verdict, needs_runtime = judge.padded(num_ranks, sizes)
    return Absorbed(verdict, experts, needs_runtime, growths)


def _verdict_document(verdict: Verdict) -> dict[str, Any]:
    findings = [
        {"outcome": each.outcome, "why": each.why, "num_layers": len(each.layers), "first": each.layers[0]}
        for each in verdict.findings
    ]
    return {"outcome": verdict.outcome, "findings": findings}
