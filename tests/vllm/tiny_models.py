"""Build tiny FP8 checkpoints of given families: random but reproducible weights, sizes that are not multiples of 16.

They replace checkpoints of real tools where there are none; the layouts are those of compressed-tensors, ModelOpt and,
with scales per block, transformers.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from absorb_models import block_scaled
from safetensors.torch import save_file

FP8_MAX = 448.0
BLOCK = 32

CHANNEL: Mapping[str, Any] = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
TOKEN: Mapping[str, Any] = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}
KV_CACHE: Mapping[str, Any] = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"}


@dataclass(frozen=True)
class TinyModel:
    """A family: its transformers config, and the FP8 layout of its Linear weights."""

    config: Callable[[], Any]
    layout: Literal["compressed-tensors", "modelopt", "block"] = "compressed-tensors"
    scale_dtype: torch.dtype = torch.bfloat16
    quantized_head: bool = False
    kv_cache: bool = False
    seed: int = 20


def _llama(**sizes: Any) -> Any:
    from transformers import LlamaConfig

    defaults = {"hidden_size": 136, "intermediate_size": 213, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaConfig(head_dim=32, num_hidden_layers=2, vocab_size=509, **{**defaults, **sizes})


def _deepseek() -> Any:
    from transformers import DeepseekV2Config

    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "qk_nope_head_dim": 32, "v_head_dim": 32}
    latents = {"q_lora_rank": None, "kv_lora_rank": 72, "qk_rope_head_dim": 16}
    sizes = {"hidden_size": 136, "intermediate_size": 213, "num_hidden_layers": 2, "vocab_size": 509}
    return DeepseekV2Config(first_k_dense_replace=2, **heads, **latents, **sizes)


def _mamba2() -> Any:
    from transformers import Mamba2Config

    sizes = {"hidden_size": 768, "num_heads": 24, "head_dim": 64, "n_groups": 1, "state_size": 128}  # Mamba2-130m's
    return Mamba2Config(num_hidden_layers=2, vocab_size=509, **sizes)


def _granite_hybrid() -> Any:
    from transformers import GraniteMoeHybridConfig

    attention = {"num_attention_heads": 5, "num_key_value_heads": 1}
    mamba = {"mamba_n_heads": 8, "mamba_d_head": 40, "mamba_d_state": 16, "mamba_n_groups": 1}
    sizes = {"hidden_size": 160, "shared_intermediate_size": 213, "num_local_experts": 0, "vocab_size": 509}
    layers = {"num_hidden_layers": 2, "layer_types": ["mamba", "attention"]}
    return GraniteMoeHybridConfig(**attention, **mamba, **sizes, **layers)


def _qwen3_5() -> Any:
    from transformers import Qwen3_5TextConfig

    attention = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    gated_delta_net = {**heads, "linear_key_head_dim": 128, "linear_value_head_dim": 128}
    layers = {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]}
    sizes = {"hidden_size": 136, "intermediate_size": 213, "vocab_size": 509}
    return Qwen3_5TextConfig(**attention, **gated_delta_net, **layers, **sizes)


def _falcon_h1() -> Any:
    from transformers import FalconH1Config

    attention = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    mamba = {"mamba_n_heads": 8, "mamba_d_head": 34, "mamba_d_ssm": 272, "mamba_d_state": 8, "mamba_n_groups": 1}
    sizes = {"hidden_size": 136, "intermediate_size": 213, "num_hidden_layers": 2, "vocab_size": 509}
    return FalconH1Config(**attention, **mamba, **sizes)


def _zamba2() -> Any:
    from transformers import Zamba2Config

    attention = {"num_attention_heads": 9, "num_key_value_heads": 9, "attention_head_dim": 32, "adapter_rank": 24}
    mamba = {"n_mamba_heads": 8, "mamba_d_state": 16, "mamba_ngroups": 1}
    layers = {"num_hidden_layers": 2, "layers_block_type": ["mamba", "hybrid"], "num_mem_blocks": 1}
    return Zamba2Config(hidden_size=144, intermediate_size=213, vocab_size=509, **attention, **mamba, **layers)


MODELS: Mapping[str, TinyModel] = {
    "llama": TinyModel(_llama),
    "llama_bias": TinyModel(lambda: _llama(attention_bias=True, mlp_bias=True)),
    "llama_bias_other": TinyModel(lambda: _llama(attention_bias=True, mlp_bias=True), seed=21),
    "llama_float32_scales": TinyModel(_llama, scale_dtype=torch.float32),
    "llama_float16_scales": TinyModel(_llama, scale_dtype=torch.float16),
    "llama_hidden_200": TinyModel(lambda: _llama(hidden_size=200, intermediate_size=256)),
    "llama_quantized_head": TinyModel(_llama, quantized_head=True),
    "llama_kv_cache": TinyModel(_llama, kv_cache=True),
    "llama_modelopt_kv_cache": TinyModel(_llama, "modelopt", torch.float32, kv_cache=True),
    # Block-scaled: the hidden size ends inside a block; or the inner size does, so that a block straddles gate and up.
    "llama_block": TinyModel(lambda: _llama(hidden_size=200, intermediate_size=256, mlp_bias=True), "block"),
    "llama_block_inner": TinyModel(lambda: _llama(hidden_size=128, attention_bias=True, mlp_bias=True), "block"),
    # Sizes that vLLM splits between two ranks: aligned as a whole, but not in halves.
    "llama_halves": TinyModel(
        lambda: _llama(hidden_size=144, intermediate_size=272, attention_bias=True, mlp_bias=True)
    ),
    "deepseek": TinyModel(_deepseek),
    "mamba2": TinyModel(_mamba2),
    "granite_hybrid": TinyModel(_granite_hybrid),
    "falcon_h1": TinyModel(_falcon_h1),
    "qwen3_5": TinyModel(_qwen3_5),
    "zamba2": TinyModel(_zamba2),
}


def build(name: str, folder: Path) -> Path:
    """Write the tiny model `name` of `MODELS` to `folder` and return it."""
    from transformers import AutoModelForCausalLM

    tiny = MODELS[name]
    torch.manual_seed(tiny.seed)
    model = AutoModelForCausalLM.from_config(tiny.config(), dtype=torch.bfloat16)
    tensors = _quantized(model, tiny)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {**model.config.to_dict(), "architectures": [type(model).__name__], "dtype": "bfloat16"}
    config["quantization_config"] = _quantization_config(tiny)
    (folder / "config.json").write_text(json.dumps(config, indent=1, default=str))
    return folder


def _quantized(model: Any, tiny: TinyModel) -> dict[str, torch.Tensor]:
    linears = {name for name, module in model.named_modules() if _is_linear(module) and "lm_head" not in name}
    linears |= {"lm_head"} if tiny.quantized_head else set()
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        module, _, kind = name.rpartition(".")
        if kind == "bias":
            tensors[name] = torch.randn_like(tensor) * 0.1  # transformers starts them at zero, which would show nothing
        elif module in linears and kind == "weight":
            tensors |= _quantize(name, tensor, tiny)
        elif name != "lm_head.weight" or not model.config.tie_word_embeddings:
            tensors[name] = tensor.contiguous()
    if tiny.kv_cache:
        attentions = sorted(name.rpartition(".")[0] for name in linears if name.endswith("k_proj"))
        modules = {kind: f".{kind}_proj" if tiny.layout == "modelopt" else "" for kind in "kv"}
        tensors |= {f"{name}{modules[kind]}.{kind}_scale": torch.tensor([0.05]) for name in attentions for kind in "kv"}
    return tensors


def _quantize(name: str, weight: torch.Tensor, tiny: TinyModel) -> dict[str, torch.Tensor]:
    if tiny.layout == "block":
        fp8, grid = block_scaled(weight.float(), BLOCK)
        return {name: fp8, f"{name}_scale_inv": grid}
    return _per_channel(name, weight, tiny)


def _is_linear(module: Any) -> bool:
    return isinstance(module, torch.nn.Linear)


def _per_channel(name: str, weight: torch.Tensor, tiny: TinyModel) -> dict[str, torch.Tensor]:
    scale = (weight.float().abs().amax(dim=1, keepdim=True) / FP8_MAX).to(tiny.scale_dtype)  # [N, 1]
    fp8 = (weight.float() / scale.float()).to(torch.float8_e4m3fn)
    return {name: fp8, f"{name}_scale": scale.flatten() if tiny.layout == "modelopt" else scale}


def _quantization_config(tiny: TinyModel) -> dict[str, Any]:
    match tiny.layout:
        case "block":
            base = {"quant_method": "fp8", "activation_scheme": "dynamic", "modules_to_not_convert": ["lm_head"]}
            return {**base, "weight_block_size": [BLOCK, BLOCK]}
        case "modelopt":
            scheme = {"num_bits": 8, "type": "float", "dynamic": False}
            base = {"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN", "ignore": ["lm_head"]}
            return {**base, "kv_cache_scheme": scheme if tiny.kv_cache else None}
        case "compressed-tensors":
            targets = ["Linear", "re:.*lm_head"] if tiny.quantized_head else ["Linear"]
            group = {"targets": targets, "weights": dict(CHANNEL), "input_activations": dict(TOKEN)}
            return {
                "quant_method": "compressed-tensors",
                "format": "float-quantized",
                "config_groups": {"group_0": group},
                "ignore": [] if tiny.quantized_head else ["lm_head"],
                "kv_cache_scheme": dict(KV_CACHE) if tiny.kv_cache else None,
            }
