"""Layers that vLLM asks for by a name that the record does not have: at least their weights are loaded.

Such a layer was made without padding. When its model is whole, just before weights are loaded, the layer's place in the
model is its weights' name; if that is one of the record's, what is loaded is cut to what the layer was made for, and it
goes on as it would with the original. Only vLLM's default loader does this; with others, loading ends in vLLM's
own error.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from fp8pad.runtime.config import PaddedConfig, is_quantized_linear
from fp8pad.runtime.linear import PaddedLinearMethod, show_logical
from fp8pad.runtime.parts import find_layer
from fp8pad.runtime.startup import LOGGER, startup_line

_DONE = "loads_misnamed_layers"

# What stands for layers of other pipeline ranks, and for those that are switched off (models/utils.py).
_ABSENT = "MissingLayer"


def load_misnamed_layers() -> None:
    """Let vLLM's default loader cut misnamed layers before it loads a model."""
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

    if not hasattr(DefaultModelLoader.load_weights, _DONE):
        DefaultModelLoader.load_weights = _with_cutting(DefaultModelLoader.load_weights)


def _with_cutting(load_weights: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(load_weights)
    def cut_and_load(self: Any, model: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        cut_for_misnamed(model)
        try:
            load_weights(self, model, *args, **kwargs)
        except Exception as error:
            for note in _notes(model):
                error.add_note(note)
            raise
        _say(model)

    setattr(cut_and_load, _DONE, True)
    return cut_and_load


def _say(model: torch.nn.Module) -> None:
    """Log what is active in `model`, once for all ranks."""
    is_first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    if is_first and (line := startup_line(model)):
        LOGGER.info("%s", line)


def cut_for_misnamed(model: torch.nn.Module) -> None:
    """Let the unpadded layers whose weights are padded on disk load those without their padding."""
    for name, layer, config in _layers(model):
        if is_quantized_linear(layer.quant_method) and not isinstance(layer.quant_method, PaddedLinearMethod):
            record = find_layer(config.fp8pad_modules, name, config.packed_modules_mapping)
            if record is not None and record.is_padded:
                show_logical(layer, record)


def _layers(model: torch.nn.Module) -> Iterator[tuple[str, Any, Any]]:
    for name, layer in model.named_modules():
        config = getattr(layer, "quant_config", None)
        if isinstance(config, PaddedConfig) and hasattr(layer, "quant_method"):
            yield name, layer, config


def _notes(model: torch.nn.Module) -> Iterator[str]:
    """Yield what to think of where loading `model` failed: modules that are padded on disk and nowhere in it."""
    if any(type(module).__name__.endswith(_ABSENT) for module in model.modules()):
        return
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    for config in {id(config): config for _, _, config in _layers(model)}.values():
        there = {part for name in names for part in _parts(name, config.packed_modules_mapping)}
        missing = [name for name in config.padded_modules if name not in there]
        if missing:
            yield (
                f"fp8pad: {missing[0]} is padded, but no layer has this name, nor that of {len(missing) - 1} others. "
                "If vLLM loads it into a layer of another name, serve the original, or what `fp8pad unpad` makes"
            )


def _parts(name: str, fused_modules: Mapping[str, Sequence[str]]) -> list[str]:
    parent, dot, last = name.rpartition(".")
    return [name, *(f"{parent}{dot}{part}" for part in fused_modules.get(last, ()))]
