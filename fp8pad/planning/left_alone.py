"""Linears that could be padded by themselves, and are not: by --skip, by what they are fused with, by engines' code."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from fp8pad.planning.engines import find_engine, matches
from fp8pad.planning.linear import Fp8Linear
from fp8pad.planning.quantization import Quantization
from fp8pad.scales import PerBlock

_BY_MODEL = "not padded here: vLLM's code of this model fits it to whole scale blocks itself"


def left_alone(
    linears: Sequence[Fp8Linear], skip: Sequence[str], quantization: Quantization | None, architectures: Sequence[str]
) -> Iterator[Fp8Linear]:
    """Yield the layers, with a reason where one is carried unchanged; `skip` are globs of module names."""
    unlike = _unlike_inputs(linears)
    method = quantization.method if quantization else None
    rules = (rule for rule in find_engine().rule if rule.padded_by_model and rule.is_about(method, architectures))
    by_model = [pattern for rule in rules for pattern in rule.modules]
    for linear in linears:
        if pattern := next((pattern for pattern in skip if fnmatchcase(linear.name, pattern)), None):
            yield linear._replace(skip_reason=f"--skip {pattern}", is_understood=True)
        elif linear.skip_reason is None and linear.name in unlike:
            yield linear._replace(skip_reason=unlike[linear.name], is_understood=False)
        elif linear.skip_reason is None and _is_left_to_model(linear, by_model):
            yield linear._replace(skip_reason=_BY_MODEL)
        else:
            yield linear


def _is_left_to_model(linear: Fp8Linear, patterns: Sequence[str]) -> bool:
    return isinstance(linear.granularity, PerBlock) and not linear.is_expert and matches((linear.name,), patterns)


def _unlike_inputs(linears: Sequence[Fp8Linear]) -> dict[str, str]:
    """Which queries, keys and values have different K, so that they are not fused in a way that is known."""
    inputs: dict[str, dict[str, Fp8Linear]] = {}
    for linear in linears:
        parent, _, last = linear.name.rpartition(".")
        if last in ("q_proj", "k_proj", "v_proj"):
            inputs.setdefault(parent, {})[last] = linear
    reasons: dict[str, str] = {}
    for fused in inputs.values():
        if len({linear.weight.shape[-1] for linear in fused.values()}) > 1:
            sizes = " and ".join(f"{last} of {linear.weight.shape[-1]}" for last, linear in fused.items())
            reasons |= {linear.name: f"attention with different inputs: {sizes}" for linear in fused.values()}
    return reasons
