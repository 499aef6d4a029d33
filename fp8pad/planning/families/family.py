"""What a family file says, as frozen data read strictly. README.md here is the guide to the format."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fp8pad.errors import PlanError
from fp8pad.reading import Reader

Role = Literal["gate", "up", "gate_up", "down"]

# Activations with act(0) = 0, by their names in Hugging Face configs (transformers `ACT2CLS`).
ZERO_AT_ZERO = frozenset(
    {"fatrelu", "geglu", "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python",
     "gelu_pytorch_tanh", "gelu_tanh", "leaky_relu", "linear", "mish", "quick_gelu", "relu", "relu2", "relu6",
     "relu_squared", "silu", "situ", "swiglu", "swigluoai", "swish", "tanh"}
)  # fmt: skip
# Activations that are finite but not zero at zero: inert behind a gate (act(0) * 0 = 0), and only there.
FINITE_AT_ZERO = ZERO_AT_ZERO | {"sigmoid", "hard_sigmoid", "laplace", "softplus"}


class _DottedNames:
    """All dotted module names in which words in braces stand for numbers."""

    def __contains__(self, text: str) -> bool:
        return re.fullmatch(r"(\w+|\{\w+\})(\.(\w+|\{\w+\}))*", text) is not None


# A module's name in which `{layer}`, `{expert}` and the like each stand for one number.
Pattern = Annotated[str, _DottedNames(), "a dotted module name with {number}s"]
Activation = Annotated[str, FINITE_AT_ZERO, "an activation that is known to be finite at 0"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Mlp:
    """One MLP, `down(act(gate(x)) * up(x))` or `down(act(up(x)))`, and the config key that is its inner size.

    `gate_up` is gate and up in one tensor, one behind the other, or row by row if they are `interleaved`. The inner
    size is `size_key`, or the first of `other_keys` that the config has; `repeats` are keys that say it again. It is
    multiplied with the value of `multiplier_key` where that is given, or with any number where `multiples`. An MLP
    whose size is no key of its own says why it is `unabsorbable`; `unless` is a config key which, where it is set,
    forbids it. `stacked` weights are 3-D, one matrix an expert. Two rules are the same only if they are one object.
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
        """Raise `ValueError` for what is no MLP."""
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
        """Whether the activation is multiplied with a second matrix's output."""
        return self.up is None or self.gate is not None

    @property
    def parts(self) -> dict[Role, str]:
        """The modules of one MLP by what they do in it."""
        patterns: dict[Role, str | None] = {
            "gate": self.gate, "up": self.up, "gate_up": self.gate_up, "down": self.down
        }  # fmt: skip
        return {role: pattern for role, pattern in patterns.items() if pattern}


@dataclass(frozen=True, slots=True)
class Unabsorbable:
    """Modules with an inner size that zeros would not leave alone, and the reason in words for the plan."""

    modules: tuple[Pattern, ...]
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The MLPs of a model, or of one part of it; `ignore` are modules that only look as if a key sized them.

    `column`, `row` and `replicated` are modules outside MLPs that engines divide among ranks in another way than their
    names say.
    """

    mlp: tuple[Mlp, ...] = ()
    unabsorbable: tuple[Unabsorbable, ...] = ()
    ignore: tuple[Pattern, ...] = ()
    column: tuple[Pattern, ...] = ()
    row: tuple[Pattern, ...] = ()
    replicated: tuple[Pattern, ...] = ()
    section: tuple["SectionRule", ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionRule(Description):
    """Where a model keeps the config and the tensors of one of its parts.

    `keys` are the config keys to look under, the first that is there counts ("" is the config itself). The part is
    described here, or by the family of the model type `like`, or of the section's own `model_type`.
    """

    keys: tuple[str, ...]
    prefixes: tuple[str, ...]
    like: str | None = None

    def __post_init__(self) -> None:
        """Raise `ValueError` for a part that is described twice."""
        if self.like and self.is_described:
            raise ValueError("expected either like or a description of its own")

    @property
    def is_described(self) -> bool:
        """Whether the file says here what the part is made of."""
        return bool(self.mlp or self.unabsorbable or self.section)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family(Description):
    """Everything that fp8pad knows of one model family: the model types it goes by, and where its layers hang."""

    model_types: tuple[str, ...]
    prefixes: tuple[str, ...] = ("",)

    def __post_init__(self) -> None:
        """Raise `ValueError` for a file that says nothing."""
        if not (self.mlp or self.unabsorbable or self.section):
            raise ValueError("expected at least one [[mlp]], [[unabsorbable]] or [[section]]")


def read_family(document: Mapping[str, Any], file: str) -> Family:
    """Read a parsed family file; `PlanError` naming the file and the entry if anything in it is not as specified."""
    return Reader(PlanError, is_by_hand=True).read(Family, document, file)
