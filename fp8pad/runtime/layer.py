"""Read a vLLM layer and its linear method: whether weights are quantized, in which blocks, and with which kernel."""

from typing import Any

from fp8pad.runtime.sizes import Rank


def is_quantized_linear(method: Any) -> bool:
    """Return whether `method` is a linear method of a layer whose weights are quantized."""
    from vllm.model_executor.layers.linear import LinearMethodBase, UnquantizedLinearMethod

    return isinstance(method, LinearMethodBase) and not isinstance(method, UnquantizedLinearMethod)


def rank_of(layer: Any) -> Rank:
    """Return the number of this rank, and of the ranks that share a layer."""
    return Rank(getattr(layer, "tp_rank", 0), getattr(layer, "tp_size", 1))


def block_of(method: Any, layer: Any) -> tuple[int, int]:
    """Return the `(block_n, block_k)` of a scale, `(1, 1)` for a scale per channel or per tensor."""
    block = _told(method, layer, "weight_block_size")
    return (int(block[0]), int(block[1])) if block is not None else (1, 1)


def kernel_of(method: Any, layer: Any) -> Any:
    """Return the vLLM kernel of a layer, whichever object holds it."""
    return _told(method, layer, "fp8_linear", "linear_kernel", "kernel")


def _told(method: Any, layer: Any, *names: str) -> Any:
    """Return the first of these attributes that is set on the method, a scheme, or the method that a scheme calls.

    compressed-tensors and Quark give the layer a scheme; AutoRound's is on the method, and calls a method of `fp8`.
    """
    schemes = [getattr(owner, "scheme", None) for owner in (layer, method)]
    owners = [method, *schemes, *(getattr(scheme, "linear_method", None) for scheme in schemes)]
    found = (getattr(owner, name, None) for owner in owners for name in names)
    return next((value for value in found if value is not None), None)
