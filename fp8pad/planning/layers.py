"""Recognising FP8 Linears by their tensors: a 2-D FP8 weight, its scale wherever it lies, and the granularity."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fp8pad.errors import PlanError
from fp8pad.planning.plan import UntouchedTensor
from fp8pad.planning.quantization import Quantization
from fp8pad.planning.stacks import Order, in_order, stacked_granularity
from fp8pad.record import Json
from fp8pad.scales import Granularity, PerBlock, stored_scale_shapes
from fp8pad.tensors import FP8_WEIGHT_DTYPES, ONE_BYTES, TensorHeader

_ROUTED_EXPERT = re.compile(r"(^|\.)experts\.\d+\.")
_SCALE_NAME = re.compile(r"(scale|scale_inv|scale_2|scale_ub|zero_point)$")
_EMBEDDINGS = frozenset(
    {"embed_tokens", "embeddings", "word_embeddings", "position_embeddings", "token_embedding", "embed_positions",
     "wte", "wpe", "tok_embeddings", "shared", "embed_in", "position_embedding", "token_type_embeddings"}
)  # fmt: skip

# Families whose Linears are transformers' `Conv1D`, which keeps its weight as `[K, N]`, and the modules that are.
_CONV1D_MODEL_TYPES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "jais", "clvp"})
_CONV1D_MODULES = frozenset({"c_attn", "c_proj", "c_fc", "c_fc2", "q_attn"})

NO_EXPERTS: Mapping[str, Order | None] = {}


@dataclass(frozen=True, slots=True)
class Fp8Linear:
    """An FP8 weight `[N, K]` with its scale.

    `skip_reason` is set where it must not be padded on its own; `granularity` is None where its scales are of a layout
    that fp8pad does not know. `is_expert` marks routed experts. Those that are stacked in one weight have a dimension
    more, in front, and may have the other two in the `order` K, N.
    """

    name: str
    weight: TensorHeader
    scale: TensorHeader | None
    granularity: Granularity | None
    skip_reason: str | None = None
    is_expert: bool = False
    order: Order = "nk"

    @property
    def shape(self) -> tuple[int, ...]:
        """The weight's shape as `[N, K]` or `[num_experts, N, K]`, in whatever order it is stored."""
        return in_order(self.weight.shape, self.order)


def recognise(
    tensors: Mapping[str, TensorHeader],
    quantization: Quantization | None,
    config: Json,
    experts: Mapping[str, Order | None] = NO_EXPERTS,
) -> tuple[tuple[Fp8Linear, ...], tuple[UntouchedTensor, ...]]:
    """Split a checkpoint's weights into FP8 Linears and those that are not, each of these with its reason.

    `experts` are the modules that the model's family file says are routed experts, with the order of the axes of those
    that are stacked. Raises `PlanError` where an FP8 weight has no scale, a scale of a shape that its config rules out,
    or no config.
    """
    linears, untouched = [], []
    for tensor in tensors.values():
        if _is_fp8_linear(tensor):
            linears.append(_linear(tensor, tensors, quantization, config, experts))
        elif reason := _untouched_reason(tensor):
            untouched.append(UntouchedTensor(tensor.name, tensor.dtype, tensor.shape, reason))
    check_siblings(linears)
    return tuple(linears), tuple(untouched)


def module_name(weight_name: str) -> str:
    """Return the module that a weight belongs to; a bare parameter is its own module."""
    return weight_name.removesuffix(".weight")


def scale_names(weight_name: str) -> tuple[str, ...]:
    """Return the names under which tools store the scale of a weight, the usual ones first."""
    module = module_name(weight_name)
    return f"{weight_name}_scale", f"{weight_name}_scale_inv", f"{module}.scale", f"{module}_weight_scale"


def check_siblings(linears: Sequence[Fp8Linear]) -> None:
    """Raise `PlanError` where matrices that are multiplied with each other or fused have sizes that do not meet."""
    shapes = {linear.name: linear.weight.shape for linear in linears if len(linear.weight.shape) == 2}
    for name, shape in shapes.items():
        for other, other_shape, axis, other_axis in _siblings(name, shapes):
            if shape[axis] != other_shape[other_axis]:
                raise PlanError(
                    f"{name}.weight: expected {other_shape[other_axis]} {'rows' if axis == 0 else 'columns'}"
                    f" as {other}.weight {list(other_shape)} asks for, got {list(shape)}"
                )


def _siblings(name: str, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
    parent, _, last = name.rpartition(".")
    meets = {
        "up_proj": (("gate_proj", 0, 0), ("gate_proj", 1, 1)),
        "down_proj": (("up_proj", 1, 0),),
        "w3": (("w1", 0, 0), ("w1", 1, 1)),
        "k_proj": (("q_proj", 1, 1),),
        "v_proj": (("k_proj", 1, 1),),
    }
    for sibling, axis, other_axis in meets.get(last, ()):
        other = f"{parent}.{sibling}" if parent else sibling
        if other in shapes:
            yield other, shapes[other], axis, other_axis


def _is_fp8_linear(tensor: TensorHeader) -> bool:
    if tensor.dtype not in FP8_WEIGHT_DTYPES or _SCALE_NAME.search(tensor.name):
        return False
    return _is_stacked(tensor) or (len(tensor.shape) == 2 and tensor.name.endswith(".weight"))


def _is_stacked(tensor: TensorHeader) -> bool:
    return len(tensor.shape) == 3 and "conv" not in tensor.name


def _untouched_reason(tensor: TensorHeader) -> str | None:
    if tensor.dtype in FP8_WEIGHT_DTYPES:
        if _SCALE_NAME.search(tensor.name):
            return "an FP8 scale, not a weight"
        return "FP8, but not the 2-D weight of a Linear"
    if len(tensor.shape) < 2 or _SCALE_NAME.search(tensor.name):
        return None
    return f"{tensor.dtype}, not FP8"


def _linear(
    weight: TensorHeader,
    tensors: Mapping[str, TensorHeader],
    quantization: Quantization | None,
    config: Json,
    experts: Mapping[str, Order | None],
) -> Fp8Linear:
    if quantization is None:
        raise PlanError(f"{weight.name}: {weight.dtype}, but config.json has no quantization_config")
    name = module_name(weight.name)
    scale = next((tensors[scale] for scale in scale_names(weight.name) if scale in tensors), None)
    if _is_stacked(weight):
        return _stack(name, weight, scale, quantization, experts.get(name))
    is_expert = name in experts or _ROUTED_EXPERT.search(name) is not None
    if scale is None:
        raise PlanError(f"{weight.name}: an FP8 weight without a scale: expected {scale_names(weight.name)[0]}")
    if reason := _foreign_layout(weight, scale, quantization):
        return Fp8Linear(name, weight, scale, None, skip_reason=reason, is_expert=is_expert)
    granularity = _granularity(weight, scale, quantization)
    reason = _skip_reason(name, scale, is_expert, config) or _unsupported_block(granularity, scale, quantization)
    return Fp8Linear(name, weight, scale, granularity, reason, is_expert)


def _stack(
    name: str, weight: TensorHeader, scale: TensorHeader | None, quantization: Quantization, order: Order | None
) -> Fp8Linear:
    if order is None:
        reason = "matrices stacked in one 3-D weight, whose order no family file tells"
        return Fp8Linear(name, weight, scale, None, reason, is_expert=True)
    granularity = stacked_granularity(weight.shape, scale.shape, order, quantization.granularities) if scale else None
    reason = "experts stacked in one 3-D weight"
    if granularity is None:
        reason += f", with scales {list(scale.shape)} of a layout that is not padded" if scale else ", without a scale"
    elif order == "kn":
        reason += ", stored as [num_experts, K, N]"
    return Fp8Linear(name, weight, scale, granularity, reason, is_expert=True, order=order)


def _skip_reason(name: str, scale: TensorHeader, is_expert: bool, config: Json) -> str | None:
    last = name.rpartition(".")[2]
    if is_expert:
        return "a routed expert: the fused MoE kernels never meet the runtime"
    if last in _EMBEDDINGS:
        return "an embedding, not a Linear"
    if last in _CONV1D_MODULES and not _CONV1D_MODEL_TYPES.isdisjoint(_model_types(config)):
        return "a Conv1D, stored as [K, N]"
    if scale.dtype not in ONE_BYTES:
        return f"scales of dtype {scale.dtype}"
    return None


def _unsupported_block(granularity: Granularity, scale: TensorHeader, quantization: Quantization) -> str | None:
    # vLLM's ModelOpt method makes scales [R, 1, C, 1] of its own, and refuses an unaligned K (modelopt.py).
    if isinstance(granularity, PerBlock) and (quantization.method == "modelopt" or len(scale.shape) == 4):
        return "block scales of ModelOpt, which the runtime does not pad"
    return None


def _model_types(config: Json) -> Iterator[str]:
    """Yield the model types of a config and of the configs nested in it."""
    if isinstance(model_type := config.get("model_type"), str):
        yield model_type
    for value in config.values():
        if isinstance(value, Mapping):
            yield from _model_types(value)


def _foreign_layout(weight: TensorHeader, scale: TensorHeader, quantization: Quantization) -> str | None:
    if not quantization.foreign_layouts or _granularities(weight, scale, quantization):
        return None
    return f"scales {scale.dtype} {list(scale.shape)} of a layout that is not padded ({quantization.method})"


def _granularity(weight: TensorHeader, scale: TensorHeader, quantization: Quantization) -> Granularity:
    found = _granularities(weight, scale, quantization)
    if not found:
        raise PlanError(
            f"{scale.name}: expected {_expected(weight, quantization)}"
            f" for the weight {list(weight.shape)}, got {list(scale.shape)}"
        )
    return found[0]


def _granularities(weight: TensorHeader, scale: TensorHeader, quantization: Quantization) -> list[Granularity]:
    """Every granularity that both the shape of the scale and the config allow.

    A single scale of a single row is both a tensor's and a channel's: it is left as it is, unless the config has only
    channels.
    """
    order = ("block", "tensor", "channel")
    return [
        granularity
        for granularity in sorted(quantization.granularities, key=lambda granularity: order.index(granularity.name))
        if scale.shape in stored_scale_shapes(granularity, weight.shape)
    ]


def _expected(weight: TensorHeader, quantization: Quantization) -> str:
    shapes = {
        granularity.name: list(granularity.scale_shape(weight.shape)) for granularity in quantization.granularities
    }
    expected = [f"a {name} scale {shapes[name]}" for name in ("tensor", "channel", "block") if name in shapes]
    return " or ".join(expected) or "no FP8 weight"
