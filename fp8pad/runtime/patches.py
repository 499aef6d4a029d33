"""What the plugin changes in vLLM, once a padded checkpoint is claimed and not before; and what it logs.

* `get_and_maybe_dequant_weights`, with which MLA splits `kv_b_proj` after loading, bypassing its linear method: for the
  `fp8` method it dequantizes the parameter as it is, padding included.
* `DefaultModelLoader.load_weights`: a layer that vLLM made under a name that is not in the record has no padding. Here
  the model is complete, and the layer's path in it is the name of its weights; if the record has that name, loaded
  tensors are cut to the layer's sizes, and it runs as in the original. With other loaders, vLLM raises its own error.
"""

import functools
import importlib
import logging
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from fp8pad.errors import EngineError
from fp8pad.runtime.contract import slower, untried
from fp8pad.runtime.layer import is_quantized_linear, kernel_of
from fp8pad.runtime.linear import PaddedLinearMethod
from fp8pad.runtime.loading import show_logical
from fp8pad.runtime.parts import find_layer

# A child of vLLM's logger, which inherits its handler and level.
LOGGER = logging.getLogger("vllm.fp8pad")

# Set to 1 to refuse versions of vLLM that were not tested.
STRICT = "FP8PAD_STRICT"

_DEQUANTIZE = "get_and_maybe_dequant_weights"
_DEQUANTIZE_HOME = "vllm.model_executor.layers.quantization.utils.quant_utils"
# Modules that hold the function under its own name, if they were imported earlier.
_DEQUANTIZE_READERS = ("vllm.model_executor.layers.attention.mla_attention", "vllm.v1.attention.backends.mla.amx_mla")

# The mark on a function that is patched already.
_PATCHED = "fp8pad_patched"

# The placeholder for layers of other pipeline ranks, and for those that are switched off (models/utils.py).
_ABSENT = "MissingLayer"


@functools.cache
def activate() -> None:
    """Prepare this process to serve padded checkpoints.

    Raises `EngineError` if its vLLM cannot serve them correctly. Logs one warning if it was not tested or is slower.
    """
    import vllm

    doubt = untried(vllm.__version__)
    if doubt and os.environ.get(STRICT) == "1":
        raise EngineError(f"{doubt}; refused because {STRICT}=1")
    remarks = ([doubt] if doubt else []) + slower(vllm.__version__)
    if remarks:
        LOGGER.warning("fp8pad: %s", "; ".join(remarks))
    _patch_dequantization()
    _patch_loader()


def _patch_dequantization() -> None:
    importlib.import_module(_DEQUANTIZE_HOME)
    for name in (_DEQUANTIZE_HOME, *_DEQUANTIZE_READERS):
        module = sys.modules.get(name)
        if module is not None and not hasattr(getattr(module, _DEQUANTIZE), _PATCHED):
            setattr(module, _DEQUANTIZE, cutting(getattr(module, _DEQUANTIZE)))


def cutting(dequantize: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Wrap `dequantize` so that it returns the weights of padded layers, `[N, K]`, without their padding."""

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

    setattr(dequantize_and_cut, _PATCHED, True)
    return dequantize_and_cut


def _patch_loader() -> None:
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    if not hasattr(DefaultModelLoader.load_weights, _PATCHED):
        DefaultModelLoader.load_weights = loading_misnamed(DefaultModelLoader.load_weights)


def loading_misnamed(load_weights: Callable[..., None]) -> Callable[..., None]:
    """Wrap `load_weights` so that unpadded layers can load padded weights, and so that it logs what is padded."""

    @functools.wraps(load_weights)
    def cut_and_load(self: Any, model: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        for name, layer in _layers(model):
            if is_quantized_linear(layer.quant_method) and not isinstance(layer.quant_method, PaddedLinearMethod):
                config = layer.quant_config
                record = find_layer(config.fp8pad_modules, name, config.packed_modules_mapping)
                if record is not None and record.is_padded:
                    show_logical(layer, record)
        try:
            load_weights(self, model, *args, **kwargs)
        except Exception as error:
            for note in _notes(model):
                error.add_note(note)
            raise
        is_first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        if is_first and (line := startup_line(model)):
            LOGGER.info("%s", line)

    setattr(cut_and_load, _PATCHED, True)
    return cut_and_load


def _layers(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the layers whose quantization config is ours, with their names."""
    for name, layer in model.named_modules():
        if hasattr(getattr(layer, "quant_config", None), "fp8pad_modules") and hasattr(layer, "quant_method"):
            yield name, layer


def _notes(model: torch.nn.Module) -> Iterator[str]:
    """Yield notes for an error in loading `model`: modules that are padded on disk and not found in it."""
    if any(type(module).__name__.endswith(_ABSENT) for module in model.modules()):
        return
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    for config in {id(layer.quant_config): layer.quant_config for _, layer in _layers(model)}.values():
        there = {part for name in names for part in _parts(name, config.packed_modules_mapping)}
        padded = [name for name, module in config.fp8pad_modules.items() if module.is_padded]
        missing = [name for name in padded if name not in there]
        if missing:
            more = f" ({len(missing) - 1} more)" if len(missing) > 1 else ""
            yield (
                f"fp8pad: no layer of this model has the name of a padded module, {missing[0]}{more}. "
                "If vLLM loads it into a layer of another name, serve the original, which `fp8pad unpad` restores"
            )


def _parts(name: str, fused_modules: Mapping[str, Sequence[str]]) -> list[str]:
    parent, dot, last = name.rpartition(".")
    return [name, *(f"{parent}{dot}{part}" for part in fused_modules.get(last, ()))]


def startup_line(model: torch.nn.Module) -> str | None:
    """Return a line with the number of padded layers on this rank, how they are padded, and their kernels, or None.

    Each layer is counted once, by what its forward does.
    """
    methods = ((layer, getattr(layer, "quant_method", None)) for layer in model.modules())
    padded = [(layer, it) for layer, it in methods if isinstance(it, PaddedLinearMethod) and it.sizes.is_padded]
    if not padded:
        return None
    ways = Counter(_way(method) for _, method in padded)
    kernels = sorted({type(kernel_of(method, layer)).__name__ for layer, method in padded})
    counted = "; ".join(f"{number} {way}" for way, number in sorted(ways.items(), key=lambda item: -item[1]))
    return f"fp8pad: {len(padded)} layers padded ({counted}), kernel {', '.join(kernels)}"


def _way(method: PaddedLinearMethod) -> str:
    if method.keeps_tails or method.takes_tails:
        return "inside MLPs, kept"
    if method.pads_where_quantized:
        return "padded where quantized"
    return "padded before the kernel" if method.has_padded_columns else "cut after the kernel"
