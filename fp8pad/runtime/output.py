"""Cut a layer's padded output to its logical N."""

import torch


def cut_output(output: torch.Tensor, n: int) -> torch.Tensor:
    """Return the first `n` of the last axis of `output` `[..., padded_n]`, contiguous.

    vLLM's own operators take the rows that follow as contiguous (`silu_and_mul` and the norms compute row * size), so
    an eager layer makes one copy. Under torch.compile it is left to Inductor, which fuses it with what follows.
    """
    logical = output[..., :n]
    if not output.is_cuda or torch.compiler.is_compiling() or logical.is_contiguous():
        return logical.contiguous()
    from fp8pad.runtime.kernels import cut_columns  # Triton, which not every host has

    return cut_columns(output.view(-1, output.shape[-1]), n).view(*output.shape[:-1], n)
