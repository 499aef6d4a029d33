"""The ways to run one FP8 layer, per-channel weights and per-token activations, each on vLLM's own kernel class.

* `aligned`: the same layer with aligned sizes, as if the model had them;
* `vllm`: the layer as it is; vLLM pads its weight at load, and in every forward pads its activation or cuts its output;
* `runtime`: the layer of a padded checkpoint, its activation padded while it is quantized, its output cut;
* `kept`: the same inside an MLP: the layer before it keeps the padding, and the one after it accepts it;
* `absorbed`: the layer of an absorbed checkpoint. It is an aligned layer: any difference from `aligned` is noise.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fp8pad.bench.shapes import LayerShape
from fp8pad.runtime.activations import cut_output, pad_where_quantized, takes_strided_rows

DTYPE = torch.bfloat16
CANDIDATES = ("aligned", "vllm", "runtime", "kept", "absorbed")
_PARAMETERS = ("weight", "weight_scale", "input_scale", "input_scale_ub")

Forward = Callable[[torch.Tensor], torch.Tensor]


@contextmanager
def vllm_operators() -> Iterator[None]:
    """Make layers inside the context as eager vLLM does: with its own CUDA operators."""
    from vllm.config import CompilationConfig, VllmConfig, set_current_vllm_config

    with set_current_vllm_config(VllmConfig(compilation_config=CompilationConfig(mode=0, custom_ops=["all"]))):
        yield


def make_forward(candidate: str, shape: LayerShape) -> tuple[Forward, int]:
    """Return one layer of random weights as a function of its activation `[M, K]`, and the K it takes."""
    if candidate in ("aligned", "absorbed"):
        return _forward(shape.padded_shape), shape.padded_shape[1]
    if candidate == "kept":
        return _forward(shape.kept_shape), shape.kept_shape[1]
    if candidate == "vllm":
        return _forward(shape.logical_shape), shape.k
    return _runtime_forward(shape), shape.k


def _forward(weight_shape: tuple[int, int]) -> Forward:
    layer, kernel = _layer(weight_shape)
    return lambda x: kernel.apply_weights(layer, x)


def _runtime_forward(shape: LayerShape) -> Forward:
    """Return a layer that does what runtime.linear does: pad along K in the quantization, cut the output along N."""
    layer, kernel = _layer(shape.padded_shape)
    padded_n, padded_k = shape.padded_shape
    if padded_k > shape.k and not pad_where_quantized(kernel, padded_k):
        raise TypeError(f"fp8pad does not pad during quantization for {type(kernel).__name__}")
    if padded_n == shape.n:
        return lambda x: kernel.apply_weights(layer, x)
    strided = takes_strided_rows(shape.name)
    return lambda x: cut_output(kernel.apply_weights(layer, x), shape.n, strided=strided)


def _layer(weight_shape: tuple[int, int]) -> tuple[torch.nn.Module, Any]:
    """Return a layer as vLLM holds it once loaded, with its CUTLASS kernel."""
    kernel = _cutlass_kernel(weight_shape, DTYPE)
    layer = torch.nn.Module()
    weight = torch.randn(weight_shape, device="cuda", dtype=torch.bfloat16).to(torch.float8_e4m3fn)
    weight_scale = torch.rand(weight_shape[0], 1, device="cuda") / weight_shape[1] + 1e-4
    layer.weight = torch.nn.Parameter(weight.t(), requires_grad=False)
    layer.weight_scale = torch.nn.Parameter(weight_scale, requires_grad=False)
    kernel.process_weights_after_loading(layer)
    return layer, kernel


def _cutlass_kernel(weight_shape: tuple[int, int], dtype: torch.dtype) -> Any:
    from vllm.model_executor.kernels.linear.scaled_mm.cutlass import CutlassFP8ScaledMMLinearKernel
    from vllm.model_executor.kernels.linear.scaled_mm.ScaledMMLinearKernel import FP8ScaledMMLinearLayerConfig
    from vllm.model_executor.layers.quantization.utils.quant_utils import kFp8DynamicTokenSym, kFp8StaticChannelSym

    config = FP8ScaledMMLinearLayerConfig(
        weight_quant_key=kFp8StaticChannelSym,
        activation_quant_key=kFp8DynamicTokenSym,
        weight_shape=weight_shape,
        input_dtype=dtype,
        out_dtype=dtype,
    )
    return CutlassFP8ScaledMMLinearKernel(config, _PARAMETERS)
