"""How one tensor grows with the inner size of its MLP: which of its dimensions, in what steps, filled with what."""

from dataclasses import dataclass
from typing import Literal

from fp8pad.errors import PlanError
from fp8pad.geometry import num_blocks, num_elements
from fp8pad.planning.absorb.governed import FLOAT_DTYPES, GovernedAxis
from fp8pad.planning.layers import Fp8Linear
from fp8pad.record import AxisActions, PaddedTensor, Segments, Shape
from fp8pad.scales import PerBlock, PerChannel, PerTensor
from fp8pad.tensors import FP8_WEIGHT_DTYPES, ONE_BYTES, TensorHeader


class NotAbsorbableError(Exception):
    """Why a key cannot be absorbed, in words for the plan; never leaves the planning."""


@dataclass(frozen=True, slots=True)
class Growth:
    """Dimension `index` holds `num_segments` matrices of `width` rows a neuron, with one entry per `unit` of them."""

    index: int
    fill: Literal[0, 1]
    num_segments: int = 1
    width: int = 1
    unit: int = 1


def growth_of(governed: GovernedAxis, linear: Fp8Linear | None, inner_size: int) -> Growth | None:
    """Return how a tensor grows with its MLP's `inner_size`, None if it does not; `NotAbsorbableError` if it cannot."""
    tensor = governed.tensor
    if governed.leaf == "weight":
        if not governed.is_plain_weight or (tensor.dtype in FP8_WEIGHT_DTYPES and linear is None):
            raise NotAbsorbableError(
                f"{tensor.name} is {tensor.dtype} {list(tensor.shape)}, a layout that is not padded"
            )
        if linear and not linear.is_understood:
            raise NotAbsorbableError(f"{tensor.name} is not understood: {linear.skip_reason}")
        return _growth(governed, governed.index, 0)
    if governed.leaf == "bias" and tensor.dtype in FLOAT_DTYPES:
        return None if governed.axis == "k" else _growth(governed, len(tensor.shape) - 1, 0)
    if linear and linear.scale and linear.scale.name == tensor.name:
        return _scale_growth(governed, linear, inner_size)
    if num_elements(tensor.shape) == 1 or (governed.order and num_elements(tensor.shape[1:]) == 1):
        return None
    if "lora" in governed.leaf.lower():
        raise NotAbsorbableError(f"{tensor.name} belongs to a LoRA adapter, which is not merged")
    raise NotAbsorbableError(f"{tensor.name} {list(tensor.shape)} is not a tensor that fp8pad knows how to pad")


def grown(governed: GovernedAxis, growth: Growth, inner_size: int, padded_inner_size: int) -> PaddedTensor | None:
    """Return the tensor for a larger inner size, None where it has room already; `PlanError` where it does not fit."""
    shape, count = governed.tensor.shape, growth.num_segments
    logical, padded = (num_blocks(size * growth.width, growth.unit) for size in (inner_size, padded_inner_size))
    if shape[growth.index] != count * logical:
        raise PlanError(
            f"{governed.tensor.name}: expected {count * logical} in place {growth.index}, got {list(shape)}"
        )
    if logical == padded:
        return None
    return PaddedTensor(
        logical_shape=shape,
        padded_shape=(*shape[: growth.index], count * padded, *shape[growth.index + 1 :]),
        fill=growth.fill,
        axes=AxisActions("absorb", "aligned") if _is_n(growth.index, shape) else AxisActions("aligned", "absorb"),
        segments=_segments(growth, shape, logical, padded),
    )


def _growth(governed: GovernedAxis, index: int, fill: Literal[0, 1], unit: int = 1) -> Growth:
    return Growth(index, fill, governed.num_segments, governed.width // governed.num_segments, unit)


def _scale_growth(governed: GovernedAxis, linear: Fp8Linear, inner_size: int) -> Growth | None:
    scale = governed.tensor
    match linear.granularity:
        case PerTensor():
            return None
        case PerChannel() if scale.dtype in ONE_BYTES:
            return _growth(governed, _channel_index(scale, linear.shape), 1) if governed.axis == "n" else None
        case PerBlock() if scale.dtype in ONE_BYTES:
            unit = linear.granularity.block[0 if governed.axis == "n" else 1]
            if governed.num_segments > 1 and inner_size % unit:
                raise NotAbsorbableError(
                    f"a block of {unit} rows straddles gate and up in {governed.module}: {inner_size} is not a multiple"
                )
            # NVIDIA ModelOpt's grids are [R, 1, C, 1].
            return _growth(governed, governed.index * (2 if len(scale.shape) == 4 else 1), 1, unit)
    raise NotAbsorbableError(f"{scale.name} has a layout that is not padded ({linear.skip_reason or scale.dtype})")


def _channel_index(scale: TensorHeader, shape: Shape) -> int:
    """The dimension of a scale per channel that has the channels: those of a stack of experts lie behind the first."""
    in_front = len(shape) - 2
    return in_front + scale.shape[in_front:].index(shape[-2])


def _is_n(index: int, shape: Shape) -> bool:
    return index == {1: 0, 2: 0, 3: 1, 4: 0}[len(shape)]


def _segments(growth: Growth, shape: Shape, logical: int, padded: int) -> Segments | None:
    count = growth.num_segments
    if count == 1:
        return None
    return Segments((logical,) * count, (padded,) * count, None if _is_n(growth.index, shape) else -1)
