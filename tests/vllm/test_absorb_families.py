"""Every family file against transformers: what it found is what has that size in a real model, no more and no less.

A tiny model of each family is made with sizes that are all different primes and saved, so that names and layouts are
those of a checkpoint. Every tensor with a dimension of a key's size must be governed_names for that key.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from fp8pad.planning.absorb.matching import find_governed
from fp8pad.planning.families import sections_of
from fp8pad.tensors import TensorHeader

transformers = pytest.importorskip("transformers", reason="needs transformers (make test-vllm)")
pytestmark = pytest.mark.vllm

TEXT: Mapping[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 8, "intermediate_size": 67, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
MOE: Mapping[str, Any] = {
    **TEXT, "moe_intermediate_size": 71, "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "mlp_only_layers": [0],
}  # fmt: skip
MLA: Mapping[str, Any] = {
    "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8,
}  # fmt: skip
SHARED: Mapping[str, Any] = {
    **MOE, **MLA, "n_shared_experts": 1, "num_shared_experts": 1, "moe_num_experts": 4, "moe_k": 2,
}  # fmt: skip
MAMBA: Mapping[str, Any] = {
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_expand": 2,
    "mamba_chunk_size": 8,
}  # fmt: skip
VIT: Mapping[str, Any] = {
    "hidden_size": 32, "intermediate_size": 73, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
QWEN_VIT: Mapping[str, Any] = {
    "depth": 2, "hidden_size": 32, "embed_dim": 32, "intermediate_size": 73, "num_heads": 4, "out_hidden_size": 32,
    "patch_size": 14, "num_position_embeddings": 16, "deepstack_visual_indexes": [0],
}  # fmt: skip
MROPE: Mapping[str, Any] = {**TEXT, "rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
NEXT: Mapping[str, Any] = {
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip

MODELS: Mapping[str, Mapping[str, Any]] = {
    "llama": {**TEXT, "mlp_bias": True},
    "mistral": TEXT,
    "qwen2": TEXT,
    "qwen3": TEXT,
    "granite": TEXT,
    "ministral3": TEXT,
    "cohere": TEXT,
    "cohere2": TEXT,
    "ernie4_5": TEXT,
    "exaone4": TEXT,
    "helium": TEXT,
    "hunyuan_v1_dense": TEXT,
    "olmo2": TEXT,
    "olmo3": TEXT,
    "seed_oss": TEXT,
    "smollm3": TEXT,
    "stablelm": TEXT,
    "gemma": TEXT,
    "gemma2": TEXT,
    "gemma3_text": TEXT,
    "phi3": TEXT,
    "glm": TEXT,
    "glm4": TEXT,
    "nemotron": TEXT,
    "starcoder2": TEXT,
    "opt": {**TEXT, "ffn_dim": 67, "word_embed_proj_dim": 32},
    "gpt_bigcode": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 67, "n_positions": 64},
    "mixtral": MOE,
    "minimax_m2": MOE,
    "qwen2_moe": {**MOE, "shared_expert_intermediate_size": 79},
    "qwen3_moe": MOE,
    "qwen3_next": {**MOE, **NEXT, "shared_expert_intermediate_size": 79},
    "glm4_moe": {**MOE, "n_shared_experts": 3},
    "glm4_moe_lite": {**MOE, **MLA, "n_shared_experts": 3},
    "deepseek_v2": {**MOE, **MLA, "n_shared_experts": 3},
    "deepseek_v3": {**MOE, **MLA, "n_shared_experts": 3},
    "granitemoe": MOE,
    "granitemoeshared": {**MOE, "shared_intermediate_size": 79},
    "granitemoehybrid": {**MOE, **MAMBA, "shared_intermediate_size": 79, "layer_types": ["mamba", "attention"]},
    "bamba": {**TEXT, **MAMBA, "attn_layer_indices": [1]},
    "falcon_h1": {**TEXT, **MAMBA, "mamba_d_ssm": 64},
    "nemotron_h": {
        **MOE, "hybrid_override_pattern": "M*-E", "num_hidden_layers": 4, "n_shared_experts": 1, "mamba_num_heads": 8,
        "moe_shared_expert_intermediate_size": 79, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1,
        "chunk_size": 8,
    },
    "siglip_vision_model": VIT,
    "siglip": {"vision_config": VIT, "text_config": {**VIT, "intermediate_size": 67, "vocab_size": 64}},
    "clip_vision_model": VIT,
    "clip": {"vision_config": VIT, "text_config": {**VIT, "intermediate_size": 67, "vocab_size": 64}},
    "pixtral": VIT,
    "whisper": {
        "vocab_size": 64, "d_model": 32, "encoder_ffn_dim": 67, "decoder_ffn_dim": 73, "encoder_layers": 2,
        "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_source_positions": 16,
        "max_target_positions": 16, "num_mel_bins": 8, "pad_token_id": 0,
    },
    "qwen2_vl": {"text_config": MROPE, "vision_config": {**QWEN_VIT, "hidden_size": 32}},
    "qwen2_5_vl": {"text_config": MROPE, "vision_config": QWEN_VIT},
    "qwen3_vl": {"text_config": MROPE, "vision_config": QWEN_VIT},
    "qwen3_vl_moe": {"text_config": {**MOE, **MROPE}, "vision_config": QWEN_VIT},
    "glm4v": {"text_config": MROPE, "vision_config": {**QWEN_VIT, "out_hidden_size": 32}},
    "glm4v_moe": {"text_config": {**MOE, **MROPE, "n_shared_experts": 3}, "vision_config": QWEN_VIT},
    "qwen3_5": {"text_config": {**MROPE, **NEXT}, "vision_config": QWEN_VIT},
    "qwen3_5_moe": {
        "text_config": {**MOE, **MROPE, **NEXT, "shared_expert_intermediate_size": 79}, "vision_config": QWEN_VIT
    },
    "gemma3": {"text_config": TEXT, "vision_config": VIT, "mm_tokens_per_image": 4},
    "deepseek_v4": {**MOE, **MLA, "n_shared_experts": 1, "index_head_dim": 16, "index_n_heads": 2, "index_topk": 4},
    "laguna": {**MOE, "shared_expert_intermediate_size": 79, "num_attention_heads_per_layer": [4, 4]},
    "lfm2_moe": {**MOE, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    "llama4_text": {**MOE, "intermediate_size_mlp": 73, "moe_layers": [1]},
    "longcat_flash": {**TEXT, **MLA, "ffn_hidden_size": 67, "expert_ffn_hidden_size": 71, "n_routed_experts": 4},
    "gemma4_unified": {"text_config": {**TEXT, "layer_types": ["sliding_attention", "full_attention"]}},
    "step3p7": {
        "text_config": {**MOE, "share_expert_dim": 79, "moe_num_experts": 4, "moe_top_k": 2}, "vision_config": VIT
    },
    "minimax_m3_vl": {"text_config": {**MOE, "shared_intermediate_size": 67}, "vision_config": VIT},
    "aria": {
        "text_config": {**MOE, "model_type": "aria_text"}, "vision_config": {**VIT, "model_type": "idefics3_vision"}
    },
    "exaone4_5": {"text_config": MROPE, "vision_config": QWEN_VIT},
    "glm_ocr": {"text_config": MROPE, "vision_config": QWEN_VIT},
    "idefics3": {"text_config": TEXT, "vision_config": VIT},
    "smolvlm": {"text_config": TEXT, "vision_config": VIT},
    "muse_glimmer": {"text_config": TEXT, "vision_config": VIT},
    "paddleocr_vl": {"text_config": TEXT, "vision_config": VIT},
    "qianfan_ocr": {"text_config": TEXT, "vision_config": VIT},
    "hunyuan_vl": {"text_config": TEXT, "vision_config": VIT},
    "internvl": {"text_config": {**TEXT, "model_type": "qwen2"}, "vision_config": VIT},
    "llava_onevision": {
        "text_config": {**TEXT, "model_type": "qwen2"}, "vision_config": {**VIT, "model_type": "siglip_vision_model"}
    },
    "lighton_ocr": {"text_config": TEXT, "vision_config": {**VIT, "model_type": "pixtral"}},
    "llava": {"text_config": {**TEXT, "model_type": "mistral"}, "vision_config": {**VIT, "model_type": "pixtral"}},
    "mistral3": {"text_config": {**TEXT, "model_type": "mistral"}, "vision_config": {**VIT, "model_type": "pixtral"}},
}  # fmt: skip

DENSE_KIN = (
    "arcee", "cwm", "granite_swa", "hyperclovax", "jais2", "minicpm3", "olmo", "olmo_hybrid", "phi", "gpt_neox",
    "vaultgemma", "youtu", "hrm_text", "bert", "roberta", "modernbert",
)  # fmt: skip
MOE_KIN = (
    "afmoe", "axk1", "cohere2_moe", "ernie4_5_moe", "exaone_moe", "flex_olmo", "glm_moe_dsa", "gpt_oss",
    "granitemoe_swa", "hunyuan_v1_moe", "hy_v3", "hy_v4", "jamba", "kimi_linear", "mellum", "mimo_v2_flash", "mistral4",
    "olmoe", "phimoe", "solar_open",
)  # fmt: skip
ALL = {**{name: dict(TEXT) for name in DENSE_KIN}, **{name: dict(SHARED) for name in MOE_KIN}, **MODELS}


@pytest.mark.parametrize("model_type", ALL)
def test_a_family_claims_what_has_the_size(model_type: str, tmp_path: Path) -> None:
    """Keys and tensors of a real model of this family match its file in both directions."""
    config, tensors = saved_model(model_type, tmp_path)
    found = find_governed(sections_of(config), tensors)
    for key in found.sizes:
        assert not key.unclaimed_tensors, key.path
        sizes = {governed.inner_size for governed in key.axes if governed.is_plain_weight}
        assert key.key is None or key.section.config[key.key] in sizes, key.path
    fixed = {governed.tensor.name for key in found.sizes if key.key is None for governed in key.axes}
    primes = {67, 71, 73, 79}
    multiples = {prime * factor for prime in primes for factor in (1, 2, 3)}
    sized = {name for name, tensor in tensors.items() if multiples & set(tensor.shape)}
    governed_names = {governed.tensor.name for key in found.sizes for governed in key.axes if has_axis(governed)}
    ruled_out = {name for name in tensors if name.rpartition(".")[0] in found.unabsorbable}
    assert sized - ruled_out - fixed == governed_names - fixed
    assert governed_names


def has_axis(governed: Any) -> bool:
    """Whether a tensor of an MLP has the inner size at all: the bias of down has not."""
    return bool(governed.leaf != "bias" or governed.axis == "n")


def saved_model(model_type: str, folder: Path) -> tuple[dict[str, Any], dict[str, TensorHeader]]:
    """Save a tiny random model and return its config and the headers of its tensors."""
    config = transformers.AutoConfig.for_model(model_type, **ALL[model_type])
    model = model_of(config)
    model.save_pretrained(folder)
    tensors = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="np") as shard:
            for name in shard.keys():  # noqa: SIM118 (safe_open is not a mapping)
                tensors[name] = TensorHeader(name, "BF16", tuple(shard.get_slice(name).get_shape()), 0, 0)
    return json.loads((folder / "config.json").read_text()), tensors


def model_of(config: Any) -> Any:
    """Make the model that checkpoints of this config are of."""
    for kind in ("AutoModelForCausalLM", "AutoModelForImageTextToText", "AutoModelForSpeechSeq2Seq", "AutoModel"):
        auto = getattr(transformers, kind)
        if type(config) in auto._model_mapping:
            return auto.from_config(config)
    raise LookupError(config.model_type)
