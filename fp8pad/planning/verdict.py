"""What an engine does with a checkpoint at a tensor-parallel size, as it is and as it will be converted."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import gcd

from fp8pad.planning.engines import OUTCOMES, Engine, Outcome, Rule
from fp8pad.planning.plan import CheckpointPlan, LayerPlan
from fp8pad.planning.tensor_parallel import Fit, RankPart, Shape
from fp8pad.record import quantization_method
from fp8pad.scales import PerBlock


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that an engine does with some layers, by module names, and why."""

    outcome: Outcome
    why: str
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an engine does with a checkpoint; layers that are served as they are have no finding."""

    findings: tuple[Finding, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """The worst that happens to a layer."""
        return max((finding.outcome for finding in self.findings), key=OUTCOMES.index, default="serves")

    @property
    def walls(self) -> tuple[Finding, ...]:
        """The findings for which the checkpoint cannot be used with the engine."""
        return tuple(finding for finding in self.findings if finding.outcome in ("refuses", "answers wrongly"))

    @property
    def refused(self) -> tuple[str, ...]:
        """The layers for which the checkpoint cannot be used with the engine."""
        return tuple(name for finding in self.walls for name in finding.layers)


def original_verdict(plan: CheckpointPlan, engine: Engine, num_ranks: int) -> Verdict:
    """Return what an engine does with the checkpoint that is to be converted, without fp8pad."""
    judge = _Judge(engine, num_ranks, *_kind(plan))
    return _verdict((layer.name, judge.stock(layer, layer.logical_matrix)) for layer in plan.layers)


def padded_verdict(plan: CheckpointPlan, engine: Engine, num_ranks: int) -> Verdict:
    """Return what an engine with fp8pad's plugin does with the padded checkpoint, whose record is for `num_ranks`."""
    judge = _Judge(engine, num_ranks, *_kind(plan))
    return _verdict((layer.name, judge.padded(layer, layer.logical_matrix)) for layer in plan.layers)


def converted_verdict(plan: CheckpointPlan, engine: Engine) -> Verdict:
    """Return what an engine does with the checkpoint that `plan` makes, at the plan's tensor-parallel size."""
    judge = _Judge(engine, plan.policy.tensor_parallel_size, *_kind(plan))
    rule_of = judge.padded if plan.needs_runtime else judge.stock
    return _verdict((layer.name, rule_of(layer, layer.matrix_shape)) for layer in plan.layers)


@dataclass(frozen=True, slots=True)
class _Judge:
    engine: Engine
    num_ranks: int
    method: str | None
    architectures: tuple[str, ...]

    def stock(self, layer: LayerPlan, shape: Shape) -> Rule | None:
        """The rule for a layer `(N, K)` that the engine meets as it is; None where it merely serves it."""
        part = layer.sharding.part(shape, self.num_ranks)
        fit = self._stock_fit(layer, part)
        return next((rule for rule in self.engine.rule if self._holds(rule, layer, part, fit)), None)

    def padded(self, layer: LayerPlan, shape: Shape) -> Rule | None:
        """The rule for a layer of a checkpoint that fp8pad's runtime loads, if it takes this layer at all."""
        if not layer.is_for_runtime:
            return self.stock(layer, shape)
        if not self.engine.has_runtime:
            return NO_RUNTIME
        return _RUNTIME.get(layer.fit_at(self.num_ranks, shape))

    def _stock_fit(self, layer: LayerPlan, part: RankPart) -> Fit:
        if layer.granularity is None:
            return "not assessed"
        if part.num_n is None or part.num_k is None:
            return "indivisible"
        if isinstance(layer.granularity, PerBlock):
            sharding, block = layer.sharding, layer.block
            if sharding.begins_inside_block(part, block):
                return "inside block"
            if sharding.ends_inside_block(part, block):
                return "ends inside block"
            return "unaligned" if part.num_k % block[1] else "aligned"
        return "aligned" if part.is_aligned((self.engine.multiple, self.engine.multiple)) else "unaligned"

    def _holds(self, rule: Rule, layer: LayerPlan, part: RankPart, fit: Fit) -> bool:
        granularity = layer.granularity.name if layer.granularity else None
        return (
            fit in rule.fits
            and ("expert" if layer.is_expert else "dense") in (rule.kinds or ("dense", "expert"))
            and granularity in (rule.scales or (granularity,))
            and self.method in (rule.methods or (self.method,))
            and (not rule.architectures or _matches(self.architectures, rule.architectures))
            and (not rule.modules or _matches((layer.name,), rule.modules))
            and gcd(*layer.block, *(part.rows or (part.num_n or 0,)), part.num_k or 0) >= (rule.finest_block or 0)
        )


NO_RUNTIME = Rule("refuses", "fp8pad has no plugin for this engine", "", "", ())
# What the runtime cannot help, wherever vLLM would split a layer.
_RUNTIME: dict[Fit, Rule] = {
    "indivisible": Rule("refuses", "a size that ranks cannot share evenly", "", "", ()),
    "inside block": Rule("refuses", "a rank's share would begin inside a scale block", "", "", ()),
}


def _kind(plan: CheckpointPlan) -> tuple[str | None, tuple[str, ...]]:
    return quantization_method(plan.base) if plan.base is not None else None, plan.architectures


def _matches(names: Iterable[str], patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _verdict(rules: Iterable[tuple[str, Rule | None]]) -> Verdict:
    layers: dict[tuple[Outcome, str], list[str]] = {}
    for name, rule in rules:
        if rule:
            layers.setdefault((rule.outcome, rule.why), []).append(name)
    return Verdict(tuple(Finding(*said, tuple(names)) for said, names in layers.items()))
