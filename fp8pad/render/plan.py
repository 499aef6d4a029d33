"""A plan on one screen: what engines do with it, what would change, what that costs, and the next command."""

from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from rich.text import Text

from fp8pad.checkpoint.checkpoint import MISTRAL_CONFIG_FILE, Checkpoint
from fp8pad.checkpoint.folder import is_other_form, is_shard
from fp8pad.padded import AxisActions
from fp8pad.planned import PlanReport
from fp8pad.planning.linear import LayerPlan
from fp8pad.planning.plan import CheckpointPlan, UntouchedTensor
from fp8pad.render.advice import advice
from fp8pad.render.console import Fact, edit_facts, growth, shortened
from fp8pad.render.folding import group_layers
from fp8pad.render.screen import Row, Screen
from fp8pad.render.verdict import patterns, show_advice, show_refusal, show_verdicts
from fp8pad.summary import ACTIONS, OutputFiles, action, flops_added_share, headline
from fp8pad.text import counted, printable

MOST_SHARDS = 3

_DONE = ("pad", "absorb")
_STYLES = dict(zip(ACTIONS, ("yellow", "cyan", "cyan", "yellow", "magenta", "dim"), strict=True))


def plan_screen(
    report: PlanReport, show_all: bool = False, out_dir: Path | None = None, options: Sequence[str] = ()
) -> Screen:
    """Lay out a plan; aligned layers are folded into one line unless `show_all`.

    `out_dir` is the folder in printed commands, by default one next to the checkpoint; `options` are added to them.
    """
    screen = Screen()
    screen.paragraph(Text(f"{printable(str(report.source))}: {headline(report.plan)}", style="bold"))
    if report.plan.layers:
        show_verdicts(screen, report)
    _show_layers(screen, report.plan, show_all)
    _show_costs(screen, report)
    show_refusal(screen, report.judge)
    show_advice(screen, advice(report, out_dir or proposed_out_dir(report.source), *options))
    return screen


def how(axes: AxisActions) -> str:
    """Return text such as `pad N, K`, `absorb N, pad K`, `aligned` or `unchanged`."""
    done = [(disposition, axis) for disposition, axis in ((axes.n, "N"), (axes.k, "K")) if disposition in _DONE]
    if not done:
        return "unchanged" if "skip" in axes.both else "aligned"
    return ", ".join(
        f"{disposition} {', '.join(axis for _, axis in group)}"
        for disposition, group in groupby(done, key=lambda item: item[0])
    )


def layer_how(layer: LayerPlan) -> str:
    """Return what is done to a layer as text, `pad at load` if that is all."""
    return "pad at load" if action(layer) == "to pad at load" else how(layer.axes)


def _show_layers(screen: Screen, plan: CheckpointPlan, show_all: bool) -> None:
    places: dict[str, list[int]] = {name: [] for name in ACTIONS}
    for alike in plan.alike:
        places[action(alike.example)] += alike.places
    aligned = places.pop("aligned already") if not show_all else []
    listed = [plan.layers[place] for of_action in places.values() for place in sorted(of_action)]
    if plan.layers or plan.untouched:
        screen.section("What converting changes" if plan.tensors or plan.modules else "What is in it")
    header = ("layers", "scales", "[N, K]", "padded", "how", "why")
    screen.rows([_row(pattern, layer) for pattern, layer in group_layers(listed)], header)
    folded = [("aligned", f"{counted(len(aligned), 'layer')}, unchanged (--all lists them)")] if aligned else []
    untouched = [tensor for tensor in plan.untouched if tensor.is_understood]
    screen.rows([*folded, *not_understood_facts(plan), *_by_reason("other weights", untouched)])


def _row(pattern: str, layer: LayerPlan) -> Row:
    padded = "same" if layer.padded_shape == layer.logical_shape else str(list(layer.padded_shape))
    scales = f"per {layer.granularity.name}" if layer.granularity else "other"
    style = _STYLES[action(layer)]
    cells = printable(pattern), scales, str(list(layer.logical_shape)), padded
    return *cells, Text(layer_how(layer), style=style), printable(layer.reason)


def not_understood_facts(plan: CheckpointPlan) -> Iterator[Fact]:
    """Yield the number of FP8 layers that are not understood and carried unchanged, and a row for each reason."""
    if unknown := plan.not_understood:
        yield "warning", f"{counted(len(unknown), 'FP8 layer')} not understood: carried unchanged"
        yield from _by_reason("not understood", unknown)


def skipped_facts(plan: CheckpointPlan) -> Iterator[Fact]:
    """Yield a row for each reason why FP8 layers are left unchanged though they are understood."""
    left = (layer for layer in plan.layers if layer.is_skipped and not layer.is_absorbed)
    yield from _by_reason("skipped", [layer for layer in left if layer.is_understood])


def note_facts(plan: CheckpointPlan) -> Iterator[Fact]:
    """Yield a row for each note of a plan, except those that the reason of a layer says already."""
    reasons = {alike.example.reason for alike in plan.alike}
    yield from (("note", printable(note)) for note in plan.notes if not any(note in reason for reason in reasons))


def _by_reason(label: str, weights: Iterable[LayerPlan | UntouchedTensor]) -> Iterator[Fact]:
    names: dict[str, list[str]] = {}
    for weight in weights:
        names.setdefault(weight.reason, []).append(weight.name)
    for reason, alike in names.items():
        yield label, f"{printable(reason)}: {patterns(alike)}"


def _show_costs(screen: Screen, report: PlanReport) -> None:
    plan = report.plan
    screen.section("What it costs")
    facts = [*edit_facts(plan.config_edits), ("tensors", growth(plan.bytes_before, plan.bytes_after))]
    if share := flops_added_share(plan.layers):
        facts.append(("FLOPs", f"{share:+.2%} over all FP8 layers, each counted once"))
    facts += list(_file_facts(report.source, report.files))
    screen.rows([*facts, *note_facts(plan)])


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
