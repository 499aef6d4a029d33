"""A plan on one screen: what engines do with it, what would change, what that costs, and the next command."""

from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import groupby
from math import prod
from pathlib import Path
from typing import assert_never

from rich.text import Text

from fp8pad.checkpoint.checkpoint import MISTRAL_CONFIG_FILE, Checkpoint
from fp8pad.checkpoint.folder import is_other_form, is_shard
from fp8pad.padded import AxisActions, Disposition
from fp8pad.planned import PlanReport
from fp8pad.planning.comparison import Growth
from fp8pad.planning.linear import LayerPlan
from fp8pad.planning.plan import AlikeLayers, CheckpointPlan
from fp8pad.render.advice import advice
from fp8pad.render.console import Fact, added, edit_facts, growth, shortened
from fp8pad.render.folding import folded
from fp8pad.render.screen import LAYERS, Bar, Paragraph, Row, Rows, Screen, Section
from fp8pad.render.verdict import next_steps, patterns, refusal, verdicts
from fp8pad.summary import ACTIONS, OutputFiles, action, flops_added_share, headline
from fp8pad.text import counted, printable, size

MOST_SHARDS = 3

_STYLES = dict(zip(ACTIONS, ("yellow", "cyan", "cyan", "yellow", "magenta", "dim"), strict=True))


def plan_screen(
    report: PlanReport,
    show_all: bool = False,
    out_dir: Path | None = None,
    options: Sequence[str] = (),
    is_page: bool = False,
) -> Screen:
    """Lay out a plan; aligned layers are folded into one line unless `show_all`.

    `out_dir` is the folder in printed commands, by default one next to the checkpoint; `options` are added to them. For
    a page, each row of layers has the size of their weights, and what absorbing adds is listed by config key.
    """
    yield Paragraph(Text(f"{printable(str(report.source))}: {headline(report.plan)}", style="bold"))
    if report.plan.layers:
        yield from verdicts(report)
    yield from _layers(report.plan, show_all, is_page)
    yield from _costs(report)
    if is_page:
        yield from _growths(report)
    yield from refusal(report.judge)
    yield from next_steps(advice(report, out_dir or proposed_out_dir(report.source), *options))


def how(axes: AxisActions) -> str:
    """Return text such as `pad N, K`, `absorb N, pad K`, `aligned` or `unchanged`."""
    done = [(disposition, axis) for disposition, axis in ((axes.n, "N"), (axes.k, "K")) if _is_change(disposition)]
    if not done:
        return "unchanged" if "skip" in axes.both else "aligned"
    return ", ".join(
        f"{disposition} {', '.join(axis for _, axis in group)}"
        for disposition, group in groupby(done, key=lambda item: item[0])
    )


def _is_change(disposition: Disposition) -> bool:
    match disposition:
        case "pad" | "absorb":
            return True
        case "aligned" | "skip":
            return False
    assert_never(disposition)


def layer_how(layer: LayerPlan) -> str:
    """Return what is done to a layer as text, `pad at load` if that is all."""
    return "pad at load" if action(layer) == "to pad at load" else how(layer.axes)


def _layers(plan: CheckpointPlan, show_all: bool, with_sizes: bool) -> Screen:
    if plan.layers or plan.untouched:
        yield Section("What converting changes" if plan.tensors or plan.modules else "What is in it")
    shown = [alike for alike in plan.alike if show_all or action(alike.plan) != "aligned already"]
    groups = list(_groups(plan, shown))
    rows = [_row(pattern, layer) for pattern, _, layer in groups]
    header = ["layers", "scales", "[N, K]", "padded", "how", "why"]
    if with_sizes:
        sizes = [(num * prod(layer.logical_shape), num * prod(layer.padded_shape)) for _, num, layer in groups]
        longest = max((after for _, after in sizes), default=0)
        rows = [(*row, Bar(*before_after, longest)) for row, before_after in zip(rows, sizes, strict=True)]
        header.append("size")
    yield Rows(rows, header)
    num_left = len(plan.layers) - sum(len(alike.places) for alike in shown)
    aligned = [("aligned", f"{counted(num_left, 'layer')}, unchanged (--all lists them)")] if num_left else []
    untouched = [(tensor.name, tensor.reason) for tensor in plan.untouched if tensor.is_understood]
    yield Rows([*aligned, *not_understood_facts(plan), *_by_reason("other weights", untouched)])


def _groups(plan: CheckpointPlan, shown: Iterable[AlikeLayers]) -> Iterator[tuple[str, int, LayerPlan]]:
    """Yield patterns of the names of layers whose rows are equal, with their number and one of them."""
    places: dict[tuple[str, ...], list[int]] = {}
    for alike in shown:
        row = action(alike.plan), *map(str, _row("", alike.plan))
        places.setdefault(row, []).extend(alike.places)
    for _, of_row in sorted((ACTIONS.index(row[0]), sorted(of_row)) for row, of_row in places.items()):
        for pattern, num_layers in folded(plan.layers[place].name for place in of_row):
            yield pattern, num_layers, plan.layers[of_row[0]].plan


def _row(pattern: str, layer: LayerPlan) -> Row:
    padded = "same" if layer.padded_shape == layer.logical_shape else str(list(layer.padded_shape))
    scales = f"per {layer.granularity.name}" if layer.granularity else "other"
    done = Text(layer_how(layer), style=_STYLES[action(layer)])
    names = Text(printable(pattern), style=LAYERS)
    return names, scales, str(list(layer.logical_shape)), padded, done, printable(layer.reason)


def not_understood_facts(plan: CheckpointPlan) -> Iterator[Fact]:
    """Yield the number of FP8 layers that are not understood and carried unchanged, and a row for each reason."""
    if unknown := plan.not_understood:
        yield "warning", f"{counted(len(unknown), 'FP8 layer')} not understood: carried unchanged"
        yield from _by_reason("not understood", unknown)


def skipped_facts(plan: CheckpointPlan) -> Iterator[Fact]:
    """Yield a row for each reason why FP8 layers are left unchanged though they are understood."""
    left = ((name, layer) for name, layer in plan.layers if layer.is_skipped and not layer.is_absorbed)
    yield from _by_reason("skipped", [(name, layer.reason) for name, layer in left if layer.is_understood])


def note_facts(plan: CheckpointPlan) -> Iterator[Fact]:
    """Yield a row for each note of a plan, except those that the reason of a layer says already."""
    reasons = {alike.plan.reason for alike in plan.alike}
    yield from (("note", printable(note)) for note in plan.notes if not any(note in reason for reason in reasons))


def _by_reason(label: str, weights: Iterable[tuple[str, str]]) -> Iterator[Fact]:
    names: dict[str, list[str]] = {}
    for name, reason in weights:
        names.setdefault(reason, []).append(name)
    for reason, alike in names.items():
        yield label, f"{printable(reason)}: {patterns(alike)}"


def _costs(report: PlanReport) -> Screen:
    plan = report.plan
    yield Section("What it costs")
    facts = [*edit_facts(plan.config_edits), ("tensors", growth(plan.bytes_before, plan.bytes_after))]
    if share := flops_added_share(plan.layers):
        facts.append(("FLOPs", f"{share:+.2%} over all FP8 layers, each counted once"))
    yield Rows([*facts, *_file_facts(report.source, report.files), *note_facts(plan)])


def _growths(report: PlanReport) -> Screen:
    before = report.plan.bytes_before
    padded = added(report.judge.added_bytes({}), before)
    rows = [
        (f"TP {at.num_ranks}", padded, added(found.added_bytes, before), Text(", ").join(map(_grown, found.growths)))
        for at in report.sizes
        if (found := at.absorbed)
    ]
    yield Rows(rows, ("", "padded, on disk", "absorbed", "absorbed weights by config key"))


def _grown(growth: Growth) -> Text:
    key = printable(growth.key), LAYERS
    return Text.assemble(key, f" {growth.old} -> {growth.new}: +{size(growth.added_bytes)}")


def _file_facts(source: Checkpoint, files: OutputFiles) -> Iterator[Fact]:
    for label, names in (("rewritten", files.rewritten), ("kept", files.kept)):
        if names:
            yield label, _files(names, source.shard_files)
    yield from excluded_facts(files.excluded, source.links_out)


def excluded_facts(names: Iterable[str], links_out: Container[str] = (), others: str = "") -> Iterator[Fact]:
    """Yield a row for each reason why files are excluded; `others` is the reason for files that are never copied."""
    why: dict[str, list[str]] = {}
    for name in names:
        if name in links_out:
            reason = "links out of MODEL, which --follow-links copies: "
        elif is_other_form(name) or is_shard(name) or name == MISTRAL_CONFIG_FILE:
            reason = "other forms of the weights: "
        else:
            reason = others
        why.setdefault(reason, []).append(name)
    for reason, alike in sorted(why.items()):
        yield "excluded", f"{reason}{shortened(alike)}"


def _files(names: Sequence[str], shards: Container[str]) -> str:
    """List files by name, but only the number of shards if there are many."""
    listed = [name for name in names if name not in shards]
    num_shards = len(names) - len(listed)
    if num_shards <= MOST_SHARDS:
        return shortened(names)
    return ", ".join([counted(num_shards, "shard"), *([shortened(listed)] if listed else [])])


def proposed_out_dir(source: Checkpoint) -> str:
    """Return a folder next to the model, or in the current folder if the model is on the hub or in its cache."""
    if source.remote:
        return f"{source.name.partition('@')[0].rpartition('/')[2]}-padded"
    root = source.root.resolve()
    if root.parent.name == "snapshots":
        return f"{root.parent.parent.name.rpartition('--')[2]}-padded"
    named = source.root if source.root.name not in ("", "..") else root
    return f"{named}-padded"
