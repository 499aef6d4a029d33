"""The content of a family file as frozen data, read strictly. README.md in this folder describes the format."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal

Role = Literal["gate", "up", "gate_up", "down"]

# Activations with act(0) = 0, by their names in Hugging Face configs (transformers `ACT2CLS`).
ZERO_AT_ZERO = frozenset(
    {"fatrelu", "geglu", "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python",
     "gelu_pytorch_tanh", "gelu_tanh", "leaky_relu", "linear", "mish", "quick_gelu", "relu", "relu2", "relu6",
     "relu_squared", "silu", "situ", "swiglu", "swigluoai", "swish", "tanh"}
)  # fmt: skip
# Those that are finite at zero, but not zero, are added: with a gate, and only then, zeros stay zeros (act(0) * 0 = 0).
FINITE_AT_ZERO = ZERO_AT_ZERO | {"sigmoid", "hard_sigmoid", "laplace", "softplus"}


class _DottedNames:
    """The set of all dotted module names, in which words in braces stand for numbers."""

    def __contains__(self, text: str) -> bool:
        return re.fullmatch(r"(\w+|\{\w+\})(\.(\w+|\{\w+\}))*", text) is not None


# A module's name in which `{layer}`, `{expert}` and the like each stand for one number.
Pattern = Annotated[str, _DottedNames(), "a dotted module name with {number}s"]
Activation = Annotated[str, FINITE_AT_ZERO, "an activation that is known to be finite at 0"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Mlp:
    """One MLP, `down(act(gate(x)) * up(x))` or `down(act(up(x)))`, and the config key that is its inner size.

    `gate_up` is gate and up in one tensor, one after the other, or in alternating rows if `interleaved`. The inner size
    is the value of `size_key`, or of the first of `other_keys` that the config has; `repeats` are keys that repeat it.
    It is multiplied by the value of `multiplier_key` if that is given, or by any number with `multiples`. An MLP with
    no size key of its own says why it is `unabsorbable`; `unless` is a config key that forbids absorbing if it is set.
    `stacked` weights are 3-D, one matrix per expert. Two rules are equal only if they are the same object.
    """

    down: Pattern
    up: Pattern | None = None
    gate: Pattern | None = None
    gate_up: Pattern | None = None
    size_key: str | None = None
    unabsorbable: str | None = None
    activation_key: str | None = None
    activation: Activation | None = None
    other_keys: tuple[str, ...] = ()
    repeats: tuple[str, ...] = ()
    multiplier_key: str | None = None
    multiples: bool = False
    unless: str | None = None
    experts: bool = False
    stacked: bool = False
    interleaved: bool = False

    def __post_init__(self) -> None:
        """Raise `ValueError` if this does not describe an MLP."""
        if (self.up is None) == (self.gate_up is None) or (self.gate and self.gate_up):
            raise ValueError("expected gate and up, or gate_up, or up alone")
        if len({tuple(re.findall(r"\{\w+\}", pattern)) for pattern in self.parts.values()}) > 1:
            raise ValueError("expected the same {number}s in all modules of an MLP")
        if len(set(self.parts.values())) < len(self.parts):
            raise ValueError("expected different modules, got one named twice")
        if (self.size_key is None) == (self.unabsorbable is None):
            raise ValueError("expected either size_key or unabsorbable")
        if self.activation_key is None and self.activation is None:
            raise ValueError("expected activation_key, activation or both")

    @property
    def is_gated(self) -> bool:
        """Whether the activation is multiplied by a second matrix's output."""
        return self.up is None or self.gate is not None

    @property
    def parts(self) -> dict[Role, str]:
        """The modules of one MLP by their role."""
        patterns: dict[Role, str | None] = {
            "gate": self.gate, "up": self.up, "gate_up": self.gate_up, "down": self.down
        }  # fmt: skip
        return {role: pattern for role, pattern in patterns.items() if pattern}


@dataclass(frozen=True, slots=True)
class Unabsorbable:
    """Modules whose outputs would change with zeros added to their inner size, and the reason for the plan."""

    modules: tuple[Pattern, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The MLPs of a model, or of one part of it; `ignore` are modules that only look as if a key sized them.

    `column`, `row` and `replicated` are modules outside MLPs that engines divide among ranks in other ways than their
    names say.
    """

    mlp: tuple[Mlp, ...] = ()
    unabsorbable: tuple[Unabsorbable, ...] = ()
    ignore: tuple[Pattern, ...] = ()
    column: tuple[Pattern, ...] = ()
    row: tuple[Pattern, ...] = ()
    replicated: tuple[Pattern, ...] = ()
    section: tuple["SectionRule", ...] = ()

    @property
    def is_described(self) -> bool:
        """Whether anything is described here."""
        return bool(self.mlp or self.unabsorbable or self.section)


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionRule(Description):
    """Where a model keeps the config and the tensors of one of its parts.

    `keys` are the config keys to look under; the first that exists counts ("" is the config itself). The part is
    described here, or by the family of the model type `like`, or of the section's own `model_type`.
    """

    keys: tuple[str, ...]
    prefixes: tuple[str, ...]
    like: str | None = None

    def __post_init__(self) -> None:
        """Raise `ValueError` for a part that is described twice."""
        if self.like and self.is_described:
            raise ValueError("expected either like or a description of its own")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family(Description):
    """Everything that fp8pad knows about one model family: its model types, and the prefixes of its layers."""

    model_types: tuple[str, ...]
    prefixes: tuple[str, ...] = ("",)

    def __post_init__(self) -> None:
        """Raise `ValueError` for a file that describes nothing."""
        if not self.is_described:
            raise ValueError("expected at least one [[mlp]], [[unabsorbable]] or [[section]]")
