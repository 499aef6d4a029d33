"""Which tensors a config key governs: family files matched against the names in a checkpoint, whole names only."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fp8pad.errors import PlanError
from fp8pad.planning.families import Mlp, Pattern, Section
from fp8pad.planning.families.family import Role
from fp8pad.tensors import FP8_WEIGHT_DTYPES, TensorHeader

Axis = Literal["n", "k"]

# Dtypes besides FP8 whose zero is all zero bytes and that hold one matrix entry per element.
FLOAT_DTYPES = frozenset({"F64", "F32", "F16", "BF16"})

# Where a weight `[N, K]`, or a stack of them, has its N and its K.
_WEIGHT_INDEX: Mapping[str | None, Mapping[Axis, int]] = {
    None: {"n": 0, "k": 1},
    "nk": {"n": 1, "k": 2},
    "kn": {"n": 2, "k": 1},
}
_PLAIN = FP8_WEIGHT_DTYPES | FLOAT_DTYPES


@dataclass(frozen=True, slots=True)
class GovernedAxis:
    """One tensor of an MLP whose inner size a key governs.

    `leaf` is the tensor's name inside its module: "weight", "bias", "weight_scale", ... `instance` tells the MLPs of
    one rule apart: the prefix, then the numbers that stood for `{layer}` and `{expert}`.
    """

    tensor: TensorHeader
    module: str
    leaf: str
    role: Role
    mlp: Mlp
    instance: tuple[str, ...]

    @property
    def axis(self) -> Axis:
        """The axis that the key sizes: the columns of down, the rows of everything else."""
        return "k" if self.role == "down" else "n"

    @property
    def index(self) -> int:
        """The dimension of the module's weight that the key sizes."""
        return _WEIGHT_INDEX[self.mlp.stacked][self.axis]

    @property
    def num_segments(self) -> int:
        """How many matrices lie behind each other along the claimed axis."""
        return 2 if self.role == "gate_up" else 1

    @property
    def is_plain_weight(self) -> bool:
        """Whether this is a weight with one element per matrix entry, so that its shape can be compared with sizes."""
        num_dimensions = 3 if self.mlp.stacked else 2
        return self.leaf == "weight" and self.tensor.dtype in _PLAIN and len(self.tensor.shape) == num_dimensions

    @property
    def inner_size(self) -> int:
        """The inner size of the MLP as the shape of a plain weight has it."""
        return self.tensor.shape[self.index] // self.num_segments

    @property
    def block(self) -> str:
        """The part of the layer that holds the MLP, routers and shared experts included: `model.layers.3.mlp.`."""
        in_front = self.mlp.parts[self.role].text.partition("}.")[0].count(".") + 1
        parts = self.module.removeprefix(self.instance[0]).split(".")
        return self.instance[0] + ".".join(parts[: min(in_front + 1, len(parts) - 1)]) + "."


@dataclass(frozen=True, slots=True)
class GovernedKey:
    """A config key and everything that it governs; `unclaimed_tensors` look governed too, but are in no family file."""

    section: Section
    key: str
    claims: tuple[GovernedAxis, ...]
    unclaimed_tensors: tuple[TensorHeader, ...] = ()

    @property
    def path(self) -> str:
        """The key's dotted path in config.json."""
        return self.section.dotted(self.key)


@dataclass(frozen=True, slots=True)
class GovernedAxes:
    """All keys that govern something, and the modules that family files rule out, with the reason."""

    keys: tuple[GovernedKey, ...]
    unabsorbable: Mapping[str, str]


def find_governed(sections: Sequence[Section], tensors: Mapping[str, TensorHeader]) -> GovernedAxes:
    """Match every section's family against the tensors; `PlanError` where one axis of a tensor is claimed twice."""
    keys: dict[str, GovernedKey] = {}
    claimed: dict[tuple[str, Axis], str] = {}
    rules = [(section, mlp) for section in sections for mlp in (section.family.mlps if section.family else ())]
    for section, mlp in rules:
        path = section.dotted(mlp.size_key)
        found = tuple(_matches(section, mlp, tensors))
        for claim in found:
            other = claimed.setdefault((claim.tensor.name, claim.axis), path)
            if other != path:
                raise PlanError(f"{claim.tensor.name}: both {other} and {path} claim its axis {claim.axis.upper()}")
        governed = keys.setdefault(path, GovernedKey(section, mlp.size_key, ()))
        keys[path] = replace(governed, claims=governed.claims + found)
    unabsorbable, ignored = _unabsorbable(sections, tensors), _ignored(sections, tensors)
    names = {name for name, _ in claimed} | ignored
    unclaimed = [
        tensor for name, tensor in tensors.items() if name not in names and name.rpartition(".")[0] not in unabsorbable
    ]
    return GovernedAxes(tuple(_with_unclaimed(key, unclaimed) for key in keys.values() if key.claims), unabsorbable)


def _matches(section: Section, mlp: Mlp, tensors: Mapping[str, TensorHeader]) -> Iterator[GovernedAxis]:
    mlp = _laid_out(section, mlp, tensors)
    for role, pattern in mlp.parts.items():
        regex = pattern.regex(section.prefixes)
        for name, tensor in tensors.items():
            match = regex.match(name)
            leaf = _leaf(name[match.end() :], mlp) if match else None
            if match and leaf:
                yield GovernedAxis(tensor, match.group(), leaf, role, mlp, match.groups())


def _laid_out(section: Section, mlp: Mlp, tensors: Mapping[str, TensorHeader]) -> Mlp:
    """Decide between the two layouts of stacked experts: in one of them the weights have the size that is asked for."""
    if mlp.stacked != "either":
        return mlp
    straight = replace(mlp, stacked="nk")
    weights = [claim for claim in _matches(section, straight, tensors) if claim.is_plain_weight]
    size = section.config.get(mlp.size_key)
    has_size = all(claim.inner_size == size for claim in weights)
    return straight if has_size else replace(mlp, stacked="kn")


def _leaf(rest: str, mlp: Mlp) -> str | None:
    """The name behind the module's; stacked weights are bare parameters, and their scales are named `module_scale`."""
    if rest.startswith("."):
        return rest[1:]
    if mlp.stacked and (not rest or rest.startswith("_")):
        return rest[1:] or "weight"
    return None


def _unabsorbable(sections: Sequence[Section], tensors: Mapping[str, TensorHeader]) -> dict[str, str]:
    unabsorbable = {}
    for section in sections:
        for rule in section.family.unabsorbable if section.family else ():
            for module in _modules(section, rule.modules, tensors):
                unabsorbable[module] = rule.reason
    return unabsorbable


def _ignored(sections: Sequence[Section], tensors: Mapping[str, TensorHeader]) -> set[str]:
    modules: set[str] = set()
    for section in sections:
        modules.update(_modules(section, section.family.ignore if section.family else (), tensors))
    return {name for name in tensors if name.rpartition(".")[0] in modules}


def _modules(section: Section, patterns: Sequence[Pattern], tensors: Mapping[str, TensorHeader]) -> Iterator[str]:
    regexes = [pattern.regex(section.prefixes) for pattern in patterns]
    for module in {name.rpartition(".")[0] for name in tensors}:
        if any(regex.fullmatch(module) for regex in regexes):
            yield module


def _with_unclaimed(key: GovernedKey, unclaimed: Sequence[TensorHeader]) -> GovernedKey:
    """Find tensors of a governed size in a governed MLP, or at its modules' names elsewhere (`mtp.layers.0.mlp`)."""
    sizes = {claim.inner_size for claim in key.claims if claim.is_plain_weight}
    blocks = tuple({claim.block for claim in key.claims if claim.role == "down"})
    mlps = {claim.mlp for claim in key.claims}
    texts = {pattern.text.partition("}.")[2] for mlp in mlps for pattern in mlp.parts.values()} - {""}
    elsewhere = re.compile("|".join(rf"(^|\.){_any_number(text)}\." for text in texts) or r"(?!)")
    unclaimed_tensors = tuple(
        tensor
        for tensor in unclaimed
        if sizes & set(tensor.shape) and (tensor.name.startswith(blocks) or elsewhere.search(tensor.name))
    )
    return replace(key, unclaimed_tensors=unclaimed_tensors)


def _any_number(text: str) -> str:
    return r"\d+".join(map(re.escape, re.split(r"\{\w+\}", text)))
