"""Recognising FP8 Linears by their tensors: a 2-D FP8 weight, its scale in any shard, and the granularity.

Weights that are not understood are carried, with a reason; planning/contradictions.py refuses what engines fail on.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fp8pad.planning.absorb.governed import GovernedAxis
from fp8pad.planning.linear import Fp8Linear
from fp8pad.planning.linear_names import INPUT_SCALES, is_scale_name, module_name, own_name, scale_names, type_by_name
from fp8pad.planning.plan import UntouchedTensor
from fp8pad.planning.quantization import Quantization
from fp8pad.planning.scale_layouts import granularity_of, other_layout, unpadded_blocks
from fp8pad.record import Json
from fp8pad.scales import Granularity, PerBlock
from fp8pad.tensors import FP8_WEIGHT_DTYPES, ONE_BYTES, TensorHeader

_ROUTED_EXPERT = re.compile(r"(^|\.)experts\.\d+\.")
_EXPERTS = re.compile(r"(^|[._])(experts|moe)([._]|$)")

# Families with Linears of transformers' class `Conv1D`, which stores its weight as `[K, N]`, and these modules.
_CONV1D_MODEL_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "jais", "clvp"})
_CONV1D_MODULES = frozenset({"c_attn", "c_proj", "c_fc", "c_fc2", "q_attn"})

_CONV1D = "a Conv1D, stored as [K, N]"
_ROUTED = "a routed expert: fused MoE kernels bypass the plugin"


@dataclass(frozen=True, slots=True)
class _Model:
    """What the decision on a weight depends on besides its own header; see `recognise`."""

    tensors: Mapping[str, TensorHeader]
    quantization: Quantization | None
    granularities: tuple[Granularity, ...]
    described: Mapping[str, GovernedAxis]
    has_conv1d: bool

    def is_conv1d(self, name: str) -> bool:
        """Return whether a module is a Conv1D, which stores its weight as `[K, N]`."""
        return self.has_conv1d and name.rpartition(".")[2] in _CONV1D_MODULES


def recognise(
    tensors: Mapping[str, TensorHeader],
    quantization: Quantization | None,
    config: Json,
    described: Mapping[str, GovernedAxis] = MappingProxyType({}),
) -> tuple[tuple[Fp8Linear, ...], tuple[UntouchedTensor, ...]]:
    """Split a checkpoint's weights into FP8 Linears and others, the latter each with a reason.

    `described` are modules that a family file describes as Linears of MLPs, whatever they are called.
    """
    linears, untouched = [], []
    has_conv1d = not _CONV1D_MODEL_TYPES.isdisjoint(_model_types(config))
    granularities = quantization.granularities if quantization else ()
    model = _Model(tensors, quantization, granularities, described, has_conv1d)
    for tensor in tensors.values():
        if _is_weight(tensor):
            linears.append(_linear(tensor, model))
        elif found := _untouched(tensor):
            untouched.append(found)
    return tuple(linears), tuple(untouched)


def _is_weight(tensor: TensorHeader) -> bool:
    if tensor.dtype not in FP8_WEIGHT_DTYPES or is_scale_name(tensor.name):
        return False
    is_stack = len(tensor.shape) == 3 and "conv" not in tensor.name
    return is_stack or (len(tensor.shape) == 2 and tensor.name.endswith(".weight"))


def _untouched(tensor: TensorHeader) -> UntouchedTensor | None:
    """Describe a tensor that is not the FP8 weight of a Linear; None if it is not a weight at all."""
    is_understood = True
    if tensor.dtype not in FP8_WEIGHT_DTYPES:
        if len(tensor.shape) < 2 or is_scale_name(tensor.name):
            return None
        reason = f"{tensor.dtype}, not FP8"
    elif is_scale_name(tensor.name):
        reason = "an FP8 scale, not a weight"
    elif len(tensor.shape) > 2:
        reason = f"FP8, but with {len(tensor.shape)} dimensions, not the weight of a Linear"
        is_understood = "conv" in tensor.name
    else:
        what = "under the name of a weight" if len(tensor.shape) == 2 else "the 2-D weight of a Linear"
        reason, is_understood = f"FP8, but not {what}", False
    return UntouchedTensor(tensor.name, tensor.dtype, tensor.shape, reason, is_understood)


def _linear(weight: TensorHeader, model: _Model) -> Fp8Linear:
    name = module_name(weight.name)
    scale = next((model.tensors[scale] for scale in scale_names(weight.name) if scale in model.tensors), None)
    if len(weight.shape) == 3:
        return _stack(name, weight, scale, model)
    axis = model.described.get(name)
    is_expert = (axis is not None and axis.mlp.experts) or _ROUTED_EXPERT.search(name) is not None
    scaled = _scaled(name, weight, scale, model, is_expert)
    return Fp8Linear(name, weight, scale, *scaled, is_expert, "kn" if model.is_conv1d(name) else "nk")


def _scaled(
    name: str, weight: TensorHeader, scale: TensorHeader | None, model: _Model, is_expert: bool
) -> tuple[Granularity | None, str | None, bool]:
    """Return how a 2-D weight is scaled, why it must not be padded on its own, and whether it is understood."""
    if name in model.described and model.described[name].mlp.stacked:
        return None, f"experts stacked in one 2-D weight, {list(weight.shape)}", False
    if scale is None:
        what = "an embedding" if type_by_name(name) == "table" else "an FP8 weight"
        return None, f"{what} without a scale of its own", False
    granularity = granularity_of(weight.shape, scale.shape, model.granularities)
    if granularity is None:
        return None, *other_layout(weight, scale, model.quantization)
    if granularity.name != "tensor" and model.is_conv1d(name):
        return None, f"{_CONV1D}, with scales {list(scale.shape)}, which engines may not load", True
    if scale.dtype not in ONE_BYTES:
        return granularity, f"scales of dtype {scale.dtype}", False
    reason = _ROUTED if is_expert else _unpadded(name, granularity, scale, model)
    is_linear = reason or type_by_name(name) or name in model.described or _has_inputs(name, weight, model.tensors)
    if not is_linear:
        reason = f"{own_name(name)!r} is not a name that engines use for a Linear"
    return granularity, reason, bool(is_linear)


def _unpadded(name: str, granularity: Granularity, scale: TensorHeader, model: _Model) -> str | None:
    """Return why a layer that is understood must not be padded on its own; None if it may be padded."""
    if type_by_name(name) == "table":
        return "an embedding, not a Linear"
    if model.is_conv1d(name):
        return _CONV1D
    if f"{name}.weight_zero_point" in model.tensors:
        return "FP8 with zero points, which fp8pad does not pad"
    if isinstance(granularity, PerBlock):
        return unpadded_blocks(granularity, scale, model.quantization)
    return None


def _stack(name: str, weight: TensorHeader, scale: TensorHeader | None, model: _Model) -> Fp8Linear:
    axis = model.described.get(name)
    if axis is None or not axis.mlp.stacked:
        reason = "matrices stacked in one 3-D weight, whose axis order no family file describes"
        is_expert = _EXPERTS.search(name) is not None
        return Fp8Linear(name, weight, scale, None, reason, is_understood=is_expert, is_expert=is_expert)
    order = axis.order
    granularity = granularity_of(weight.shape, scale.shape, model.granularities, order) if scale else None
    reason = "experts stacked in one 3-D weight"
    if granularity is None:
        reason += (
            f", with scales {list(scale.shape)} of a layout that fp8pad does not pad" if scale else ", without a scale"
        )
    elif order == "kn":
        reason += ", stored as [num_experts, K, N]"
    is_understood = granularity is not None
    return Fp8Linear(name, weight, scale, granularity, reason, is_understood, is_expert=True, order=order)


def _has_inputs(name: str, weight: TensorHeader, tensors: Mapping[str, TensorHeader]) -> bool:
    """Return whether a module multiplies an input, judging by its tensors: it has a bias or an input scale."""
    bias = tensors.get(f"{name}.bias")
    return (bias is not None and bias.shape == weight.shape[:1]) or any(
        f"{name}.{key}" in tensors for key in INPUT_SCALES
    )


def _model_types(config: Json) -> Iterator[str]:
    """Yield the model types of a config and of the configs nested in it."""
    if isinstance(model_type := config.get("model_type"), str):
        yield model_type
    for value in config.values():
        if isinstance(value, Mapping):
            yield from _model_types(value)
