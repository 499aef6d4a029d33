"""What is refused: tensors and configs that contradict each other, so that engines fail or produce wrong outputs."""

from collections.abc import Mapping, Sequence
from math import prod

from fp8pad.errors import PlanError
from fp8pad.planning.linear import Fp8Linear
from fp8pad.planning.linear_names import INPUT_SCALES, SCALE_SUFFIXES, is_scale_name, scale_names
from fp8pad.planning.quantization import Quantization
from fp8pad.planning.weight_formats import OTHER_FP8
from fp8pad.scales import Granularity, PerChannel, PerTensor, stored_scale_shapes
from fp8pad.tensors import FP8_WEIGHT_DTYPES, ONE_BYTES, TensorHeader

_SCALE_DTYPES = frozenset({"F64", *ONE_BYTES})

# Sizes of one MLP that must be equal: for a module, its sibling, its own axis and the sibling's.
_EQUAL_SIZES: Mapping[str, tuple[tuple[str, int, int], ...]] = {
    "up_proj": (("gate_proj", 0, 0), ("gate_proj", 1, 1)),
    "down_proj": (("up_proj", 1, 0),),
    "w3": (("w1", 0, 0), ("w1", 1, 1)),
}


def check_consistent(
    tensors: Mapping[str, TensorHeader], linears: Sequence[Fp8Linear], quantization: Quantization | None
) -> None:
    """Raise `PlanError` for tensors that contradict each other or the quantization config."""
    if not tensors:
        raise PlanError("model.safetensors: has no tensors")
    for tensor in tensors.values():
        if tensor.dtype in FP8_WEIGHT_DTYPES and len(tensor.shape) != 2:
            _check_shape(tensor, tensors)
    for linear in linears:
        _check_quantized(linear, quantization)
        _check_scale(linear)
        _check_bias(linear, tensors)
        _check_input_scale(linear, tensors)
    _check_granularities(linears, quantization)
    _check_weights_of_scales(tensors)
    _check_siblings(linears)


def _check_shape(tensor: TensorHeader, tensors: Mapping[str, TensorHeader]) -> None:
    if 0 in tensor.shape:
        raise PlanError(f"{tensor.name}: a size of 0 in {list(tensor.shape)}")
    scale = next((name for name in scale_names(tensor.name) if name in tensors), None)
    if len(tensor.shape) < 2 and scale and not is_scale_name(tensor.name):
        raise PlanError(f"{tensor.name}: expected a matrix, since {scale} belongs to it, got {list(tensor.shape)}")


def _check_quantized(linear: Fp8Linear, quantization: Quantization | None) -> None:
    """Refuse a weight that is quantized to FP8, with its scale, in a checkpoint whose config says otherwise."""
    if linear.scale is None:
        return
    if quantization is None:
        raise PlanError(f"{linear.weight.name}: {linear.weight.dtype}, but config.json has no quantization_config")
    if quantization.formats and quantization.formats == quantization.others:
        says = " and ".join(quantization.others)
        raise PlanError(f"{linear.weight.name}: {linear.weight.dtype}, but {quantization.where} says {says}")


def _check_scale(linear: Fp8Linear) -> None:
    for tensor in (linear.weight, linear.scale):
        if tensor and 0 in tensor.shape:
            raise PlanError(f"{tensor.name}: a size of 0 in {list(tensor.shape)}")
    if linear.scale and linear.granularity:
        _check_dtype(linear.scale)


def _check_dtype(scale: TensorHeader) -> None:
    if scale.dtype not in _SCALE_DTYPES:
        raise PlanError(f"{scale.name}: expected scales of {' or '.join(ONE_BYTES)}, got {scale.dtype}")


def _check_bias(linear: Fp8Linear, tensors: Mapping[str, TensorHeader]) -> None:
    bias = tensors.get(f"{linear.name}.bias")
    if bias is None or linear.granularity is None or len(linear.shape) != 2:
        return
    num_n, shape = linear.shape[0], list(linear.weight.shape)
    if bias.shape != (num_n,):
        raise PlanError(f"{bias.name}: expected [{num_n}], as {linear.weight.name} is {shape}, got {list(bias.shape)}")


def _check_input_scale(linear: Fp8Linear, tensors: Mapping[str, TensorHeader]) -> None:
    if not isinstance(linear.granularity, PerTensor):
        return
    for scale in (tensors.get(f"{linear.name}.{name}") for name in INPUT_SCALES):
        if scale is None:
            continue
        if prod(scale.shape) != 1:
            raise PlanError(f"{scale.name}: expected one scale for the whole input, got {list(scale.shape)}")
        _check_dtype(scale)


def _check_granularities(linears: Sequence[Fp8Linear], quantization: Quantization | None) -> None:
    """Refuse a config that fits none of its weights, although a weight has scales of a known granularity."""
    if quantization is None or OTHER_FP8 in quantization.formats or any(linear.granularity for linear in linears):
        return
    for linear in linears:
        others: tuple[Granularity, ...] = (PerChannel(), PerTensor())
        for granularity in (other for other in others if other not in quantization.granularities):
            shapes = stored_scale_shapes(granularity, linear.weight.shape)
            if linear.scale and len(linear.weight.shape) == 2 and linear.scale.shape in shapes:
                names = " or ".join(dict.fromkeys(allowed.name for allowed in quantization.granularities))
                raise PlanError(
                    f"{linear.scale.name}: expected {names or 'no'} scales, as {quantization.where} says, "
                    f"got {granularity.name} scales {list(linear.scale.shape)}"
                )


def _check_weights_of_scales(tensors: Mapping[str, TensorHeader]) -> None:
    modules = {name.rpartition(".")[0] for name in tensors if not is_scale_name(name) and not name.endswith(".bias")}
    leaves = {f"weight{suffix}" for suffix in SCALE_SUFFIXES}
    for name in tensors:
        module, _, leaf = name.rpartition(".")
        if leaf not in leaves or not module or module in modules or module in tensors:
            continue
        if not any(other.startswith(f"{module}.") for other in modules):  # a table split into shards has one scale
            raise PlanError(f"{name}: a scale without its weight: expected {module}.weight")


def _check_siblings(linears: Sequence[Fp8Linear]) -> None:
    """Refuse matrices that are multiplied by or fused with each other, but whose sizes do not match."""
    shapes = {linear.name: linear.shape for linear in linears if len(linear.shape) == 2}
    for name, shape in shapes.items():
        parent, dot, last = name.rpartition(".")
        for sibling, axis, other_axis in _EQUAL_SIZES.get(last, ()):
            other = shapes.get(f"{parent}{dot}{sibling}")
            if other and shape[axis] != other[other_axis]:
                raise PlanError(
                    f"{name}.weight: expected {other[other_axis]} {'rows' if axis == 0 else 'columns'}"
                    f" to match {parent}{dot}{sibling}.weight {list(other)}, got {list(shape)}"
                )
