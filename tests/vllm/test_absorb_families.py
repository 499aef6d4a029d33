"""Every family file against transformers: it governs exactly the tensors that have that size in a real model.

A tiny model of each family is made with sizes that are all different primes and saved, so that names and layouts are
those of a checkpoint. Every tensor with a dimension of a key's size must be governed by that key. Then the absorbed
model is loaded: the config's new sizes must be those of every tensor, and text models must give the same outputs.
"""

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_absorption_exact import segment_places

from fp8pad.geometry import as_matrices
from fp8pad.padded import PaddedTensor
from fp8pad.planning import plan_checkpoint
from fp8pad.planning.absorb.matching import find_governed
from fp8pad.planning.config import edited_config
from fp8pad.planning.families import families, sections_of
from fp8pad.record import Policy
from fp8pad.tensors import ShardHeader, TensorHeader

transformers = pytest.importorskip("transformers", reason="needs transformers (make test-vllm)")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.vllm
transformers.logging.set_verbosity_error()

Arrays = dict[str, np.ndarray[Any, Any]]
FILE = "model.safetensors"

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
    "num_key_value_heads": 4,
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
AUDIO: Mapping[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 83, "num_mel_bins": 8,
    "max_source_positions": 16, "output_dim": 32, "n_window": 4, "downsample_hidden_size": 8, "hidden_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 83, "head_dim": 8,
}  # fmt: skip
NEXT: Mapping[str, Any] = {
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip

GPT: Mapping[str, Any] = {
    "vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 67, "n_positions": 64,
}  # fmt: skip
GRANITE_SPEECH: Mapping[str, Any] = {
    "text_config": {**TEXT, "model_type": "granite"},
    "encoder_config": {
        "input_dim": 16, "num_layers": 2, "hidden_dim": 32, "num_heads": 4, "dim_head": 8, "output_dim": 8,
    },
    "projector_config": {**VIT, "model_type": "blip_2_qformer", "intermediate_size": 79, "encoder_hidden_size": 32},
}  # fmt: skip
CLIP: Mapping[str, Any] = {"model_type": "clip_vision_model", "projection_dim": 32}
SIGLIP: Mapping[str, Any] = {"model_type": "siglip_vision_model"}

MODELS: Mapping[str, Mapping[str, Any]] = {
    "llama": {**TEXT, "mlp_bias": True},
    "mistral": TEXT,
    "qwen2": TEXT,
    "qwen3": TEXT,
    "granite": TEXT,
    "ministral3": TEXT,
    "minicpm3": {**TEXT, **MLA},
    "youtu": {**TEXT, **MLA},
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
    "gpt_bigcode": GPT,
    "mixtral": MOE,
    "minimax_m2": MOE,
    "mimo_v2_flash": MOE,
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
    "llava_next": {"text_config": {**TEXT, "model_type": "mistral"}, "vision_config": {**VIT, **CLIP}},
    "llava_next_video": {"text_config": {**TEXT, "model_type": "mistral"}, "vision_config": {**VIT, **CLIP}},
    "cohere2_vision": {"text_config": {**TEXT, "model_type": "cohere2"}, "vision_config": {**VIT, **SIGLIP}},
    "lfm2_vl": {
        "text_config": {**TEXT, "model_type": "lfm2"}, "vision_config": {**VIT, "model_type": "siglip2_vision_model"},
    },
    "paligemma": {"text_config": {**TEXT, "model_type": "gemma"}, "vision_config": {**VIT, **SIGLIP}},
    "ovis2": {"text_config": {**TEXT, "model_type": "qwen2"}, "vision_config": {**VIT, "vocab_size": 64}},
    "minicpmv4_6": {"text_config": {**TEXT, **NEXT, "model_type": "qwen3_5_text"}, "vision_config": VIT},
    "minicpmv4_7": {"text_config": {**TEXT, **NEXT, "model_type": "qwen3_5_text"}, "vision_config": VIT},
    "modernvbert": {"text_config": {**TEXT, "model_type": "modernbert"}, "vision_config": {**VIT, **SIGLIP}},
    "blip-2": {
        "text_config": {**TEXT, "ffn_dim": 67, "word_embed_proj_dim": 32, "model_type": "opt"}, "vision_config": VIT,
        "qformer_config": {**VIT, "intermediate_size": 79, "vocab_size": 64, "encoder_hidden_size": 32},
    },
    "llama4": {
        "text_config": {**MOE, "intermediate_size_mlp": 73, "moe_layers": [1]},
        "vision_config": {
            **VIT, "intermediate_size": 83, "vision_output_dim": 32, "projector_input_dim": 32,
            "projector_output_dim": 32,
        },
    },
    "gemma4": {
        "text_config": {**MOE, "top_k_experts": 2, "enable_moe_block": True, "hidden_size_per_layer_input": 0},
        "vision_config": VIT,
    },
    "diffusion_gemma": {
        "text_config": {**MOE, "top_k_experts": 2}, "vision_config": {**VIT, "model_type": "gemma4_vision"},
    },
    "embedding_gemma2": {
        "text_config": {**TEXT, "hidden_size_per_layer_input": 8, "embedding_dim": 16}, "vision_config": None,
        "audio_config": None,
    },
    "emu3": {"text_config": TEXT},
    "ernie4_5_vl_moe": {
        "text_config": {**SHARED, **MROPE, "moe_intermediate_size": [71, 89], "moe_num_experts": 4},
        "vision_config": QWEN_VIT,
    },
    "glm5_next": {
        "text_config": {
            **SHARED, "qk_rope_head_dim": 0, "linear_head_dim": 8, "linear_num_heads": 4, "index_head_dim": 8,
            "index_n_heads": 2,
        },
        "vision_config": {**QWEN_VIT, "projection_intermediate_size": 83},
    },
    "qwen4_exp": {
        "text_config": {**MOE, **MROPE, **NEXT, "moe_intermediate_size": 71, "shared_expert_intermediate_size": 79},
        "vision_config": QWEN_VIT,
    },
    "cosmos3_edge": {
        "text_config": {
            **TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
        },
        "vision_config": VIT,
    },
    "cosmos3_omni": {"text_config": MROPE, "vision_config": QWEN_VIT},
    "hyperclovax_vision_v2": {
        "text_config": {**TEXT, "model_type": "hyperclovax"},
        "vision_config": {**QWEN_VIT, "model_type": "qwen2_5_vl_vision"},
    },
    "qwen2_audio": {"text_config": {**TEXT, "model_type": "qwen2"}, "audio_config": AUDIO},
    "qwen3_asr": {"text_config": {**TEXT, "model_type": "qwen3"}, "audio_config": AUDIO},
    "audioflamingo3": {"text_config": {**TEXT, "model_type": "qwen2"}, "audio_config": AUDIO},
    "glmasr": {"text_config": {**TEXT, "model_type": "llama"}, "audio_config": AUDIO},
    "voxtral": {"text_config": {**TEXT, "model_type": "llama"}, "audio_config": AUDIO},
    "voxtral_realtime": {"text_config": TEXT, "audio_config": AUDIO},
    "granite_speech": GRANITE_SPEECH,
    "granite_speech_plus": GRANITE_SPEECH,
    "qwen3_omni_moe": {
        "thinker_config": {"text_config": {**MOE, **MROPE}, "vision_config": QWEN_VIT, "audio_config": AUDIO},
        "enable_audio_output": False,
    },
    "siglip2_vision_model": {**VIT, "num_patches": 4},
    "gptj": {**GPT, "rotary_dim": 4},
    "colpali": {
        "vlm_config": {
            "model_type": "paligemma", "text_config": {**TEXT, "model_type": "gemma"},
            "vision_config": {**VIT, **SIGLIP},
        },
    },
    "gpt-sw3": GPT,
    "gpt2": GPT,
    "falcon": {
        "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_hidden_size": 67,
    },
    "bloom": {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "lfm2": {**TEXT, "layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "zamba2": {
        **TEXT, "layers_block_type": ["mamba", "hybrid"], "n_mamba_heads": 8, "mamba_d_state": 8, "mamba_headdim": 8,
    },
}  # fmt: skip

DENSE_KIN = (
    "arcee", "cwm", "granite_swa", "hyperclovax", "jais2", "olmo", "olmo_hybrid", "phi", "gpt_neox",
    "vaultgemma", "hrm_text", "bert", "roberta", "modernbert", "apertus", "eurobert", "gte", "nomic_bert",
    "xlm-roberta",
)  # fmt: skip
MOE_KIN = (
    "afmoe", "axk1", "cohere2_moe", "ernie4_5_moe", "exaone_moe", "flex_olmo", "glm_moe_dsa", "gpt_oss",
    "granitemoe_swa", "hunyuan_v1_moe", "hy_v3", "hy_v4", "jamba", "kimi_linear", "mellum", "mistral4",
    "olmoe", "phimoe", "solar_open", "deepseek_v32", "dots1", "openai_privacy_filter",
)  # fmt: skip
ALL = {**{name: dict(TEXT) for name in DENSE_KIN}, **{name: dict(SHARED) for name in MOE_KIN}, **MODELS}
# Models that are not compared, with the reason.
NOT_MADE = {
    "kimi_k25": "transformers saves its layers as `blocks`, which neither published checkpoints nor vLLM have",
    "gemma3n": "its vision tower needs timm",
    "gemma3n_text": "a part of it",
    "inkling_mm_model": "needs scipy",
    "deepseek_ocr2": "its vision tower, of two models, is large and not compared",
    "inkling_text": "a part of it",
    "dbrx": "cannot be absorbed",
    "cohere_asr": "cannot be absorbed",
    "granite4_vision": "of its parts the text model alone is described, by another family",
    "nemotron_h_omni": "of its parts the text model alone is described, by another family",
    "vibevoice_asr": "of its parts the text model alone is described, by another family",
    "cohere_compass": "its config cannot be made of a part's keys",
    "qwen2_5_omni": "wants a file of voices",
}


@pytest.mark.parametrize("model_type", ALL)
def test_a_family_is_what_transformers_saves_and_loads(model_type: str, tmp_path: Path) -> None:
    """Keys and tensors match a file in both directions; absorbed, they load, and text models give equal outputs."""
    model = saved_model(model_type, tmp_path / "model")
    config, arrays = read(tmp_path / "model")
    tensors = {name: TensorHeader(name, "BF16", array.shape, 0) for name, array in arrays.items()}
    found = find_governed(sections_of(config), tensors)
    for key in found.sizes:
        assert not key.unclaimed_tensors, key.path
        sizes = {governed.inner_size for governed in key.axes if governed.is_plain_weight}
        value = key.section.config[key.key] if key.key else None
        assert value is None or sizes & set(value if isinstance(value, list) else [value]), key.path
    fixed = [governed for key in found.sizes if key.key is None for governed in key.axes]
    primes = {67, 71, 73, 79, 83, 89} - {governed.inner_size for governed in fixed if governed.is_plain_weight}
    multiples = {prime * factor for prime in primes for factor in (1, 2, 3, 4)}
    sized = {name for name, tensor in tensors.items() if multiples & set(tensor.shape)}
    governed_names = {governed.tensor.name for key in found.sizes for governed in key.axes if has_axis(governed)}
    ruled_out = {name for name in tensors if name.rpartition(".")[0] in found.unabsorbable}
    assert sized - ruled_out == governed_names - {governed.tensor.name for governed in fixed}
    assert governed_names or ruled_out
    plan = plan_checkpoint(
        [fp8_header(tensors, governed_names)],
        {"config.json": config | {"quantization_config": {"quant_method": "fp8"}}},
        Policy(absorb=True, absorb_experts=True, tensor_parallel_size=2),
    )
    if plan.config_edits:
        absorbed = {name: tensor for name, tensor in plan.tensors.items() if "absorb" in tensor.axes.both}
        grown = {name: padded(array, absorbed.get(name)) for name, array in arrays.items()}
        write(tmp_path / "absorbed", edited_config(config, plan.config_edits, None, None), grown)
        check_loaded(model, tmp_path / "absorbed")


def test_every_family_that_transformers_knows_is_compared() -> None:
    """Each model type with a file that transformers has too is one of the models above, or part of one."""
    known = set(families()) & set(transformers.CONFIG_MAPPING)
    parts = {model_type for name in ALL for model_type in model_types(config_of(name).to_dict())}
    assert known - set(ALL) - parts == set(NOT_MADE)


def model_types(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the model types of a config and of the parts in it."""
    yield str(config.get("model_type"))
    for value in config.values():
        if isinstance(value, Mapping):
            yield from model_types(value)


def config_of(model_type: str) -> Any:
    """Return the config of a tiny model."""
    return transformers.CONFIG_MAPPING[model_type](**copy.deepcopy(dict(ALL[model_type])))  # some configs change it


def has_axis(governed: Any) -> bool:
    """Return whether a tensor of an MLP has the inner size at all: the bias of down does not."""
    return bool(governed.leaf != "bias" or governed.axis == "n")


def saved_model(model_type: str, folder: Path) -> Any:
    """Make and save a tiny random model, with biases that are not zero."""
    torch.manual_seed(7)
    model = model_of(config_of(model_type))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    return model.eval()


def model_of(config: Any) -> Any:
    """Make the model class that checkpoints with this config have."""
    kinds = ("CausalLM", "ImageTextToText", "SpeechSeq2Seq", "TextToWaveform", "PreTraining")
    for auto in (*(getattr(transformers, f"AutoModelFor{kind}") for kind in kinds), transformers.AutoModel):
        if type(config) in auto._model_mapping:
            return auto.from_config(config, dtype=torch.float32)
    raise LookupError(config.model_type)


def read(folder: Path) -> tuple[dict[str, Any], Arrays]:
    """Read the config and the tensors of a model that was saved in one file."""
    from safetensors.numpy import load_file

    return json.loads((folder / "config.json").read_text()), load_file(folder / FILE)


def write(folder: Path, config: Mapping[str, Any], arrays: Arrays) -> None:
    """Write a model as one file and a config."""
    from safetensors.numpy import save_file

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(arrays, folder / FILE, {"format": "pt"})


def fp8_header(tensors: Mapping[str, TensorHeader], governed: set[str]) -> ShardHeader:
    """Return the header of the same model with its MLPs' weights in FP8, one scale for each."""
    made: list[TensorHeader] = []
    for name, tensor in tensors.items():
        is_weight = name in governed and len(tensor.shape) > 1
        dtypes = {name: ("F8_E4M3" if is_weight else "F32", tensor.shape)}
        for each, (dtype, shape) in (dtypes | ({f"{name}_scale": ("F32", ())} if is_weight else {})).items():
            begin = made[-1].end if made else 0
            made.append(TensorHeader(each, dtype, shape, begin))
    return ShardHeader(FILE, made[-1].end, 0, tuple(made))


def padded(array: np.ndarray[Any, Any], record: PaddedTensor | None) -> np.ndarray[Any, Any]:
    """Grow a tensor according to its record: at the tail, or at the tail of each of its segments."""
    if record is None:
        return array
    matrices = array.reshape(as_matrices(array.shape))
    places = [np.arange(size) for size in matrices.shape]
    if record.segments:
        places[record.segments.matrix_axis] = segment_places(record.segments.logical, record.segments.padded)
    result = np.zeros(as_matrices(record.padded_shape), array.dtype)
    result[np.ix_(*places)] = matrices
    return result.reshape(record.padded_shape)


def check_loaded(model: Any, folder: Path) -> None:
    """Load the absorbed model: no tensor is missing or has another size, and a text model equals the original.

    Sums of a few hundred float32 products in another order differ by less than the tolerance.
    """
    absorbed, info = type(model).from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not any(info.values())
    if type(model.config) in transformers.AutoModelForCausalLM._model_mapping:
        tokens = torch.arange(3, 15)[None]
        for one in (model, absorbed):
            one.set_experts_implementation("eager")  # others need sizes in multiples of 16 bytes
        with torch.no_grad():
            before, after = (one(input_ids=tokens, use_cache=False).logits for one in (model, absorbed.eval()))
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
