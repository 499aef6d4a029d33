"""Which axes of Linears are inside an MLP: nothing else depends on the order and number of its neurons."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from fp8pad.padded import Axis
from fp8pad.planning.absorb.assessment import check_activation
from fp8pad.planning.absorb.governed import FLOAT_DTYPES, GovernedAxes, GovernedAxis, GovernedSize
from fp8pad.planning.absorb.growth import NotAbsorbableError, grown
from fp8pad.planning.linear import Fp8Linear
from fp8pad.planning.tensor_parallel import SharedCount, num_heads


def inner_axes(governed_axes: GovernedAxes, linears: Iterable[Fp8Linear]) -> Mapping[str, Axis]:
    """Return, for each Linear that has one, its axis inside an MLP: "n" for gate, up and gate_up, "k" for down.

    Only complete MLPs of FP8 Linears that can be padded count, absorbed or not, with a config key of their own or not.
    Zeros along such an axis can be passed on from gate and up to down: the activation of zero times zero is zero.
    """
    by_name = {linear.name: linear for linear in linears if linear.skip_reason is None}
    return {
        governed.module: governed.axis
        for size in governed_axes.sizes
        for mlp in size.mlps
        if _is_whole(size, mlp, by_name)
        for governed in mlp
    }


def _is_whole(size: GovernedSize, mlp: Sequence[GovernedAxis], linears: Mapping[str, Fp8Linear]) -> bool:
    """Return whether an MLP has all its parts, each an FP8 Linear of one inner size, and nothing else reads it."""
    rule = mlp[0].mlp
    if rule.experts:
        return False
    weights = {governed.role: governed for governed in mlp if governed.is_plain_weight and governed.module in linears}
    sizes = {governed.inner_size for governed in weights.values()}
    if weights.keys() != rule.parts.keys() or len(sizes) != 1:
        return False
    if any(tensor.name.startswith(mlp[0].block) and sizes & set(tensor.shape) for tensor in size.unclaimed_tensors):
        return False
    try:
        check_activation(rule, size.section)
        for governed in mlp:
            grown(governed, linears.get(governed.module), *sizes, *sizes)
    except NotAbsorbableError:
        return False
    return True


def shared_neurons(governed_axes: GovernedAxes, fp8: Collection[str]) -> Iterator[SharedCount]:
    """Yield the inner sizes of MLPs that are not FP8, which ranks must share evenly; `fp8` are the FP8 modules.

    vLLM divides gate, up and down of any dtype (layers/linear.py, `divide`), unless the family file says that it
    replicates them, and the experts of any dtype (layers/fused_moe/config.py, `FusedMoEConfig.__post_init__`).
    """
    known: set[object] = set()
    for size in governed_axes.sizes:
        for governed in size.axes:
            kind = governed.mlp, governed.tensor.dtype, governed.tensor.shape
            if kind in known or governed.module in fp8 or not _has_rows(governed):
                continue
            known.add(kind)
            heads = num_heads(size.section.config)
            if heads and governed_axes.divided.get(governed.module) != "replicated":
                number = governed.tensor.shape[governed.dimension] // governed.width
                experts = "the experts of " if governed.mlp.experts else ""
                what = f"neurons of {experts}{governed.block.rstrip('.')} ({governed.tensor.dtype})"
                yield SharedCount(number, what, module=governed.module, path=size.path, heads=heads)


def _has_rows(governed: GovernedAxis) -> bool:
    """Return whether the rows of a tensor are neurons; other quantization formats pack along columns."""
    is_weight = governed.leaf == "weight_packed" or (
        governed.leaf == "weight" and governed.tensor.dtype in FLOAT_DTYPES | {"I8", "U8"}
    )
    return is_weight and governed.axis == "n" and len(governed.tensor.shape) == governed.num_dimensions
