"""Cut a layer's padded output to its logical N."""

import torch

# Below this many values both copies take a microsecond or two on the device, and torch's is quicker to launch.
_FEWEST_VALUES = 1 << 20


def cut_output(output: torch.Tensor, n: int) -> torch.Tensor:
    """Return the first `n` of the last axis of `output` `[..., padded_n]`, contiguous.

    vLLM's own operators take the rows that follow as contiguous (`silu_and_mul` and the norms compute row * size), so
    an eager layer makes one copy. Under torch.compile it is left to Inductor, which fuses it with what follows.
    """
    logical = output[..., :n]
    if torch.compiler.is_compiling() or not output.is_cuda or logical.numel() < _FEWEST_VALUES:
        return logical.contiguous()
    from fp8pad.runtime.kernels import cut_columns  # Triton, which not every host has

    return cut_columns(output.view(-1, output.shape[-1]), n).view(*output.shape[:-1], n)
