"""How a weight, or a stack of experts, is scaled: by its scales' shape and what the quantization config allows."""

from functools import lru_cache
from typing import get_args

from fp8pad.geometry import num_blocks
from fp8pad.planning.quantization import Quantization
from fp8pad.planning.weight_formats import OTHER_FP8
from fp8pad.scales import Granularity, GranularityName, Order, PerBlock, Shape, stored_scale_shapes
from fp8pad.tensors import TensorHeader

# The OCP Microscaling formats have one 8-bit scale for this many inputs; DeepSeek-V4.1 has one for this many rows too.
_MX_GROUP = 32


@lru_cache
def granularity_of(
    weight_shape: Shape, scale_shape: Shape, allowed: tuple[Granularity, ...], order: Order = "nk"
) -> Granularity | None:
    """Return the granularity that both the shape of the scale and the config allow; None if there is none.

    A single scale of a single row could be per tensor or per channel: it counts as per tensor, and is not padded,
    unless the config allows only channels.
    """
    fitting = {
        granularity.name: granularity
        for granularity in reversed(allowed)
        if scale_shape in stored_scale_shapes(granularity, weight_shape, order)
    }
    return fitting.get("block") or fitting.get("tensor") or fitting.get("channel")


def other_layout(weight: TensorHeader, scale: TensorHeader, quantization: Quantization | None) -> tuple[str, bool]:
    """Return a description of a scale that fits no granularity of the config, and whether its layout is known."""
    num_n, num_k = weight.shape
    found = f"scales {scale.dtype} {list(scale.shape)}"
    if scale.dtype in ("U8", "F8_E8M0") and scale.shape == (num_n, num_blocks(num_k, _MX_GROUP)):
        return f"MXFP8, {found}: one for each {_MX_GROUP} inputs, which fp8pad does not pad", True
    if quantization is None:
        return f"{found}, but no quantization config", False
    for grid in (it.scale_shape(weight.shape) for it in quantization.granularities if isinstance(it, PerBlock)):
        if scale.shape == tuple(size for size in grid if size != 1):  # written by transformers and ModelOpt
            return f"{found}: block scales {list(grid)} without sizes of 1, which fp8pad does not pad", True
    if OTHER_FP8 in quantization.formats:
        return f"{found} of a layout that fp8pad does not pad ({quantization.method})", False
    allowed = {granularity.name: granularity for granularity in quantization.granularities}
    known = (allowed[name] for name in get_args(GranularityName) if name in allowed)
    expected = " or ".join(f"a {it.name} scale {list(it.scale_shape(weight.shape))}" for it in known)
    return f"{found} where {expected or 'no FP8 weight'} is expected", False


def unpadded_blocks(block: PerBlock, scale: TensorHeader, quantization: Quantization | None) -> str | None:
    """Return why the runtime does not pad this kind of block scales; None if it does."""
    if block == PerBlock(_MX_GROUP, _MX_GROUP) and scale.dtype == "F8_E8M0":
        return f"MXFP8 in blocks of {_MX_GROUP} x {_MX_GROUP}, which the plugin does not pad"
    # vLLM's ModelOpt method makes scales [R, 1, C, 1] of its own, and refuses an unaligned K (modelopt.py).
    if len(scale.shape) == 4 or (quantization is not None and quantization.method.startswith("modelopt")):
        return "ModelOpt block scales, which the plugin does not pad"
    return None
