"""Where vLLM reads a layer's weight past its linear method: MLA takes `kv_b_proj` apart once, after loading.

`get_and_maybe_dequant_weights(layer)` dequantizes the weight as it lies for the `fp8` method, and multiplies an
identity matrix through the layer for others. Only the first sees the padding.
"""

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

import torch

from fp8pad.runtime.linear import PaddedLinearMethod

_NAME = "get_and_maybe_dequant_weights"
_HOME = "vllm.model_executor.layers.quantization.utils.quant_utils"

# Modules that hold the function under its own name, if they were imported before us.
_READERS = ("vllm.model_executor.layers.attention.mla_attention", "vllm.v1.attention.backends.mla.amx_mla")


def cut_dequantized_weights() -> None:
    """Let vLLM's dequantized weights, `[N, K]`, of padded layers be without their padding."""
    importlib.import_module(_HOME)
    for name in (_HOME, *_READERS):
        module = sys.modules.get(name)
        if module is not None and not hasattr(getattr(module, _NAME), "__wrapped__"):
            setattr(module, _NAME, _cutting(getattr(module, _NAME)))


def _cutting(dequantize: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(dequantize)
    def dequantize_and_cut(layer: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        weight = dequantize(layer, *args, **kwargs)
        while hasattr(layer, "base_layer"):  # a LoRA wrapper
            layer = layer.base_layer
        method = layer.quant_method
        if not isinstance(method, PaddedLinearMethod) or tuple(weight.shape) == method.sizes.logical_shape:
            return weight
        n, k = method.sizes.logical_shape
        # MLA views the transpose, [K, N], which must be contiguous for that.
        return weight.T[:k, :n].contiguous().T

    return dequantize_and_cut
