"""Fold many names into few patterns: `model.layers.{0-31}.mlp.{gate_proj,up_proj}`."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any, TypeAlias

from fp8pad.planning.linear import LayerPlan

Choices: TypeAlias = tuple[str, ...]
# Each part of a name, or its choices. (A string caches its hash, a tuple is hashed again each time.)
Pattern: TypeAlias = tuple[str | Choices, ...]


def name_patterns(names: Iterable[str]) -> list[str]:
    """Fold dotted names into patterns, so that each name is in exactly one.

    Position by position, except for the first, patterns that differ only there are merged. Recent results are cached,
    because the same layers are listed for several tensor-parallel sizes.
    """
    return list(_patterns(tuple(names)))


@lru_cache(maxsize=16)
def _patterns(names: tuple[str, ...]) -> tuple[str, ...]:
    patterns: Sequence[Pattern] = [tuple(name.split(".")) for name in names]
    for position in range(1, max(map(len, patterns), default=0)):
        patterns = _fold(patterns, position)
    return tuple(".".join(map(_written, pattern)) for pattern in patterns)


def group_layers(layers: Iterable[LayerPlan]) -> list[tuple[str, LayerPlan]]:
    """Group layers that differ only in their names: return patterns of the names, each with one layer as the example.

    Groups are in the order of their first layer in `layers`.
    """
    alike: dict[tuple[object, ...], list[LayerPlan]] = {}
    for layer in layers:
        key = (layer.granularity, layer.logical_shape, layer.padded_shape, layer.alignment, layer.axes, layer.reason)
        alike.setdefault(key, []).append(layer)
    return [(pattern, group[0]) for group in alike.values() for pattern in name_patterns(layer.name for layer in group)]


def _fold(patterns: Sequence[Pattern], position: int) -> Sequence[Pattern]:
    if len({pattern[position : position + 1] for pattern in patterns}) == 1:
        return patterns
    alike: dict[Pattern, list[Any]] = {}
    for pattern in patterns:
        here, common = pattern[position : position + 1], _with(pattern, position, "")
        alike.setdefault(common, []).extend(here)
    return [_with(common, position, parts[0] if len(parts) == 1 else tuple(parts)) for common, parts in alike.items()]


def _with(pattern: Pattern, position: int, part: str | Choices) -> Pattern:
    """Return a pattern with the part at a position replaced, if it is that long."""
    return (*pattern[:position], part, *pattern[position + 1 :]) if position < len(pattern) else pattern


def _written(choices: str | Choices) -> str:
    """Return the choices of a position as text: whole numbers as ranges, then words in their order."""
    if isinstance(choices, str):
        return choices
    numbers = sorted(int(part) for part in choices if _is_number(part))
    written = [*_ranges(numbers), *(part for part in choices if not _is_number(part))]
    return "{" + ",".join(written) + "}"


def _is_number(part: str) -> bool:
    return part.isdecimal() and str(int(part)) == part


def _ranges(numbers: Sequence[int]) -> list[str]:
    # Consecutive numbers have the same difference to their position.
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), key=lambda item: item[1] - item[0])]
    return [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
