"""Matching family files against the names in a checkpoint: whole names only, first compared without numbers."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from fp8pad.errors import PlanError
from fp8pad.padded import Axis
from fp8pad.planning.absorb.governed import GovernedAxes, GovernedAxis, GovernedSize, inner_sizes
from fp8pad.planning.families import Description, Mlp, Section
from fp8pad.planning.linear_names import Division
from fp8pad.tensors import TensorHeader

_WORD_IN_BRACES = re.compile(r"\{\w+\}")
_WITHOUT_DIGITS = str.maketrans("", "", "0123456789")


def find_governed(sections: Sequence[Section], tensors: Mapping[str, TensorHeader]) -> GovernedAxes:
    """Match every section's family against the tensors; `PlanError` if one axis of a tensor is governed twice."""
    index = NameIndex(tensors)
    described = [(section, section.family) for section in sections if section.family]
    sizes: dict[object, GovernedSize] = {}
    owners: Mapping[Axis, dict[str, str]] = {"n": {}, "k": {}}
    for section, mlp in _rules(described, index):
        key = _key(section, mlp)
        path = section.dotted(key or mlp.down)
        axes = _in_order(section, mlp, tuple(_matches(section, mlp, tensors, index)))
        for governed in axes:
            other = owners[governed.axis].setdefault(governed.tensor.name, path)
            if other != path:
                raise PlanError(
                    f"{governed.tensor.name}: both {other} and {path} govern its axis {governed.axis.upper()}"
                )
        size = sizes.setdefault(path, GovernedSize(section, key, ()))
        sizes[path] = replace(size, axes=size.axes + axes)
    unabsorbable = {
        module: rule.reason
        for section, family in described
        for rule in family.unabsorbable
        for module in index.modules(section.prefixes, rule.modules)
    }
    ignored = {module for section, family in described for module in index.modules(section.prefixes, family.ignore)}
    others = unabsorbable.keys() | ignored
    owned = owners["n"].keys() | owners["k"].keys()
    unclaimed = [t for name, t in tensors.items() if name not in owned and name.rpartition(".")[0] not in others]
    with_unclaimed = tuple(_with_unclaimed(size, unclaimed) for size in sizes.values() if size.axes)
    return GovernedAxes(with_unclaimed, unabsorbable, dict(_divided(described, index)))


class NameIndex:
    """The names in a checkpoint, looked up by a module's pattern.

    A model has few kinds of names, many times each: a pattern is first compared with the kinds, without numbers.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._kinds: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
        for place, name in enumerate(names):
            self._kinds[name.translate(_WITHOUT_DIGITS)].append((place, name))

    def find(self, prefixes: Sequence[str], pattern: str) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        """Yield the names that begin with a module of this pattern, in the order in which they were given.

        Each comes with the module, and with the prefix and the numbers in it.
        """
        starts = tuple(_WORD_IN_BRACES.sub("", prefix + pattern).translate(_WITHOUT_DIGITS) for prefix in prefixes)
        places = "|".join(map(re.escape, prefixes))
        regex = re.compile(f"({places})" + r"(\d+)".join(map(re.escape, _WORD_IN_BRACES.split(pattern))))
        alike = sorted(chain.from_iterable(names for kind, names in self._kinds.items() if kind.startswith(starts)))
        module, start = "", "\0"
        parts: tuple[str, ...] = ()
        for _, name in alike:
            if not name.startswith(start):  # the tensors of one module follow each other
                if not (found := regex.match(name)):
                    continue
                module, start, parts = found[0], f"{found[0]}.", found.groups()
            yield name, module, parts

    def modules(self, prefixes: Sequence[str], patterns: Sequence[str]) -> Iterator[str]:
        """Yield the modules of these patterns that have tensors of their own."""
        for pattern in patterns:
            for name, module, _ in self.find(prefixes, pattern):
                if module == name.rpartition(".")[0]:
                    yield module


def _divided(described: Sequence[tuple[Section, Description]], index: NameIndex) -> Iterator[tuple[str, Division]]:
    """Yield the modules outside MLPs for which families say how ranks divide them."""
    for section, family in described:
        divisions: dict[Division, tuple[str, ...]] = {
            "column": family.column, "row": family.row, "replicated": family.replicated
        }  # fmt: skip
        for division, patterns in divisions.items():
            yield from ((module, division) for module in index.modules(section.prefixes, patterns))


def _key(section: Section, mlp: Mlp) -> str | None:
    """Return the config key that sizes an MLP in this model: the first one with a value in the config."""
    keys = [key for key in (mlp.size_key, *mlp.other_keys) if key]
    return next((key for key in keys if section.config.get(key) is not None), mlp.size_key)


def _rules(described: Sequence[tuple[Section, Description]], index: NameIndex) -> Iterator[tuple[Section, Mlp]]:
    for section, family in described:
        for mlp in family.mlp:
            yield section, mlp
            if mlp.experts and not mlp.stacked:
                yield section, _stacked_form(section, mlp, index)


def _stacked_form(section: Section, mlp: Mlp, index: NameIndex) -> Mlp:
    """Return the rule for stacks of experts that the family describes one by one: gate and up fused, or separate."""
    folder = mlp.down.partition("{expert}")[0]
    gate_up, down = f"{folder}gate_up_proj", f"{folder}down_proj"
    if mlp.is_gated and any(index.find(section.prefixes, gate_up)):
        return replace(mlp, stacked=True, gate=None, up=None, gate_up=gate_up, down=down)
    parts: dict[str, Any] = {role: pattern.replace("{expert}.", "") for role, pattern in mlp.parts.items()}
    return replace(mlp, stacked=True, **parts)


def _matches(
    section: Section, mlp: Mlp, tensors: Mapping[str, TensorHeader], index: NameIndex
) -> Iterator[GovernedAxis]:
    for role, pattern in mlp.parts.items():
        for name, module, instance in index.find(section.prefixes, pattern):
            if leaf := _leaf(name[len(module) :], mlp):
                yield GovernedAxis(tensors[name], module, leaf, role, mlp, instance)


def _leaf(rest: str, mlp: Mlp) -> str | None:
    """Return the name after the module's; stacked weights are bare parameters, with scales named `module_scale`."""
    if rest.startswith("."):
        return rest[1:]
    if mlp.stacked and (not rest or rest.startswith("_")):
        return rest[1:] or "weight"
    return None


def _in_order(section: Section, mlp: Mlp, axes: tuple[GovernedAxis, ...]) -> tuple[GovernedAxis, ...]:
    """Choose the order of stacked axes in which all weights have the same inner size, preferably the config's."""
    if not mlp.stacked:
        return axes
    turned = tuple(governed._replace(order="kn") for governed in axes)
    asked = section.config.get(_key(section, mlp) or "")
    orders = [(axes, list(inner_sizes(axes))), (turned, list(inner_sizes(turned)))]
    fitting = [order for order, sizes in orders if sizes == [asked]] or [
        order for order, sizes in orders if len(sizes) == 1
    ]
    return fitting[0] if fitting else axes


def _with_unclaimed(size: GovernedSize, unclaimed: Sequence[TensorHeader]) -> GovernedSize:
    """Find unclaimed tensors of a governed size in its MLPs, or under their module names (`mtp.layers.0.mlp`)."""
    sizes = inner_sizes(size.axes)
    alike = [tensor for tensor in unclaimed if not sizes.isdisjoint(tensor.shape)]
    if not alike:
        return size
    blocks = tuple({governed.block for governed in size.axes if governed.role == "down"})
    mlps = {governed.mlp for governed in size.axes}
    texts = {pattern.partition("}.")[2] for mlp in mlps for pattern in mlp.parts.values()} - {""}
    any_numbers = (r"\d+".join(map(re.escape, _WORD_IN_BRACES.split(text))) for text in texts)
    elsewhere = re.compile("|".join(rf"(^|\.){text}\." for text in any_numbers) or r"(?!)")
    found = (tensor for tensor in alike if tensor.name.startswith(blocks) or elsewhere.search(tensor.name))
    return replace(size, unclaimed_tensors=tuple(found))
