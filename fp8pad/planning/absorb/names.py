"""Finding a family file's modules among the names in a checkpoint, whole names only."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

_NUMBER = re.compile(r"\{\w+\}|\d+")


class NameIndex:
    """The names in a checkpoint, looked up by a module's pattern.

    A model has few kinds of names, many times each: a pattern is compared with the kinds first, numbers left out.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._kinds: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
        for place, name in enumerate(names):
            self._kinds[_kind(name)].append((place, name))

    def find(self, prefixes: Sequence[str], pattern: str) -> Iterator[tuple[str, re.Match[str]]]:
        """Yield the names that begin with a module of this pattern, in the order in which they were given.

        The groups of a match are the prefix, then the numbers.
        """
        starts = tuple(_kind(prefix + pattern) for prefix in prefixes)
        regex = _regex(prefixes, pattern)
        alike = sorted(chain.from_iterable(names for kind, names in self._kinds.items() if kind.startswith(starts)))
        yield from ((name, match) for _, name in alike if (match := regex.match(name)))

    def modules(self, prefixes: Sequence[str], patterns: Sequence[str]) -> Iterator[str]:
        """Yield the modules of these patterns that have tensors of their own."""
        for pattern in patterns:
            for name, match in self.find(prefixes, pattern):
                if match.group() == name.rpartition(".")[0]:
                    yield match.group()


def any_number(pattern: str) -> str:
    """Return a regular expression for a pattern whose numbers do not matter."""
    return r"\d+".join(map(re.escape, re.split(r"\{\w+\}", pattern)))


def _kind(name: str) -> str:
    return _NUMBER.sub("#", name)


def _regex(prefixes: Sequence[str], pattern: str) -> re.Pattern[str]:
    places = "|".join(map(re.escape, prefixes))
    return re.compile(f"({places})" + r"(\d+)".join(map(re.escape, re.split(r"\{\w+\}", pattern))))
