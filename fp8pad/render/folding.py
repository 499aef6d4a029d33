"""Fold many names into few patterns: `model.layers.{0-31}.mlp.{gate_proj,up_proj}`."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import groupby
from math import prod
from typing import Any, TypeAlias

Choices: TypeAlias = tuple[str, ...]
# Each part of a name, or its choices. (A string caches its hash, a tuple is hashed again each time.)
Pattern: TypeAlias = tuple[str | Choices, ...]


def name_patterns(names: Iterable[str]) -> list[str]:
    """Fold dotted names into patterns, so that each name is in exactly one.

    Position by position, except for the first, patterns that differ only there are merged.
    """
    return [pattern for pattern, _ in folded(names)]


def folded(names: Iterable[str]) -> Sequence[tuple[str, int]]:
    """Return patterns of names as `name_patterns` does, each with the number of names that it stands for.

    Recent results are cached, because the same layers are listed for several tensor-parallel sizes.
    """
    return _patterns(tuple(names))


@lru_cache(maxsize=16)
def _patterns(names: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    patterns: Sequence[Pattern] = [tuple(name.split(".")) for name in names]
    for position in range(1, max(map(len, patterns), default=0)):
        patterns = _fold(patterns, position)
    return tuple((".".join(map(_written, pattern)), prod(map(_num_choices, pattern))) for pattern in patterns)


def _num_choices(part: str | Choices) -> int:
    return 1 if isinstance(part, str) else len(part)


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
