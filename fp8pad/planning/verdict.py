"""What an engine does with a checkpoint at a tensor-parallel size, as it is and as it will be converted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

from fp8pad.errors import NotServedError
from fp8pad.geometry import is_aligned
from fp8pad.planning.engines import OUTCOMES, Engine, Outcome, Said
from fp8pad.planning.linear import LayerPlan
from fp8pad.planning.linear_names import module_name
from fp8pad.planning.plan import AlikeLayers, CheckpointPlan
from fp8pad.planning.quantization import is_weight_only, method_of_rules
from fp8pad.planning.sharding import Fit, RankPart, Shape
from fp8pad.planning.tensor_parallel import Sizes
from fp8pad.scales import PerBlock
from fp8pad.text import counted, matches


@dataclass(frozen=True, slots=True)
class Finding(Said):
    """What an engine does with some layers, by module names, and why; unknown weights have tensor names.

    A finding about the whole model, such as that ranks cannot share its heads, lists all its FP8 layers.
    """

    layers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an engine does with a checkpoint; layers that are served as they are have no finding."""

    findings: tuple[Finding, ...] = ()

    @property
    def outcome(self) -> Outcome:
        """The worst that happens to a layer."""
        return max((finding.outcome for finding in self.findings), key=OUTCOMES.index, default="serves")

    @property
    def refusals(self) -> tuple[Finding, ...]:
        """The findings for which the checkpoint cannot be used with the engine."""
        return tuple(finding for finding in self.findings if finding.outcome in ("refuses", "answers wrongly"))

    @property
    def refused(self) -> tuple[str, ...]:
        """The layers for which the checkpoint cannot be used with the engine."""
        return tuple(dict.fromkeys(name for finding in self.refusals for name in finding.layers))


class Judge:
    """What one engine does with one plan's checkpoint; a group of equal layers is assessed once."""

    def __init__(self, plan: CheckpointPlan, engine: Engine) -> None:
        self.plan, self.engine = plan, engine
        method, weight_only = method_of_rules(plan.base), is_weight_only(plan.base)
        self._rules = [
            rule
            for rule in engine.rule
            if rule.is_about(method, plan.architectures) and rule.weight_only in (None, weight_only)
        ]
        self._indivisible = engine.indivisible.said if engine.indivisible else None
        of_method = next((rule for rule in engine.method if method in rule.methods), None)
        self._of_method = Said(of_method.outcome, of_method.why, "method") if of_method else None
        is_known = method is None or method in engine.methods
        self._unknown_method = None if is_known else Said(engine.unknown_method, UNKNOWN_METHOD, "model")
        absent = [each.modules for each in engine.unloaded if matches(plan.architectures, each.architectures)]
        unloaded = [pattern for modules in absent for pattern in modules]
        patterns = sorted({*unloaded, *(pattern for rule in self._rules for pattern in rule.modules)})
        groups = (part for group in plan.alike for part in _by_name(group, plan, patterns))
        # Findings are about loaded layers only. Whether the plugin is needed depends on all layers, loaded or not.
        self._groups = [group for group in groups if not matches((self._name(group),), unloaded)]
        by_model = [pattern for rule in self._rules if rule.left_to_model for pattern in rule.modules]
        unknown = (tensor.name for tensor in plan.untouched if not tensor.is_understood)
        self._unknown = tuple(name for name in unknown if not matches((module_name(name),), unloaded))
        counts = plan.shared_counts
        self._counts = [count for count in counts if not matches((count.module,), [*unloaded, *by_model])]

    @cached_property
    def converted(self) -> Verdict:
        """What the engine does with the checkpoint that the plan makes, at the plan's tensor-parallel size."""
        return self.verdict(self.plan.grown, self.plan.policy.tensor_parallel_size, self.plan.needs_runtime)

    def check_served(self) -> None:
        """Raise `NotServedError` if the engine is known to refuse what the plan makes, at the plan's TP size."""
        if refused := self.converted.refused:
            cause = self.converted.refusals[0]
            layers = f"{counted(len(refused), 'layer')}, the first: {refused[0]}"
            at = f"{self.engine.title} at TP {self.plan.policy.tensor_parallel_size}"
            raise NotServedError(f"not served by {at}: {cause.why if cause.of_whole_model else layers}")

    def verdict(self, grown: Sizes, num_ranks: int, needs_runtime: bool) -> Verdict:
        """Return the verdict on a checkpoint with `grown` sizes, loaded by fp8pad's plugin or by the engine alone.

        `grown` are the old and new values of the sizes that are absorbed, by their path in config.json.
        """
        shapes = [(group, group.grown(grown)) for group in self._groups]
        groups: list[tuple[AlikeLayers, Said | None]]
        if needs_runtime and not self.engine.has_runtime:
            is_larger = any(group.plan.is_for_runtime and group.plan.aligned(it) != it for group, it in shapes)
            unserved = NO_RUNTIME if is_larger else Said(self.engine.unknown_method, NO_RUNTIME.why)
            groups = [(group, unserved) for group, _ in shapes]
        elif self._unknown_method:
            groups = [(group, self._unknown_method) for group in self._groups]
        else:
            groups = [(group, self._said(group, it, num_ranks, needs_runtime)) for group, it in shapes]
        # The rule for sizes that ranks cannot share applies to heads and other MLPs too, FP8 or not.
        indivisible = self._indivisible
        enough = {self._unknown_method, indivisible, _RUNTIME["indivisible"]} - {None}
        is_said = any(said in enough for _, said in groups)
        uneven = next((count for count in self._counts if not count.is_shared_by(num_ranks, grown)), None)
        if uneven and indivisible and not is_said:
            why = f"{uneven.number_of(grown)} {uneven.what}, which {num_ranks} ranks cannot share evenly"
            groups = [(group, Said(indivisible.outcome, why, "model")) for group in self._groups]
        of_method = None if needs_runtime else self._of_method
        places: dict[Said, list[int]] = {}
        for group, said in [*((group, of_method) for group in self._groups), *groups]:
            if said:
                places.setdefault(said, []).extend(group.places)
        found = sorted((not said.of_whole_model, sorted(where), said) for said, where in places.items())
        layers = self.plan.layers
        findings = [
            Finding(said.outcome, said.why, said.about, tuple(layers[place].name for place in where))
            for _, where, said in found
        ]
        return Verdict((*findings, *([replace(_UNKNOWN, layers=self._unknown)] if self._unknown else [])))

    def original(self, num_ranks: int) -> Verdict:
        """Return what the engine does with the checkpoint as it is."""
        return self.verdict({}, num_ranks, needs_runtime=False)

    def padded(self, num_ranks: int, grown: Sizes = MappingProxyType({})) -> tuple[Verdict, bool]:
        """Return what the engine does with a checkpoint converted for `num_ranks`, and whether it needs the plugin."""
        needs_runtime = any(group.plan.pads(group.grown(grown), num_ranks) for group in self.plan.alike)
        return self.verdict(grown, num_ranks, needs_runtime), needs_runtime

    def added_bytes(self, grown: Sizes) -> int:
        """Return how many bytes converting adds to tensors, by padding and by absorbing, as in `padded`."""
        absorbable = {size.path: size for size in self.plan.absorbable}
        total = sum(absorbable[path].other_bytes * (new - old) // old for path, (old, new) in grown.items())
        for group in self.plan.alike:
            layer, shape = group.plan, group.grown(grown)
            made = layer.aligned(shape) if layer.is_for_runtime else shape
            total += len(group.places) * (layer.bytes_at(made) - layer.bytes_at(group.grown({})))
        return total

    def _name(self, group: AlikeLayers) -> str:
        """Return the name of one of a group's layers, which rules do not tell from the others."""
        return self.plan.layers[group.places[0]].name

    def _said(self, group: AlikeLayers, shape: Shape, num_ranks: int, needs_runtime: bool) -> Said | None:
        """Return the outcome for a layer `(N, K)`; None if the engine just serves it.

        The plugin leaves a layer to the engine if it does not handle it at all, and a tensor that is a whole layer of
        the engine if it has nothing to pad.
        """
        layer, name = group.plan, self._name(group)
        part, kernel = layer.sharding.part(shape, num_ranks), layer.kernel_shape(shape, num_ranks)
        is_whole = len(layer.sharding.groups) > 1 and not layer.pads(shape, num_ranks)
        if not needs_runtime or not layer.is_for_runtime or is_whole:
            fit = self._stock_fit(layer, part, kernel)
        elif said := _RUNTIME.get(layer.fit_at(num_ranks, shape)):
            return said
        else:
            kernel, fit = layer.aligned(kernel), "aligned"
        rules = [rule for rule in self._rules if rule.is_about_layer(name, layer.block)]
        found = (rule.said for rule in rules if rule.holds(layer, shape, part, kernel, fit))
        return next(found, self._indivisible if fit == "indivisible" else None)

    def _stock_fit(self, layer: LayerPlan, part: RankPart, kernel: Shape) -> Fit:
        if layer.granularity is None:
            return "not assessed"
        if part.num_n is None or part.num_k is None:
            return "indivisible"
        if isinstance(layer.granularity, PerBlock):
            sharding, block = layer.sharding, layer.block
            if sharding.begins_inside_block(part, block):
                return "inside block"
            # The matrices of an expert are fused into one layer of the engine, and follow each other in it.
            is_cut = layer.is_expert and not sharding.is_whole_inside(part, block)
            if is_cut or sharding.ends_inside_block(part, block):
                return "ends inside block"
            return "unaligned" if part.num_k % block[1] else "aligned"
        return "aligned" if is_aligned(kernel, (self.engine.multiple, self.engine.multiple)) else "unaligned"


_UNKNOWN = Finding("not known", "FP8 weights that fp8pad does not understand")
UNKNOWN_METHOD = "a quantization method that it does not know"
NO_RUNTIME = Said("refuses", "fp8pad has no plugin for this engine")
# What the plugin cannot fix, wherever vLLM would split a layer.
_RUNTIME: Mapping[Fit, Said] = {
    "indivisible": Said("refuses", "a size that ranks cannot share evenly"),
    "inside block": Said("refuses", "a rank's share begins inside a scale block"),
}


def _by_name(group: AlikeLayers, plan: CheckpointPlan, patterns: Sequence[str]) -> list[AlikeLayers]:
    """Split a group of layers by the patterns that match their names; rules use names for nothing else."""
    if not patterns:
        return [group]
    places: dict[tuple[bool, ...], list[int]] = {}
    for place in group.places:
        name = plan.layers[place].name
        places.setdefault(tuple(matches((name,), (pattern,)) for pattern in patterns), []).append(place)
    return [replace(group, places=where) for where in places.values()]
