"""The record of a layer that vLLM names differently than its weights: found by another name, or not at all."""

import pytest

from fp8pad.quantization_config import ModuleRecord
from fp8pad.runtime.parts import LayerParts, find_renamed

IN_PROJ = ModuleRecord((568, 136), (576, 144), (16, 16))
OTHER = ModuleRecord((600, 136), (608, 144), (16, 16))
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("c_fc_0", "c_fc_1")}


@pytest.mark.parametrize(
    ("prefix", "module"),
    [
        ("model.layers.3.mixer.in_proj", "model.layers.3.mamba.in_proj"),
        ("model.44.mixer.in_proj", "model.layers.0.mamba.mamba.in_proj"),
        ("7.mixer.in_proj", "model.layers.1.mamba_decoder.mamba.in_proj"),
        ("mixer.in_proj", "model.mamba.in_proj"),
        ("language.model.layers.0.mlp.down_proj", "language_model.model.layers.0.mlp.down_proj"),
        ("language_model.layers.0.mlp.down_proj", "language_model.model.layers.0.mlp.down_proj"),
        ("language_model.model.layers.0.mlp.down_proj", "language_model.layers.0.mlp.down_proj"),
        ("model.layers.0.mlp.down_proj", "language_model.model.layers.0.mlp.down_proj"),
        ("model.model.layers.0.mlp.down_proj", "language_model.model.layers.0.mlp.down_proj"),
        ("model.h.0.mlp.c_proj", "transformer.h.0.mlp.c_proj"),
        ("visual.blocks.0.attn.qkv_proj", "visual.blocks.0.attn.qkv"),
        ("model.layers.0.o_proj", "model.layers.0.self_attn.o_proj"),
    ],
)
def test_a_layer_is_found_by_the_name_of_its_weights(prefix: str, module: str) -> None:
    """The result has vLLM's name for it."""
    assert find_renamed({module: IN_PROJ}, prefix, FUSED, 136) == LayerParts(prefix, (IN_PROJ,))


def test_a_fused_layer_is_found_by_the_names_of_its_parts() -> None:
    """Gate and up of Exaone, whose modules are in `transformer`."""
    modules = {"transformer.h.0.mlp.c_fc_0": IN_PROJ, "transformer.h.0.mlp.c_fc_1": OTHER}
    prefix = "model.h.0.mlp.gate_up_proj"
    assert find_renamed(modules, prefix, FUSED, 136) == LayerParts(prefix, (IN_PROJ, OTHER))


def test_mixers_of_one_size_stand_for_each_other() -> None:
    """vLLM may give a mixer another layer's number."""
    modules = {f"model.layers.{index}.mamba.in_proj": IN_PROJ for index in range(3)}
    assert find_renamed(modules, "model.1.mixer.in_proj", {}, 136) == LayerParts("model.1.mixer.in_proj", (IN_PROJ,))


@pytest.mark.parametrize(
    ("modules", "prefix", "num_k"),
    [
        ({"model.layers.0.mamba.in_proj": IN_PROJ, "model.layers.1.mamba.in_proj": OTHER}, "8.mixer.in_proj", 136),
        ({"model.layers.0.mamba.in_proj": IN_PROJ}, "model.layers.0.mixer.in_proj", 144),
        ({"model.layers.0.mamba.in_proj": IN_PROJ}, "model.layers.0.mixer.out_proj", 136),
        ({"model.layers.0.mamba.in_proj": IN_PROJ}, "model.layers.0.remixer.in_proj", 136),
        ({"language_model.model.layers.0.mlp.down_proj": IN_PROJ}, "visual.layers.0.mlp.down_proj", 136),
        ({"language_model.model.layers.1.mlp.down_proj": IN_PROJ}, "model.layers.0.mlp.down_proj", 136),
        ({"model.layers.0.mlp.down_proj": IN_PROJ}, "language_model.model.layers.0.mlp.down_proj", 136),
    ],
    ids=["sizes differ", "other K", "other layer", "no mixer", "other tower", "other number", "other way round"],
)
def test_what_is_not_certain_is_not_found(modules: dict[str, ModuleRecord], prefix: str, num_k: int) -> None:
    """A wrong record would be worse than none."""
    assert find_renamed(modules, prefix, FUSED, num_k) is None
