"""Linears that could be padded, but are not: because of --skip, rotations, fused layers, or engines' code."""

from collections.abc import Iterator, Sequence

from fp8pad.planning.engines import Rule, find_engine
from fp8pad.planning.linear import ROTATED, Fp8Linear
from fp8pad.planning.quantization import Quantization
from fp8pad.scales import PerBlock
from fp8pad.text import matches


def left_alone(
    linears: Sequence[Fp8Linear], skip: Sequence[str], quantization: Quantization | None, architectures: Sequence[str]
) -> Iterator[Fp8Linear]:
    """Yield the layers, with a reason if one is carried unchanged; `skip` are globs of module names."""
    unlike = _unlike_inputs(linears)
    method, rotates = (quantization.method, quantization.rotates) if quantization else (None, False)
    by_model = [rule for rule in find_engine().rule if rule.left_to_model and rule.is_about(method, architectures)]
    for linear in linears:
        if pattern := next((pattern for pattern in skip if matches((linear.name,), (pattern,))), None):
            yield linear._replace(skip_reason=f"--skip {pattern}", is_understood=True)
        elif rotates and linear.granularity and linear.is_understood:
            yield linear._replace(skip_reason=ROTATED)
        elif linear.skip_reason is None and linear.name in unlike:
            yield linear._replace(skip_reason=unlike[linear.name], is_understood=False)
        elif linear.skip_reason is None and (rule := next((it for it in by_model if _is_of(it, linear)), None)):
            yield linear._replace(skip_reason=f"not padded here: {rule.why}")
        else:
            yield linear


def _is_of(rule: Rule, linear: Fp8Linear) -> bool:
    if not isinstance(linear.granularity, PerBlock) or linear.is_expert:
        return False
    return rule.is_about_layer(linear.name, linear.granularity.block)


def _unlike_inputs(linears: Sequence[Fp8Linear]) -> dict[str, str]:
    """Return the queries, keys and values that differ in K, with a reason: it is not known how engines fuse them."""
    inputs: dict[str, dict[str, Fp8Linear]] = {}
    for linear in linears:
        parent, _, last = linear.name.rpartition(".")
        if last in ("q_proj", "k_proj", "v_proj"):
            inputs.setdefault(parent, {})[last] = linear
    reasons: dict[str, str] = {}
    for fused in inputs.values():
        if len({linear.shape[-1] for linear in fused.values()}) > 1:
            sizes = " and ".join(f"{last} of {linear.shape[-1]}" for last, linear in fused.items())
            reasons |= {linear.name: f"attention with different inputs: {sizes}" for linear in fused.values()}
    return reasons
