"""The line that says, when a model is loaded, what fp8pad does in it."""

import logging
from collections import Counter
from typing import Any

import torch

from fp8pad.runtime.linear import PaddedLinearMethod, kernel_of

# A logger below vLLM's own, whose handler and level it has.
LOGGER = logging.getLogger("vllm.fp8pad")


def startup_line(model: torch.nn.Module) -> str | None:
    """Return how many layers of a model, on this rank, are padded, in which ways, and by which kernels; None if none.

    A layer counts once, by what is done in each of its forwards.
    """
    layers = [(layer, method) for layer in model.modules() if (method := _padding(layer))]
    if not layers:
        return None
    ways = Counter(_way(method) for _, method in layers)
    kernels = sorted({type(kernel_of(method, layer)).__name__ for layer, method in layers})
    counted = "; ".join(f"{number} {way}" for way, number in sorted(ways.items(), key=lambda item: -item[1]))
    return f"fp8pad: {len(layers)} layers padded ({counted}), kernel {', '.join(kernels)}"


def _padding(layer: Any) -> PaddedLinearMethod | None:
    method = getattr(layer, "quant_method", None)
    return method if isinstance(method, PaddedLinearMethod) and method.sizes.is_padded else None


def _way(method: PaddedLinearMethod) -> str:
    if method.keeps_tails or method.takes_tails:
        return "inside MLPs, kept"
    if method.pads_where_quantized:
        return "quantized and padded in one launch"
    return "padded before the kernel" if method.sizes.padded_k > method.sizes.k else "cut after the kernel"
