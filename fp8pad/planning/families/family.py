"""What a family file says, as frozen data, and the strict reading of it. README.md here is the guide to the format."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fp8pad.errors import PlanError

Role = Literal["gate", "up", "gate_up", "down"]
Stacked = Literal["nk", "kn", "either"]

# Activations with act(0) = 0, by their names in Hugging Face configs (transformers `ACT2CLS`).
ZERO_AT_ZERO = frozenset(
    {"gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_pytorch_tanh", "gelu_tanh",
     "geglu", "leaky_relu", "linear", "mish", "quick_gelu", "relu", "relu2", "relu6", "relu_squared", "silu", "swiglu",
     "swish", "tanh"}
)  # fmt: skip
# Activations that are finite but not zero at zero: inert behind a gate (act(0) * 0 = 0), and only there.
FINITE_AT_ZERO = ZERO_AT_ZERO | {"sigmoid", "hard_sigmoid", "laplace", "softplus"}


@dataclass(frozen=True, slots=True)
class Pattern:
    """A module's dotted name in which `{layer}`, `{expert}` and the like each stand for one number."""

    text: str

    def regex(self, prefixes: tuple[str, ...]) -> re.Pattern[str]:
        """Match `prefix + module`: group 1 is the prefix, the others are the numbers."""
        pieces = re.split(r"\{\w+\}", self.text)
        places = "|".join(map(re.escape, prefixes))
        return re.compile(f"({places})" + r"(\d+)".join(map(re.escape, pieces)))

    @property
    def tail(self) -> str:
        """The name behind the last number: `mlp.gate_proj` of `layers.{layer}.mlp.gate_proj`."""
        return self.text.rpartition("}.")[2]


@dataclass(frozen=True, slots=True, eq=False)
class Mlp:
    """One MLP, `down(act(gate(x)) * up(x))` or `down(act(up(x)))`, and the config key that is its inner size.

    `gate_up` is gate and up in one tensor, one behind the other. The inner size is `size_key`, times the value of
    the key `multiplier_key` where that is given. `stacked` says that the weights are 3-D, one matrix an expert: "nk" as
    `[num_experts, out_features, in_features]`, "kn" the other way round, "either" where tools write both. Two rules are
    the same only if they are one object.
    """

    size_key: str
    down: Pattern
    up: Pattern | None = None
    gate: Pattern | None = None
    gate_up: Pattern | None = None
    activation_key: str | None = None
    activation: str | None = None
    multiplier_key: str | None = None
    experts: bool = False
    experts_per_token_key: str | None = None
    stacked: Stacked | None = None

    @property
    def is_gated(self) -> bool:
        """Whether the activation is multiplied with a second matrix's output."""
        return self.up is None or self.gate is not None

    @property
    def parts(self) -> dict[Role, Pattern]:
        """The modules of one MLP by what they do in it."""
        patterns: dict[Role, Pattern | None] = {
            "gate": self.gate, "up": self.up, "gate_up": self.gate_up, "down": self.down
        }  # fmt: skip
        return {role: pattern for role, pattern in patterns.items() if pattern}


@dataclass(frozen=True, slots=True)
class Unabsorbable:
    """Modules with an inner size that cannot be absorbed, and the reason in words for the plan."""

    modules: tuple[Pattern, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class SectionRule:
    """Where a model keeps the config and the tensors of one of its parts.

    `keys` are the config keys to look under, the first that is there counts ("" is the config itself). The part is
    described by `family`, or by the family of the model type `like`, or of the section's own `model_type`.
    """

    keys: tuple[str, ...]
    prefixes: tuple[str, ...]
    like: str | None = None
    family: "Family | None" = None


@dataclass(frozen=True, slots=True)
class Family:
    """Everything that fp8pad knows of one model family; `file` is where it was read."""

    file: str
    model_types: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ("",)
    mlps: tuple[Mlp, ...] = ()
    unabsorbable: tuple[Unabsorbable, ...] = ()
    ignore: tuple[Pattern, ...] = ()
    sections: tuple[SectionRule, ...] = field(default=())


def read_family(document: Mapping[str, Any], file: str) -> Family:
    """Read a parsed family file; `PlanError` naming the file and the entry if anything in it is not as specified."""
    table = _Table(document, file)
    model_types = table.strings("model_types")
    return _family(table, model_types, table.strings("prefixes", default=("",)))


@dataclass
class _Table:
    """One table of a family file; entries are taken out one by one, and none may be left."""

    document: Any
    where: str

    def __post_init__(self) -> None:
        if not isinstance(self.document, Mapping):
            raise PlanError(f"{self.where}: expected a table, got {self.document!r}")
        self.document = dict(self.document)

    def string(self, key: str) -> str | None:
        value = self.document.pop(key, None)
        if value is not None and not isinstance(value, str):
            raise PlanError(f"{self.where}: {key}: expected a string, got {value!r}")
        return value

    def strings(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        value = self.document.pop(key, default)
        if not isinstance(value, list | tuple) or not value or not all(isinstance(item, str) for item in value):
            raise PlanError(f"{self.where}: {key}: expected a list of strings, got {value!r}")
        return tuple(value)

    def pattern(self, key: str) -> Pattern | None:
        value = self.string(key)
        return None if value is None else self.as_pattern(key, value)

    def patterns(self, key: str) -> tuple[Pattern, ...]:
        return tuple(self.as_pattern(key, value) for value in self.strings(key))

    def as_pattern(self, key: str, value: str) -> Pattern:
        if not re.fullmatch(r"(\w+|\{\w+\})(\.(\w+|\{\w+\}))*", value):
            raise PlanError(f"{self.where}: {key}: expected a dotted module name with {{number}}s, got {value!r}")
        return Pattern(value)

    def flag(self, key: str) -> bool:
        value = self.document.pop(key, False)
        if not isinstance(value, bool):
            raise PlanError(f"{self.where}: {key}: expected true or false, got {value!r}")
        return value

    def stacked(self) -> Stacked | None:
        match self.string("stacked"):
            case None | "nk" | "kn" | "either" as value:
                return value
            case value:
                raise PlanError(f"{self.where}: stacked: expected nk, kn or either, got {value!r}")

    def tables(self, key: str) -> list["_Table"]:
        values = self.document.pop(key, [])
        if not isinstance(values, list):
            raise PlanError(f"{self.where}: {key}: expected [[{key}]] tables, got {values!r}")
        return [_Table(value, f"{self.where}: {key} {number}") for number, value in enumerate(values, start=1)]

    def finish(self) -> None:
        if self.document:
            raise PlanError(f"{self.where}: unknown entries: {', '.join(sorted(self.document))}")


def _family(table: _Table, model_types: tuple[str, ...], prefixes: tuple[str, ...]) -> Family:
    family = Family(
        file=table.where,
        model_types=model_types,
        prefixes=prefixes,
        mlps=tuple(_mlp(entry) for entry in table.tables("mlp")),
        unabsorbable=tuple(_unabsorbable(entry) for entry in table.tables("unabsorbable")),
        ignore=table.patterns("ignore") if "ignore" in table.document else (),
        sections=tuple(_section(entry) for entry in table.tables("section")),
    )
    table.finish()
    if not (family.mlps or family.unabsorbable or family.sections):
        raise PlanError(f"{table.where}: expected at least one [[mlp]], [[unabsorbable]] or [[section]]")
    return family


def _mlp(table: _Table) -> Mlp:
    size_key, down = table.string("size_key"), table.pattern("down")
    if size_key is None or down is None:
        raise PlanError(f"{table.where}: expected both size_key and down")
    mlp = Mlp(
        size_key=size_key,
        down=down,
        up=table.pattern("up"),
        gate=table.pattern("gate"),
        gate_up=table.pattern("gate_up"),
        activation_key=table.string("activation_key"),
        activation=table.string("activation"),
        multiplier_key=table.string("multiplier_key"),
        experts=table.flag("experts"),
        experts_per_token_key=table.string("experts_per_token_key"),
        stacked=table.stacked(),
    )
    _check_mlp(mlp, table)
    table.finish()
    return mlp


def _check_mlp(mlp: Mlp, table: _Table) -> None:
    if (mlp.up is None) == (mlp.gate_up is None) or (mlp.gate and mlp.gate_up):
        raise PlanError(f"{table.where}: expected gate and up, or gate_up, or up alone")
    numbers = {role: re.findall(r"\{\w+\}", pattern.text) for role, pattern in mlp.parts.items()}
    if any(found != numbers["down"] for found in numbers.values()):
        raise PlanError(f"{table.where}: expected the same {{number}}s in all modules of an MLP")
    if len({pattern.text for pattern in mlp.parts.values()}) < len(mlp.parts):
        raise PlanError(f"{table.where}: expected different modules, got one named twice")
    if mlp.activation_key is None and mlp.activation is None:
        raise PlanError(f"{table.where}: expected activation_key, activation or both")
    if mlp.activation is not None and mlp.activation not in FINITE_AT_ZERO:
        raise PlanError(
            f"{table.where}: activation: expected one that is known to be finite at 0, got {mlp.activation!r}"
        )


def _unabsorbable(table: _Table) -> Unabsorbable:
    modules, reason = table.patterns("modules"), table.string("reason")
    if not reason:
        raise PlanError(f"{table.where}: expected a reason")
    table.finish()
    return Unabsorbable(modules, reason)


def _section(table: _Table) -> SectionRule:
    keys, prefixes, like = table.strings("keys"), table.strings("prefixes"), table.string("like")
    is_described = any(key in table.document for key in ("mlp", "unabsorbable", "section"))
    if like and is_described:
        raise PlanError(f"{table.where}: expected either like or a description of its own")
    family = _family(table, (), prefixes) if is_described else None
    table.finish()
    return SectionRule(keys, prefixes, like, family)
