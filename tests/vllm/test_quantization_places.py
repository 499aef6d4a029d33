"""vLLM reads from a converted checkpoint what it reads from the original, wherever the quantization config is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import Tensors, write_checkpoint

from fp8pad.runtime import register

pytestmark = pytest.mark.vllm

LAYER = "model.layers.0.mlp.down_proj"
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 200,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 64,
    "max_position_embeddings": 128,
}  # fmt: skip
# A model of several parts: its config has a separate `text_config`.
VISION = json.loads((Path(__file__).parents[1] / "cases/good/qwen2_5_vl_dyn/config.json").read_text())
VISION = {key: value for key, value in VISION.items() if key != "quantization_config"}
VISION_TEXT = VISION.pop("text_config")
FP8 = {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}
OTHER_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "ignored_layers": ["model.layers.0.mlp.gate_proj"]}
WEIGHTS = {"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": True, "dynamic": False}
COMPRESSED = {
    "quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"],
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS, "input_activations": WEIGHTS}},
}  # fmt: skip
PRODUCER = {"name": "modelopt", "version": "0.41.0"}
MODELOPT = {"producer": PRODUCER, "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
LAYERS = {LAYER: {"quant_algo": "FP8"}, "model.layers.0.mlp.up_proj": {"quant_algo": "NVFP4", "group_size": 16}}
MIXED = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "ignore": ["lm_head"], "producer": PRODUCER}
MIXED_FILE = {
    "producer": PRODUCER,
    "quantization": {"quant_algo": "MIXED_PRECISION", "exclude_modules": ["lm_head"], "quantized_layers": LAYERS},
}

PLACES: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "top": ({**LLAMA, "quantization_config": FP8}, None),
    "top, compressed": ({**LLAMA, "quantization_config": COMPRESSED}, None),
    "compression_config": ({**LLAMA, "compression_config": COMPRESSED}, None),
    "text_config": ({**VISION, "text_config": {**VISION_TEXT, "quantization_config": FP8}}, None),
    "ModelOpt's file": (LLAMA, MODELOPT),
    "ModelOpt's file and text_config": (
        {**VISION, "text_config": {**VISION_TEXT, "quantization_config": FP8}},
        MODELOPT,
    ),
    "top and ModelOpt's file": ({**LLAMA, "quantization_config": FP8}, MODELOPT),
    "top and text_config": (
        {**VISION, "quantization_config": FP8, "text_config": {**VISION_TEXT, "quantization_config": OTHER_FP8}},
        None,
    ),
    "text_config and compression_config": (
        {**VISION, "text_config": {**VISION_TEXT, "quantization_config": FP8}, "compression_config": OTHER_FP8},
        None,
    ),
    "mixed, with its table": ({**LLAMA, "quantization_config": {**MIXED, "quantized_layers": LAYERS}}, None),
    "mixed, the table in the file": ({**LLAMA, "quantization_config": MIXED}, MIXED_FILE),
    "mixed, in the file alone": (LLAMA, MIXED_FILE),
    "mixed twice": ({**LLAMA, "quantization_config": {**MIXED, "quantized_layers": LAYERS}}, MIXED_FILE),
}


def quantization_of(model: Path) -> dict[str, Any]:
    """Return the quantization config of a checkpoint as vLLM's own reader parses it."""
    from vllm.config import ModelConfig
    from vllm.config.load import LoadConfig
    from vllm.model_executor.model_loader.weight_utils import get_quant_config

    config = get_quant_config(ModelConfig(model=str(model), skip_tokenizer_init=True, dtype="bfloat16"), LoadConfig())
    found: dict[str, Any] = plain(vars(config)) | {"name": config.get_name(), "class": type(config).__name__}
    return found


def plain(value: Any) -> Any:
    """Return objects of vLLM as dicts, so that two configs can be compared."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if type(value).__module__.startswith("vllm.") and hasattr(value, "__dict__"):
        return plain(vars(value)) | {"class": type(value).__name__}
    return value


@pytest.mark.parametrize("place", PLACES)
def test_the_output_is_read_as_the_original(
    place: str, tmp_path: Path, converted: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class and its settings are equal; methods that a CPU cannot serve are only read here."""
    from vllm.platforms import current_platform

    register()
    monkeypatch.setattr(type(current_platform), "verify_quantization", classmethod(lambda *_: None))
    config, file = PLACES[place]
    tensors: Tensors = {
        f"{LAYER}.weight": ("F8_E4M3", (128, 200)),
        f"{LAYER}.weight_scale": ("F32", ()),
        f"{LAYER}.input_scale": ("F32", ()),
    }
    model = write_checkpoint(tmp_path / "model", {"model.safetensors": tensors}, config)
    if file is not None:
        (model / "hf_quant_config.json").write_text(json.dumps(file))
    out_dir = converted(model)
    assert "fp8pad" in (out_dir / "config.json").read_text()
    try:
        original = quantization_of(model)
    except ValueError as error:
        pytest.skip(f"this vLLM does not read the original: {error}")
    converted_config = quantization_of(out_dir)
    assert {key: converted_config[key] for key in original} == original
