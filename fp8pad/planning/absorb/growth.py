"""How one tensor grows with the inner size of its MLP: along which dimension, and with which fill value."""

from math import prod
from typing import Literal

from fp8pad.errors import PlanError
from fp8pad.padded import AxisActions, PaddedTensor, Segments, Shape
from fp8pad.planning.absorb.governed import FLOAT_DTYPES, GovernedAxis
from fp8pad.planning.linear import ROTATED, Fp8Linear
from fp8pad.scales import PerBlock, resized_scale
from fp8pad.tensors import FP8_WEIGHT_DTYPES, ONE_BYTES


class NotAbsorbableError(Exception):
    """Why a key cannot be absorbed, in words for the plan; always caught inside `planning`."""


def grown(governed: GovernedAxis, linear: Fp8Linear | None, inner_size: int, new_size: int) -> PaddedTensor | None:
    """Return how a tensor changes if the `inner_size` of its MLP becomes `new_size`; None if it does not change.

    Raises `NotAbsorbableError` if it is not known how it grows, and `PlanError` if it does not have the size.
    """
    tensor = governed.tensor
    fill: Literal[0, 1] = 0
    if governed.leaf == "weight":
        _check_weight(governed, linear)
        shape = _resized(governed, tensor.shape, governed.dimension, inner_size, new_size)
    elif governed.leaf == "bias" and tensor.dtype in FLOAT_DTYPES:
        if governed.axis == "k":
            return None
        shape = _resized(governed, tensor.shape, len(tensor.shape) - 1, inner_size, new_size)
    elif linear and linear.scale and linear.scale.name == tensor.name:
        fill, shape = 1, _scale_shape(governed, linear, inner_size, new_size)
    elif governed.leaf.startswith("weight") and "zero_point" in governed.leaf:
        raise NotAbsorbableError(f"{tensor.name} is a zero point: zeros that are added would not count as 0")
    elif prod(tensor.shape) == 1 or (governed.mlp.stacked and prod(tensor.shape[1:]) == 1):
        return None
    elif "lora" in governed.leaf.lower():
        raise NotAbsorbableError(f"{tensor.name} belongs to a LoRA adapter, which is not merged")
    else:
        raise NotAbsorbableError(f"{tensor.name} {list(tensor.shape)} is not a tensor that fp8pad knows how to pad")
    return _padded(governed, shape, fill) if shape != tensor.shape else None


def _check_weight(governed: GovernedAxis, linear: Fp8Linear | None) -> None:
    tensor = governed.tensor
    if not governed.is_plain_weight or (tensor.dtype in FP8_WEIGHT_DTYPES and linear is None):
        raise NotAbsorbableError(
            f"{tensor.name} is {tensor.dtype} {list(tensor.shape)}, a layout that fp8pad does not pad"
        )
    if linear and not linear.is_understood:
        raise NotAbsorbableError(f"{tensor.name} is not understood: {linear.skip_reason}")
    if linear and linear.skip_reason == ROTATED:
        raise NotAbsorbableError("rotations in the model may have its size")


def _resized(governed: GovernedAxis, shape: Shape, index: int, inner_size: int, new_size: int) -> Shape:
    """Return the shape of a weight or bias with another inner size in dimension `index`."""
    if shape[index] != inner_size * governed.width:
        expected = inner_size * governed.width
        raise PlanError(f"{governed.tensor.name}: expected {expected} at index {index}, got {list(shape)}")
    return (*shape[:index], new_size * governed.width, *shape[index + 1 :])


def _scale_shape(governed: GovernedAxis, linear: Fp8Linear, inner_size: int, new_size: int) -> Shape:
    scale, weight, granularity = governed.tensor, linear.weight.shape, linear.granularity
    if granularity is None or scale.dtype not in ONE_BYTES:
        raise NotAbsorbableError(
            f"{scale.name} has a layout that fp8pad does not pad ({linear.skip_reason or scale.dtype})"
        )
    if isinstance(granularity, PerBlock) and governed.num_segments > 1 and inner_size % granularity.n:
        where = f"a block of {granularity.n} rows straddles gate and up in {governed.module}"
        raise NotAbsorbableError(f"{where}: {inner_size} is not a multiple of {granularity.n}")
    new_weight = _resized(governed, weight, governed.dimension, inner_size, new_size)
    return resized_scale(granularity, scale.shape, weight, new_weight, governed.order)


def _padded(governed: GovernedAxis, shape: Shape, fill: Literal[0, 1]) -> PaddedTensor:
    """Return the tensor with its new shape; gate and up in one tensor each grow at their own tail."""
    old, count = governed.tensor.shape, governed.num_segments
    index = next(index for index, (size, new) in enumerate(zip(old, shape, strict=True)) if size != new)
    axes = AxisActions.where_larger("absorb", old, shape)
    axis = -1 if axes.n == "aligned" else None
    segments = Segments((old[index] // count,) * count, (shape[index] // count,) * count, axis)
    return PaddedTensor(old, shape, fill, axes, segments if count > 1 else None)
