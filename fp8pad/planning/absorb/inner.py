"""Which axes of Linears lie inside an MLP, whose order and number of neurons matter to nothing else."""

from collections.abc import Iterable, Mapping, Sequence

from fp8pad.planning.absorb.assessment import check_activation
from fp8pad.planning.absorb.governed import GovernedAxes, GovernedAxis, GovernedSize
from fp8pad.planning.absorb.growth import NotAbsorbableError, grown
from fp8pad.planning.linear import Fp8Linear
from fp8pad.record import Axis


def inner_axes(governed_axes: GovernedAxes, linears: Iterable[Fp8Linear]) -> Mapping[str, Axis]:
    """Return, for each Linear that has one, its axis inside an MLP: "n" for gate, up and both in one, "k" for down.

    Whole MLPs of padded FP8 Linears count, whether absorbed or not, and whether their size is a config key or not.
    Zeros along such an axis can be passed on from gate and up to down: they are the activation of zero, times zero.
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
    """Whether an MLP has all its parts, each an FP8 Linear, of one inner size, and nothing else that reads it."""
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
