"""A plan in short: what is done to layers, the share of FLOPs added, and the files that change."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from fp8pad.card import read_card
from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.checkpoint.folder import INDEX_FILE
from fp8pad.geometry import is_aligned
from fp8pad.planning.linear import Layer, LayerPlan
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.record import CARD_FILE, CONFIG_FILE
from fp8pad.text import counted

# What is done to a layer, as the headline counts it; changed layers first.
ACTIONS = ("to pad", "to absorb", "to absorb and pad", "to pad at load", "carried unchanged", "aligned already")


@dataclass(frozen=True, slots=True)
class OutputFiles:
    """What happens to each file of a source; names are relative to its folder."""

    rewritten: tuple[str, ...]
    kept: tuple[str, ...]
    excluded: tuple[str, ...]


def action(layer: LayerPlan) -> str:
    """Return what is done to a layer: one of `ACTIONS`, so that counts of layers add up."""
    if layer.is_absorbed:
        return "to absorb and pad" if layer.is_padded else "to absorb"
    if layer.is_padded:
        return "to pad"
    if layer.is_padded_at_load:
        return "to pad at load"
    if layer.is_skipped and not (layer.granularity and is_aligned(layer.logical_shape[-2:], layer.alignment)):
        return "carried unchanged"
    return "aligned already"


def headline(plan: CheckpointPlan) -> str:
    """Count layers by what is done to them."""
    actions: Counter[str] = Counter()
    for alike in plan.alike:
        actions[action(alike.plan)] += len(alike.places)
    counts = [f"{actions[name]} {name}" for name in ACTIONS if name in actions]
    return f"{counted(len(plan.layers), 'FP8 layer')}: {', '.join(counts)}" if counts else "no FP8 layers"


def flops_added_share(layers: Iterable[Layer]) -> float:
    """Return the share of multiplications that padding adds when one token passes once through every layer.

    A Linear `[N, K]` multiplies N * K times for each token, so this is also the share of weight elements added.
    """
    sizes = [(prod(layer.logical_shape), prod(layer.padded_shape)) for _, layer in layers]
    logical = sum(before for before, _ in sizes)
    return sum(after - before for before, after in sizes) / logical if logical else 0.0


def output_files(source: Checkpoint, plan: CheckpointPlan, with_card: bool = True) -> OutputFiles:
    """Return which files converting rewrites or adds, keeps as they are, and excludes.

    `with_card` counts the model card as rewritten, without fetching it.
    """
    rewritten = {CONFIG_FILE} if plan.edits_config else set()
    source = source.with_edited_config() if plan.edits_config else source
    if plan.shards_rewritten:
        rewritten |= {*plan.shards_rewritten, *([INDEX_FILE] if source.has_index else [])}
    if with_card and not plan.changes_nothing and (source.remote or read_card(source) is not None):
        rewritten.add(CARD_FILE)
    everything = {*source.text_files, *source.shard_files, *source.other_files}
    return OutputFiles(tuple(sorted(rewritten)), tuple(sorted(everything - rewritten)), source.excluded)
