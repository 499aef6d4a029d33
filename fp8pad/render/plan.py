"""A plan on one screen."""

from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import groupby

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.planning.advice import RankOutlook, outlook, remedy
from fp8pad.planning.plan import CheckpointPlan, LayerPlan, UntouchedTensor
from fp8pad.record import AxisActions, Disposition
from fp8pad.render.console import (
    WIDE,
    Fact,
    command,
    edit_facts,
    fact_table,
    growth,
    print_json,
    print_parts,
    shortened,
    stdout_console,
)
from fp8pad.render.folding import LayerGroup, group_layers, name_patterns
from fp8pad.render.verdict import policy_options, refusal_facts
from fp8pad.summary import flops_added_share, output_files, plan_document
from fp8pad.text import printable

NARROWEST_REASON = 28  # columns
MOST_SHARDS = 3

_KINDS: dict[Disposition, str] = {
    "pad": "to pad",
    "absorb": "to absorb",
    "aligned": "aligned already",
    "skip": "skipped",
}


def show_plan(source: Checkpoint, plan: CheckpointPlan, as_json: bool = False) -> None:
    """Print a plan: a row for each group of like layers, its price, the files, other TP sizes, and what to do next."""
    if as_json:
        print_json(plan_document(source, plan))
        return
    facts = [*not_understood_facts(plan), *_untouched_facts(plan), *edit_facts(plan.config_edits), *_price_facts(plan)]
    facts += [*_file_facts(source, plan), *_outlook_facts(plan)]
    facts += [("note", printable(note)) for note in plan.notes]
    facts += refusal_facts(source, plan, _out_dir(source))
    facts += [("next", line) for line in _after_plan(source, plan)]
    console = stdout_console()
    layers = [_layers(console, plan.layers)] if plan.layers else []
    print_parts(console, Text(_headline(source, plan), style="bold"), *layers, fact_table(facts))


def _headline(source: Checkpoint, plan: CheckpointPlan) -> str:
    kinds = [kind for layer in plan.layers for kind in _kinds(layer.axes)]
    counts = [f"{kinds.count(kind)} {word}" for kind, word in _KINDS.items() if kind in kinds]
    layers = f"{len(plan.layers)} FP8 layers: {', '.join(counts)}" if kinds else "no FP8 layers"
    return f"{printable(str(source.root))}: {layers}"


def _kinds(axes: AxisActions) -> set[Disposition]:
    """Return what is done to a layer: it is aligned only if both axes are, but can be padded and absorbed."""
    return {axes.n, axes.k} - {"aligned"} or {"aligned"}


def _layers(console: Console, layers: Iterable[LayerPlan]) -> RenderableType:
    """Return one row for each group of like layers, or a short paragraph each where the rows would not fit."""
    groups = group_layers(layers)
    table = Table(box=None, pad_edge=False)
    for header in ("layers", "scheme", "logical [N, K]", "padded", "how"):
        table.add_column(header, no_wrap=True)
    table.add_column("why", min_width=NARROWEST_REASON)
    for group in groups:
        table.add_row(*_cells(group), style=_style(group.example))
    if table.__rich_measure__(console, console.options.update_width(WIDE)).minimum <= console.width:
        return table
    return Group(*(_paragraph(group) for group in groups))


def _paragraph(group: LayerGroup) -> RenderableType:
    pattern, scheme, logical, padded, settled, why = _cells(group)
    shapes = logical if padded == "same" else f"{logical} -> {padded}"
    details = f"{scheme}  {shapes}  {settled}: {why}"
    return Group(Text(pattern, style="bold"), Padding(Text(details, style=_style(group.example)), (0, 0, 0, 4)))


def _cells(group: LayerGroup) -> tuple[str, ...]:
    layer = group.example
    padded = "same" if layer.padded_shape == layer.logical_shape else str(list(layer.padded_shape))
    scheme = layer.granularity.name if layer.granularity else "other"
    logical = str(list(layer.logical_shape))
    return printable(group.pattern), scheme, logical, padded, how(layer.axes), printable(layer.reason)


def _style(layer: LayerPlan) -> str:
    return "dim" if layer.padded_shape == layer.logical_shape else ""


def how(axes: AxisActions) -> str:
    """Write `pad N, K`, `absorb N, pad K`, `aligned` or `skip`."""
    if axes.n == axes.k and axes.n in ("aligned", "skip"):
        return axes.n
    settled = [(disposition, axis) for disposition, axis in ((axes.n, "N"), (axes.k, "K")) if disposition != "aligned"]
    return ", ".join(
        f"{disposition} {', '.join(axis for _, axis in group)}"
        for disposition, group in groupby(settled, key=lambda item: item[0])
    )


def not_understood_facts(plan: CheckpointPlan) -> Iterator[Fact]:
    """Yield how many FP8 layers are carried because fp8pad cannot tell what they are, and a row for each reason."""
    if unknown := plan.not_understood:
        layers = "1 FP8 layer" if len(unknown) == 1 else f"{len(unknown)} FP8 layers"
        yield "", f"{layers} not understood: carried unchanged"
        yield from _by_reason("not understood", unknown)


def skipped_facts(plan: CheckpointPlan) -> Iterator[Fact]:
    """Yield a row for each reason why FP8 layers that are understood are left as they are."""
    yield from _by_reason(
        "skipped", [layer for layer in plan.layers if "skip" in (layer.axes.n, layer.axes.k) and layer.is_understood]
    )


def _untouched_facts(plan: CheckpointPlan) -> Iterator[Fact]:
    yield from _by_reason("untouched", [tensor for tensor in plan.untouched if tensor.is_understood])


def _by_reason(label: str, weights: Iterable[LayerPlan | UntouchedTensor]) -> Iterator[Fact]:
    names: dict[str, list[str]] = {}
    for weight in weights:
        names.setdefault(weight.reason, []).append(weight.name)
    for reason, alike in names.items():
        yield label, f"{printable(reason)}: {_patterns(alike)}"


def _patterns(names: Iterable[str]) -> str:
    return ", ".join(map(printable, name_patterns(names)))


def _price_facts(plan: CheckpointPlan) -> Iterator[Fact]:
    yield "tensor bytes", growth(plan.bytes_before, plan.bytes_after)
    if plan.layers:
        yield "FLOPs", f"{flops_added_share(plan.layers):+.2%} over these layers, each counted once"


def _file_facts(source: Checkpoint, plan: CheckpointPlan) -> Iterator[Fact]:
    files = output_files(source, plan)
    shards = {shard.file for shard in source.shards}
    for label, names in (("rewritten", files.rewritten), ("kept", files.kept), ("left out", files.excluded)):
        if names:
            yield label, _files(names, shards)


def _files(names: Sequence[str], shards: Container[str]) -> str:
    """List files by name, but of many shards only how many they are."""
    listed = [name for name in names if name not in shards]
    num_shards = len(names) - len(listed)
    if num_shards <= MOST_SHARDS:
        return shortened(names)
    return f"{num_shards} shards{', ' if listed else ''}{shortened(listed)}"


def _outlook_facts(plan: CheckpointPlan) -> Iterator[Fact]:
    sizes: dict[str, list[str]] = {}
    for at in outlook(plan.layers):
        sizes.setdefault(_finding(at, plan.modules), []).append(str(at.tensor_parallel_size))
    for finding, at_sizes in sizes.items():
        yield f"at TP {', '.join(at_sizes)}", finding


def _finding(at: RankOutlook, known_to_runtime: Container[str]) -> str:
    refused = set(at.inside_block)
    unaligned = _patterns(name for name in at.unaligned if name not in known_to_runtime and name not in refused)
    indivisible = _patterns(at.indivisible)
    findings = [f"also unaligned: {unaligned}"] if unaligned else []
    if refused:
        findings.append(f"a rank's share would begin inside a scale block: {_patterns(at.inside_block)}")
    if indivisible:
        findings.append(f"cannot be split evenly, which engines refuse: {indivisible}")
    said = findings or ["no other layer needs padding"]
    if at.not_assessed:
        said.append(f"not assessed, as the scales are not understood: {_patterns(at.not_assessed)}")
    return "; ".join(said)


def _after_plan(source: Checkpoint, plan: CheckpointPlan) -> Iterator[str]:
    options = policy_options(plan.policy)
    if plan.changes_nothing:
        yield "nothing to convert: the checkpoint would stay as it is"
    else:
        yield command("convert", source.root, _out_dir(source), *options)
    if policy := remedy(source.shards, source.configs, plan):
        yield f"{command('plan', source.root, *policy_options(policy))}  # what absorbing would settle"


def _out_dir(source: Checkpoint) -> str:
    named = source.root if source.root.name not in ("", "..") else source.root.resolve()
    return f"{named}-padded"
