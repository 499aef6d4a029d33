"""Where vLLM quantizes an activation for its CUTLASS FP8 kernel, pad it too.

That kernel calls its attribute `quant_fp8(x, scale, scale_ub)` and gives the result to the GEMM (kernels/linear/
scaled_mm/ScaledMMLinearKernel.py, vLLM 0.26 to 0.33). So the attribute is what is replaced, on one layer's kernel:
the GEMM gets an activation of the weight's own K, and nothing before or after it has to know.
"""

from collections.abc import Callable
from typing import Any

import torch

_CUTLASS_KERNEL = "CutlassFP8ScaledMMLinearKernel"

# From this number of values on, about 20 us of quantization, the device is what a layer waits for.
_FEWEST_VALUES = 1 << 24

# By these attributes a `QuantFP8` tells how it quantizes.
_QUANTIZER_ATTRIBUTES = ("use_per_token_if_dynamic", "is_group_quant", "num_token_padding")


def pad_where_quantized(kernel: Any, padded_k: int) -> bool:
    """Let `kernel`, a layer's vLLM kernel, pad activations to `padded_k` as it quantizes them; return whether it does.

    It does not where it is another kernel than CUTLASS's, or one that vLLM has changed; the caller then pads the
    activation before it.
    """
    quantize = getattr(kernel, "quant_fp8", None)
    if type(kernel).__name__ != _CUTLASS_KERNEL or not all(hasattr(quantize, name) for name in _QUANTIZER_ATTRIBUTES):
        return False
    kernel.quant_fp8 = PaddedQuantization(kernel.quant_fp8, padded_k)
    return True


class PaddedQuantization:
    """Quantizes as the vLLM `QuantFP8` in `quantize` does, and appends zeros along K.

    One launch of ours gives the bytes and scales of vLLM's CUDA operators, and the zeros. Under torch.compile vLLM
    quantizes with native operations instead, for Inductor to fuse; but a layer padded so takes up to 1.5 times as long
    as with our launch, which is slower only for static scales and a handful of tokens (docs/benchmarks.md). So it is
    made there too: a compiled layer then quantizes as eager vLLM does.
    """

    def __init__(self, quantize: Any, padded_k: int) -> None:
        self.quantize = quantize
        self.padded_k = padded_k
        self.launch = _launch(quantize)

    def __call__(
        self, x: torch.Tensor, scale: torch.Tensor | None = None, scale_ub: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `x` `[M, K]` or `[M, padded_k]` as FP8 `[M, padded_k]`, and its scale."""
        missing = self.padded_k - x.shape[1]
        if self.launch is not None and (missing or _is_quicker_launched(x)):
            per_token = self.quantize.use_per_token_if_dynamic
            return self.launch(x, self.padded_k, scale=scale, scale_ub=scale_ub, per_token=per_token)
        x_fp8, x_scale = self.quantize(x, scale, scale_ub)
        return (torch.nn.functional.pad(x_fp8, (0, missing)) if missing else x_fp8), x_scale


def _is_quicker_launched(x: torch.Tensor) -> bool:
    """Return whether our launch is quicker for an activation that has its padding already, as it has inside an MLP.

    It takes the device 0.6 to 0.9 of the time of vLLM's operator, and the host 20 us more (docs/benchmarks.md): that
    pays where the device has enough to do. Compiled, vLLM's operations fuse with what stands before them.
    """
    return not torch.compiler.is_compiling() and x.numel() >= _FEWEST_VALUES


def _launch(quantize: Any) -> Callable[..., tuple[torch.Tensor, torch.Tensor]] | None:
    if quantize.is_group_quant or quantize.num_token_padding is not None:
        return None
    from fp8pad.runtime.kernels import quantize_and_pad  # Triton, which not every platform has

    return quantize_and_pad
