"""Tiny FP8 checkpoints of families that are served, in the layouts of several tools, under the names on the hub.

transformers makes and saves them; weights are random. On one rank only inner sizes are unaligned, or, with scales per
block, only on two ranks.
"""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from absorb_models import FP8_MAX, block_scaled
from safetensors.torch import load_file, save_file

Json = Mapping[str, Any]
Tensors = dict[str, torch.Tensor]

FLOAT: Json = {"num_bits": 8, "type": "float", "symmetric": True}
TOKEN: Json = {**FLOAT, "strategy": "token", "dynamic": True}
STATIC: Json = {**FLOAT, "strategy": "tensor", "dynamic": False}
BY_TENSOR: Json = {"dtype": "fp8_e4m3", "symmetric": True, "qscheme": "per_tensor", "is_dynamic": False}
BY_CHANNEL: Json = {**BY_TENSOR, "qscheme": "per_channel", "ch_axis": 0}
BY_BLOCK: Json = {**BY_TENSOR, "qscheme": "per_block", "block_size": [128, 128]}
BY_TOKEN: Json = {**BY_TENSOR, "qscheme": "per_channel", "ch_axis": 1, "is_dynamic": True}
BY_GROUP: Json = {**BY_TENSOR, "qscheme": "per_group", "group_size": 128, "is_dynamic": True}
FINE_GRAINED: Json = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
AUTOROUND: Json = {
    "quant_method": "auto-round", "packing_format": "auto_round:fp8", "data_type": "fp", "bits": 8, "sym": True,
    "group_size": [128, 128], "act_bits": 8, "act_data_type": "fp", "act_group_size": 128, "act_sym": True,
    "act_dynamic": True, "activation_scheme": "dynamic", "fmt": "e4m3",
}  # fmt: skip


def _compressed(weights: Json, inputs: Json) -> Json:
    group = {"targets": ["Linear"], "weights": {**FLOAT, "dynamic": False, **weights}, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
    }


def _quark(weight: Json, inputs: Json) -> Json:
    quantized = {"weight": weight, "input_tensors": inputs, "output_tensors": None, "bias": None}
    export = {"kv_cache_group": [], "pack_method": "reorder", "weight_format": "real_quantized"}
    layers: Json = {"layer_quant_config": {}, "layer_type_quant_config": {}}
    return {"quant_method": "quark", "global_quant_config": quantized, **layers, "export": export}


def _channel(weight: torch.Tensor) -> Tensors:
    scale = (weight.abs().amax(dim=-1, keepdim=True).clamp(min=1e-9) / FP8_MAX).bfloat16()  # [N, 1]
    return {"weight": _fp8(weight, scale), "weight_scale": scale}


def _flat_channel(weight: torch.Tensor) -> Tensors:
    scale = weight.abs().amax(dim=-1).clamp(min=1e-9) / FP8_MAX  # [N]
    return {"weight": _fp8(weight, scale[:, None]), "weight_scale": scale}


def _tensor(weight: torch.Tensor) -> Tensors:
    scale = weight.abs().max() / FP8_MAX
    return {"weight": _fp8(weight, scale), "weight_scale": scale}


def _static(weight: torch.Tensor) -> Tensors:
    return {**_tensor(weight), "input_scale": torch.tensor(0.02)}


def _block(weight: torch.Tensor) -> Tensors:
    fp8, grid = block_scaled(weight, 128)
    return {"weight": fp8, "weight_scale_inv": grid}


def _exponents(weight: torch.Tensor) -> Tensors:
    _, grid = block_scaled(weight, 128)
    grid = torch.exp2(torch.ceil(torch.log2(grid)))
    spread = grid.repeat_interleave(128, 0).repeat_interleave(128, 1)[: weight.shape[0], : weight.shape[1]]
    return {"weight": _fp8(weight, spread), "weight_scale_inv": grid.to(torch.float8_e8m0fnu)}


def _renamed_block(weight: torch.Tensor) -> Tensors:
    fp8, grid = block_scaled(weight, 128)
    return {"weight": fp8, "weight_scale": grid}


def _fp8(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (weight / scale.float()).to(torch.float8_e4m3fn)


@dataclass(frozen=True)
class Layout:
    """How a tool stores an FP8 Linear: its config, the key that lists other modules, and the tensors of a module."""

    config: Json
    others: str
    quantize: Callable[[torch.Tensor], Tensors]


_DYNAMIC: Json = {**STATIC, "dynamic": True}
_IN_BLOCKS: Json = {"strategy": "block", "block_structure": [128, 128]}
_IN_GROUPS: Json = {**TOKEN, "strategy": "group", "group_size": 128}
_HUGGING_FACE: Json = {"quant_method": "fp8", "activation_scheme": "dynamic"}
_PER_CHANNEL: Json = {"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}
_PER_TENSOR: Json = {"quant_method": "modelopt", "quant_algo": "FP8"}
_SKIPPED = "modules_to_not_convert"

LAYOUTS: Mapping[str, Layout] = {
    "compressed-tensors, channel": Layout(_compressed({"strategy": "channel"}, TOKEN), "ignore", _channel),
    "compressed-tensors, tensor": Layout(_compressed(STATIC, STATIC), "ignore", _static),
    "compressed-tensors, dynamic": Layout(_compressed(STATIC, _DYNAMIC), "ignore", _tensor),
    "compressed-tensors, block": Layout(_compressed(_IN_BLOCKS, _IN_GROUPS), "ignore", _renamed_block),
    "fp8, block": Layout(FINE_GRAINED, _SKIPPED, _block),
    "fp8, exponents": Layout({**FINE_GRAINED, "scale_fmt": "ue8m0"}, _SKIPPED, _exponents),
    "fp8, static": Layout({**_HUGGING_FACE, "activation_scheme": "static"}, "ignored_layers", _static),
    "fp8, tensor": Layout(_HUGGING_FACE, "ignored_layers", _tensor),
    "modelopt, channel": Layout(_PER_CHANNEL, "ignore", _flat_channel),
    "modelopt, tensor": Layout(_PER_TENSOR, "ignore", _static),
    "quark, tensor": Layout(_quark(BY_TENSOR, BY_TENSOR), "exclude", _static),
    "quark, channel": Layout(_quark(BY_CHANNEL, BY_TOKEN), "exclude", _flat_channel),
    "quark, block": Layout(_quark(BY_BLOCK, BY_GROUP), "exclude", _renamed_block),
    "auto-round": Layout(AUTOROUND, "ignored_layers", _block),
}

_TEXT: Json = {
    "vocab_size": 512, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "intermediate_size": 216, "max_position_embeddings": 256, "pad_token_id": 0,
}  # fmt: skip
# Blocks of 128: halves of 384 begin inside one.
_BLOCKS: Json = {
    **_TEXT, "hidden_size": 256, "num_attention_heads": 8, "num_key_value_heads": 8, "intermediate_size": 384,
}  # fmt: skip
_EXPERTS: Json = {
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "mlp_only_layers": [0], "decoder_sparse_step": 1,
    "n_shared_experts": 1, "num_shared_experts": 1, "moe_intermediate_size": 88,
}  # fmt: skip
_MOE: Json = {**_TEXT, **_EXPERTS}
_MOE_BLOCKS: Json = {**_BLOCKS, **_EXPERTS, "moe_intermediate_size": 384}
_SMALL_EXPERTS: Json = {**_MOE, "intermediate_size": 88}
_LATENT: Json = {
    **_MOE_BLOCKS, "q_lora_rank": 128, "kv_lora_rank": 128, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16,
    "v_head_dim": 16, "num_attention_heads": 16, "num_key_value_heads": 16, "topk_method": "noaux_tc",
}  # fmt: skip
_LINEAR: Json = {
    "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"], "shared_expert_intermediate_size": 104,
}  # fmt: skip
_LINEAR_BLOCKS: Json = {**_LINEAR, "shared_expert_intermediate_size": 384}
_MAMBA: Json = {
    "mamba_n_heads": 8, "mamba_d_head": 32, "mamba_n_groups": 1, "mamba_d_state": 16, "mamba_expand": 2,
    "mamba_chunk_size": 16,
}  # fmt: skip

MODELS: Mapping[tuple[str, str], Json] = {
    ("qwen3", "fp8, block"): _BLOCKS,
    ("qwen3", "fp8, exponents"): {**_BLOCKS, "intermediate_size": 448},
    ("qwen3_moe", "fp8, block"): _MOE_BLOCKS,
    ("qwen3_moe", "compressed-tensors, channel"): _MOE,
    ("qwen3_5_moe_text", "fp8, block"): {**_MOE_BLOCKS, **_LINEAR_BLOCKS},
    ("qwen3_next", "compressed-tensors, channel"): {**_MOE, **_LINEAR},
    ("llama4_text", "compressed-tensors, channel"): {
        **_SMALL_EXPERTS, "num_experts_per_tok": 1, "intermediate_size_mlp": 216, "interleave_moe_layer_step": 2,
        "attention_chunk_size": 128,
    },
    ("ministral3", "fp8, static"): _TEXT,
    ("mistral", "modelopt, channel"): _TEXT,
    ("gemma3_text", "modelopt, channel"): _TEXT,
    ("gemma4_text", "compressed-tensors, channel"): {
        **_TEXT, "global_head_dim": 32, "num_global_key_value_heads": 2, "vocab_size_per_layer_input": 512,
        "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    ("glm4", "compressed-tensors, channel"): _TEXT,
    ("glm4_moe", "compressed-tensors, channel"): _MOE,
    ("glm4_moe_lite", "fp8, block"): _LATENT,
    ("deepseek_v3", "fp8, block"): _LATENT,
    ("phi", "compressed-tensors, tensor"): _TEXT,
    ("phi3", "quark, channel"): {**_TEXT, "intermediate_size": 248},
    ("phimoe", "compressed-tensors, channel"): {**_SMALL_EXPERTS, "architectures": ["PhiMoEForCausalLM"]},
    ("granite", "auto-round"): _BLOCKS,
    ("granitemoehybrid", "modelopt, channel"): {
        **_TEXT, **_MAMBA, "num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 216,
        "layer_types": ["mamba", "attention"],
    },
    ("nemotron", "quark, channel"): _TEXT,
    ("nemotron_h", "modelopt, tensor"): {
        **_MOE, "hybrid_override_pattern": "M*-", "num_hidden_layers": 3, "mamba_num_heads": 8, "mamba_head_dim": 32,
        "ssm_state_size": 16, "n_groups": 1, "chunk_size": 16, "mlp_hidden_act": "relu2",
    },
    ("hunyuan_v1_dense", "fp8, static"): _TEXT,
    ("hunyuan_v1_moe", "compressed-tensors, channel"): {**_SMALL_EXPERTS, "moe_topk": 2},
    ("minimax_m2", "fp8, block"): {
        **_MOE_BLOCKS, "rotary_dim": 16, "scoring_func": "softmax", "use_routing_bias": True,
    },
    ("exaone4", "auto-round"): _BLOCKS,
    ("exaone_moe", "fp8, block"): _MOE_BLOCKS,
    ("ernie4_5", "compressed-tensors, channel"): _TEXT,
    ("ernie4_5_moe", "quark, channel"): {
        **_MOE, "moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_layer_start_index": 1,
    },
    ("seed_oss", "compressed-tensors, block"): _BLOCKS,
    ("solar_open", "compressed-tensors, channel"): _MOE,
    ("dots1", "compressed-tensors, block"): _MOE_BLOCKS,
    ("mixtral", "fp8, static"): _SMALL_EXPERTS,
    ("olmo2", "compressed-tensors, tensor"): _TEXT,
    ("olmo3", "quark, block"): _BLOCKS,
    ("olmoe", "compressed-tensors, channel"): {**_SMALL_EXPERTS, "num_key_value_heads": 4},
    ("cohere2", "compressed-tensors, dynamic"): _TEXT,
    ("falcon_h1", "compressed-tensors, channel"): {**_TEXT, **_MAMBA, "mamba_d_ssm": 256},
    ("arcee", "fp8, tensor"): _TEXT,
    ("apertus", "compressed-tensors, channel"): _TEXT,
    ("lfm2_moe", "fp8, block"): {**_MOE_BLOCKS, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    ("qwen2", "compressed-tensors, block"): {**_BLOCKS, "intermediate_size": 512},
    ("smollm3", "quark, tensor"): _TEXT,
    ("stablelm", "modelopt, tensor"): _TEXT,
    ("starcoder2", "compressed-tensors, channel"): _TEXT,
    ("gpt_neox", "compressed-tensors, channel"): _TEXT,
}  # fmt: skip

_ROUTERS = ("gate", "router", "wg", "shared_expert_gate", "in_proj_ba", "in_proj_a", "in_proj_b")


def build(model_type: str, layout: str, folder: Path) -> Path:
    """Write the checkpoint of `MODELS` to `folder` and return it."""
    import transformers

    torch.manual_seed(11)
    sizes, how = copy.deepcopy(dict(MODELS[model_type, layout])), LAYOUTS[layout]
    config = transformers.AutoConfig.for_model(model_type, **sizes)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or parameter.dim() > 1:
                parameter.normal_(std=0.1 if name.endswith("bias") else 0.05)
    model.save_pretrained(folder)
    tensors: Tensors = {}
    others = ["lm_head"]
    for name, tensor in load_file(folder / "model.safetensors").items():
        module, _, leaf = name.rpartition(".")
        if leaf == "weight" and tensor.dim() == 2 and is_quantized(module):
            tensors |= {f"{module}.{key}": value.contiguous() for key, value in how.quantize(tensor.float()).items()}
        else:
            tensors[name] = tensor
            others += [module] if leaf == "weight" and tensor.dim() == 2 and "embed" not in module else []
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    document = json.loads((folder / "config.json").read_text())
    # vLLM asks for these, which transformers does not save, or spells differently.
    keys = {"topk_method", "scoring_func", "use_routing_bias", "architectures"} & sizes.keys()
    document |= {key: sizes[key] for key in keys}
    document["quantization_config"] = {**how.config, how.others: others}
    (folder / "config.json").write_text(json.dumps(document, indent=1))
    return folder


def is_quantized(module: str) -> bool:
    """Return whether tools quantize a 2-D weight: not embeddings, nor what chooses experts or gates."""
    return "layers." in module and module.rpartition(".")[2] not in _ROUTERS
