"""What a plan says, condensed: names folded into patterns, shares added, files touched; and `plan --json`."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from math import prod
from operator import itemgetter
from typing import Any

from fp8pad.checkpoint.checkpoint import CONFIG_FILE, Checkpoint
from fp8pad.checkpoint.folder import INDEX_FILE
from fp8pad.planning.advice import outlook
from fp8pad.planning.plan import CheckpointPlan, LayerPlan
from fp8pad.record import FORMAT_VERSION

Indices = tuple[int, ...]
Parts = tuple[str, ...]

_INDEX = "0"  # stands for every whole number in a template, and can stand for nothing else


@dataclass(frozen=True, slots=True)
class LayerGroup:
    """Layers that share everything but their names, which `pattern` holds, and one of them as the example."""

    pattern: str
    example: LayerPlan


@dataclass(frozen=True, slots=True)
class OutputFiles:
    """What becomes of each file of a source; names are relative to its folder."""

    rewritten: tuple[str, ...]
    kept: tuple[str, ...]
    excluded: tuple[str, ...]


def name_patterns(names: Iterable[str]) -> list[str]:
    """Fold dotted names into patterns, so that each name is in exactly one.

    Names that differ in whole-number parts, or in one of the last two parts, share one:
    `model.layers.{0-31}.mlp.{gate_proj,up_proj}.weight`.
    """
    templates: dict[Parts, set[Indices]] = {}
    for name in names:
        parts = name.split(".")
        template = tuple(_INDEX if _is_index(part) else part for part in parts)
        templates.setdefault(template, set()).add(tuple(int(part) for part in parts if _is_index(part)))
    patterns = [
        _fill(template, product) for template, indices in templates.items() for product in _products(sorted(indices))
    ]
    return [".".join(parts) for parts in _fold(_fold(patterns, -1), -2)]


def group_layers(layers: Iterable[LayerPlan]) -> list[LayerGroup]:
    """Group layers that are treated alike, in the order in which the checkpoint first names them."""
    alike: dict[tuple[object, ...], list[LayerPlan]] = {}
    for layer in layers:
        key = (layer.granularity, layer.logical_shape, layer.padded_shape, layer.alignment, layer.axes, layer.reason)
        alike.setdefault(key, []).append(layer)
    return [
        LayerGroup(pattern, group[0])
        for group in alike.values()
        for pattern in name_patterns(layer.name for layer in group)
    ]


def flops_added_share(layers: Iterable[LayerPlan]) -> float:
    """Return the share of multiplications that padding adds to one pass of one token through every layer once.

    A Linear `[N, K]` multiplies N * K times for each token, so this is also the share of weight elements added.
    """
    sizes = [(prod(layer.logical_shape), prod(layer.padded_shape)) for layer in layers]
    logical = sum(before for before, _ in sizes)
    return sum(after - before for before, after in sizes) / logical if logical else 0.0


def output_files(source: Checkpoint, plan: CheckpointPlan) -> OutputFiles:
    """Tell which files converting rewrites, brings along as they are, and leaves out."""
    rewritten = {CONFIG_FILE} if plan.edits_config else set()
    source = source.with_edited_config() if plan.edits_config else source
    if plan.shards_rewritten:
        rewritten |= {*plan.shards_rewritten, *([INDEX_FILE] if source.index else [])}
    everything = {CONFIG_FILE, *(shard.file for shard in source.shards), *source.other_files}
    everything |= {INDEX_FILE} if source.index else set()
    return OutputFiles(tuple(sorted(rewritten)), tuple(sorted(everything - rewritten)), source.excluded)


def plan_document(source: Checkpoint, plan: CheckpointPlan) -> dict[str, Any]:
    """Return the JSON object that `fp8pad plan --json` prints."""
    files = output_files(source, plan)
    return {
        "format_version": FORMAT_VERSION,
        "model": str(source.root),
        "policy": plan.policy.to_json(),
        "layers": [_layer_document(layer) for layer in plan.layers],
        "untouched": [asdict(tensor) for tensor in plan.untouched],
        "config_edits": [asdict(edit) for edit in plan.config_edits],
        "bytes_before": plan.bytes_before,
        "bytes_after": plan.bytes_after,
        "flops_added_share": flops_added_share(plan.layers),
        "files_rewritten": list(files.rewritten),
        "files_kept": list(files.kept),
        "files_left_out": list(files.excluded),
        "needs_runtime": plan.needs_runtime,
        "tensor_parallel": [asdict(at) for at in outlook(plan.layers)],
        "notes": list(plan.notes),
    }


def _layer_document(layer: LayerPlan) -> dict[str, Any]:
    return {
        "name": layer.name,
        "scheme": layer.granularity.name if layer.granularity else None,
        "logical_shape": list(layer.logical_shape),
        "padded_shape": list(layer.padded_shape),
        "alignment": list(layer.alignment),
        "disposition": asdict(layer.axes),
        "reason": layer.reason,
    }


def _is_index(part: str) -> bool:
    return part.isdecimal() and str(int(part)) == part


def _products(indices: Sequence[Indices]) -> list[tuple[Indices, ...]]:
    """Split sorted index tuples into products of sets; values of the first index with the same rest stay together."""
    if not indices[0]:
        return [()]
    firsts: dict[tuple[Indices, ...], list[int]] = {}
    for first, group in groupby(indices, key=itemgetter(0)):
        firsts.setdefault(tuple(index[1:] for index in group), []).append(first)
    return [(tuple(values), *product) for rest, values in firsts.items() for product in _products(rest)]


def _fill(template: Parts, product: Sequence[Indices]) -> Parts:
    values = iter(product)
    return tuple(_range(next(values)) if part == _INDEX else part for part in template)


def _fold(patterns: Iterable[Parts], position: int) -> list[Parts]:
    """Make one of patterns that differ only in the word at `position`, counted from the end."""
    siblings: dict[Parts, list[Parts]] = {}
    for parts in patterns:
        is_word = len(parts) > -position and not (parts[position].startswith("{") or _is_index(parts[position]))
        siblings.setdefault(_replaced(parts, position, "") if is_word else parts, []).append(parts)
    return [
        group[0] if len(group) == 1 else _replaced(group[0], position, _braces(parts[position] for parts in group))
        for group in siblings.values()
    ]


def _replaced(parts: Parts, position: int, part: str) -> Parts:
    changed = list(parts)
    changed[position] = part
    return tuple(changed)


def _range(values: Indices) -> str:
    """Write sorted whole numbers as `7` or `{0-3,5}`."""
    if len(values) == 1:
        return str(values[0])
    # Consecutive numbers have the same distance from their position.
    runs = [[value for _, value in run] for _, run in groupby(enumerate(values), key=lambda item: item[1] - item[0])]
    return _braces(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _braces(choices: Iterable[str]) -> str:
    return "{" + ",".join(choices) + "}"
