"""Around vLLM's kernel: pad an activation while it is quantized, and cut the output.

CUTLASS's kernel calls its attribute `quant_fp8(x, scale, scale_ub)` and passes the result to the GEMM (kernels/linear/
scaled_mm/ScaledMMLinearKernel.py, vLLM 0.26 to 0.33). So only this attribute of one layer's kernel is replaced: the
GEMM gets an activation with the weight's padded K, and no other code has to know.

There are two ways to pad and two to cut, with bitwise equal results. vLLM's and torch's own operators take less host
time, our kernels less device time (docs/benchmarks.md), so the number of values decides.
"""

import functools
import itertools
from typing import Any

import torch
from torch.compiler import is_compiling

from fp8pad.runtime.contract import QUANTIZE, QUANTIZER, is_as_expected

_CUTLASS_KERNEL = "CutlassFP8ScaledMMLinearKernel"

# From this number of values on, an eager layer waits for the device, not for Python: quantizing them takes the device
# about 20 us, and launching our kernel takes Python 20 us longer than calling vLLM's operator.
MANY_VALUES = 1 << 24

# The suffix of layers whose output is only read in parts along N, by all models of vLLM 0.26 to 0.33: gate, x B C and
# dt (layers/mamba/mamba_mixer2.py). The rows of such a part are strided anyway.
_SEEN_IN_PARTS = ".mixer.in_proj"


def pad_where_quantized(kernel: Any, padded_k: int) -> bool:
    """Let `kernel`, a layer's vLLM kernel, pad activations to `padded_k` as it quantizes them; return whether it does.

    It does not if the kernel is not CUTLASS's, if this vLLM has changed that kernel, or if it has scales for groups of
    values or also pads the number of tokens; the caller then pads the activation before the kernel.
    """
    if type(kernel).__name__ != _CUTLASS_KERNEL or not all(map(is_as_expected, QUANTIZER)):
        return False
    quantize = kernel.quant_fp8
    if quantize.is_group_quant or quantize.num_token_padding is not None:
        return False
    kernel.quant_fp8 = PaddedQuantization(quantize, padded_k)
    return True


class PaddedQuantization:
    """Quantizes as the vLLM `QuantFP8` in `quantize` does, and appends zeros along K.

    Where vLLM calls its CUDA operator, as in eager layers, bits and scales equal that operator's: it writes into a
    tensor of zeros itself, or, for many values, our kernel is launched. Where vLLM quantizes with native operations
    instead, for Inductor to fuse, padding with them takes up to 1.5 times as long as our kernel, which is slower only
    for static scales and a handful of tokens (docs/benchmarks.md). So our kernel is launched there too, and quantizes
    as eager vLLM does; an activation that is padded already, as inside an MLP, is quantized by vLLM itself.
    """

    def __init__(self, quantize: Any, padded_k: int) -> None:
        from fp8pad.runtime.kernels import quantize_and_pad  # Triton, which not every platform has

        self.quantize = quantize
        self.padded_k = padded_k
        self.per_token: bool = quantize.use_per_token_if_dynamic
        self.calls_operator: bool = quantize.enabled()
        self.operator = _operator() if self.calls_operator else None
        self.launch = quantize_and_pad

    def __call__(
        self, x: torch.Tensor, scale: torch.Tensor | None = None, scale_ub: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `x` `[M, K]` or `[M, padded_k]` as FP8 `[M, padded_k]`, and its scale."""
        k = x.size(1)
        if k == self.padded_k:
            if is_compiling() or not self.calls_operator or not _waits_for_device(x):
                return self.quantize(x, scale, scale_ub)  # type: ignore[no-any-return]
        elif self.operator is not None and not is_compiling() and not _waits_for_device(x):
            x_fp8 = x.new_zeros((x.size(0), self.padded_k), dtype=torch.float8_e4m3fn)
            _, x_scale = self.operator(
                x, scale, scale_ub=scale_ub, use_per_token_if_dynamic=self.per_token, output=x_fp8[:, :k]
            )
            return x_fp8, x_scale
        return self.launch(x, self.padded_k, scale=scale, scale_ub=scale_ub, per_token=self.per_token)


def _operator() -> Any:
    """Return vLLM's function over its CUDA operators if these can write into an output with strided rows, or None.

    csrc/quantization/w8a8/fp8/common.cu uses `output.stride(-2)` for each way to quantize. None if this vLLM's function
    is a different one, or ignores the stride on this device.
    """
    if not is_as_expected(QUANTIZE):
        return None
    from vllm._custom_ops import scaled_fp8_quant

    if torch.cuda.is_available() and not _keeps_rows_apart(scaled_fp8_quant, torch.device("cuda")):
        return None
    return scaled_fp8_quant


@functools.cache
def _keeps_rows_apart(operator: Any, device: torch.device) -> bool:
    """Return whether vLLM's function, tried once per process, writes the same bits into rows of a wider tensor.

    A compiled operator cannot be inspected like a Python function, and wrong bits would go unnoticed.
    """
    # While layers are made, the model's dtype is the default; scales are FP32 regardless.
    schemes = (True, None), (False, None), (False, torch.ones(1, dtype=torch.float32, device=device))
    for k, (per_token, scale) in itertools.product((20, 32), schemes):
        x = torch.linspace(-900, 900, 5 * k, device=device).to(torch.bfloat16).view(5, k)
        padded = x.new_zeros((5, 48), dtype=torch.float8_e4m3fn)
        try:
            expected, expected_scale = operator(x, scale, use_per_token_if_dynamic=per_token)
            _, x_scale = operator(x, scale, use_per_token_if_dynamic=per_token, output=padded[:, :k])
        except RuntimeError:
            return False
        wanted = torch.nn.functional.pad(expected.view(torch.uint8), (0, 48 - k))
        if not (torch.equal(padded.view(torch.uint8), wanted) and torch.equal(x_scale, expected_scale)):
            return False
    return True


def _waits_for_device(x: torch.Tensor) -> bool:
    """Return whether device time is what counts: there are many values, or a CUDA graph is being captured."""
    return x.numel() >= MANY_VALUES or bool(x.is_cuda and torch.cuda.is_current_stream_capturing())


def takes_strided_rows(prefix: str) -> bool:
    """Return whether the consumer of layer `prefix` accepts an output with strided rows.

    It does not with LoRA, whose kernel needs the whole output contiguous (lora/ops/triton_ops/lora_expand_op.py).
    """
    return prefix.endswith(_SEEN_IN_PARTS) and not has_lora()


def has_lora() -> bool:
    """Return whether LoRA adapters may be added to layers: they take inputs and return outputs of logical sizes."""
    from vllm.config import get_current_vllm_config

    return bool(get_current_vllm_config().lora_config is not None)


def cut_output(output: torch.Tensor, n: int, *, strided: bool = False) -> torch.Tensor:
    """Return the first `n` of the last axis of `output` `[..., padded_n]`: contiguous, or as a view if `strided`.

    vLLM's own operators expect contiguous rows (`silu_and_mul` and the norms compute row * size), so an eager layer
    makes one copy. Under torch.compile the copy is left to Inductor, which fuses it with the next operations.
    """
    logical = output[..., :n]
    if is_compiling():
        return logical.contiguous()
    if strided:
        return logical
    if logical.is_contiguous() or not output.is_cuda or not _waits_for_device(logical):
        return logical.contiguous()  # the view itself if there is only one token
    from fp8pad.runtime.kernels import cut_columns  # Triton, which not every platform has

    return cut_columns(output.view(-1, output.shape[-1]), n).view(*output.shape[:-1], n)
