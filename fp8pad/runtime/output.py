"""Cut a layer's padded output to its logical N."""

import torch

# Below this many values both copies take a microsecond or two on the device, and torch's is quicker to launch.
_FEWEST_VALUES = 1 << 20

# The end of the names of layers whose output is only ever seen in parts along N, by all models of vLLM 0.26 to 0.33:
# gate, x B C and dt (layers/mamba/mamba_mixer2.py). The rows of a part lie further apart than they are long anyhow.
_SEEN_IN_PARTS = ".mixer.in_proj"


def takes_strided_rows(prefix: str) -> bool:
    """Return whether what follows the layer `prefix` takes output rows that lie further apart than they are long.

    It does not with LoRA, whose kernel wants the whole output contiguous (lora/ops/triton_ops/lora_expand_op.py).
    """
    if not prefix.endswith(_SEEN_IN_PARTS):
        return False
    from vllm.config import get_current_vllm_config

    return get_current_vllm_config().lora_config is None


def cut_output(output: torch.Tensor, n: int, *, strided: bool = False) -> torch.Tensor:
    """Return the first `n` of the last axis of `output` `[..., padded_n]`: contiguous, or as a view if `strided`.

    vLLM's own operators take the rows that follow as contiguous (`silu_and_mul` and the norms compute row * size), so
    an eager layer makes one copy. Under torch.compile it is left to Inductor, which fuses it with what follows.
    """
    logical = output[..., :n]
    is_compiling = torch.compiler.is_compiling()
    if strided and not is_compiling:
        return logical
    if is_compiling or not output.is_cuda or logical.numel() < _FEWEST_VALUES:
        return logical.contiguous()
    from fp8pad.runtime.kernels import cut_columns  # Triton, which not every platform has

    return cut_columns(output.view(-1, output.shape[-1]), n).view(*output.shape[:-1], n)
