"""Layers whose names in vLLM differ from those of their weights, so that the record has them under another name."""

import re
from collections.abc import Iterator, Mapping, Sequence

from fp8pad.record import ModuleRecord
from fp8pad.runtime.parts import LayerParts, find_layer

# What vLLM 0.26 to 0.33 has in a name, a pattern, and what the record has there, with the file of vLLM's models.
_RENAMES = (
    (r"^language\.", "language_model."),  # deepseek_vl2, lfm2_vl
    (r"^language_model\.layers\.", "language_model.model.layers."),  # step3_text in step3_vl
    (r"^language_model\.model\.", "language_model."),  # aria
    (r"^model\.", "language_model.model."),  # phi3v
    (r"^model\.model\.", "language_model.model."),  # kanana_v
    (r"^model\.h\.", "transformer.h."),  # exaone
    (r"\.attn\.qkv_proj$", ".attn.qkv"),  # glm4_1v, glm_ocr
    (r"(\.\d+)\.(qkv_proj|o_proj)$", r"\1.self_attn.\2"),  # falcon_h1
)

# A mixer that is in `mamba`, some with another number than their layer's (granitemoehybrid, bamba, falcon_h1, zamba2).
_MIXER, _MAMBA = ".mixer.", ".mamba."


def find_renamed(
    modules: Mapping[str, ModuleRecord], prefix: str, fused_modules: Mapping[str, Sequence[str]], num_k: int
) -> LayerParts | None:
    """Return the record of the layer `prefix`, which has `num_k` input features, under another name.

    None if there is none, or several that differ: what is recorded of a module is sizes and nothing else, so modules of
    equal sizes stand for each other.
    """
    layers = [find_layer(modules, name, fused_modules) for name in _other_names(modules, prefix)]
    found = {layer.parts for layer in layers if layer and all(part.logical_shape[1] == num_k for part in layer.known)}
    return LayerParts(prefix, found.pop()) if len(found) == 1 else None


def _other_names(modules: Mapping[str, ModuleRecord], prefix: str) -> Iterator[str]:
    for pattern, recorded in _RENAMES:
        name, num_found = re.subn(pattern, recorded, prefix)
        if num_found:
            yield name
    _, mixer, name = f".{prefix}".rpartition(_MIXER)
    if mixer:
        yield from (module for module in modules if module.endswith(f"{_MAMBA}{name}"))
