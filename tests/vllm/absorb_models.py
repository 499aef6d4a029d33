"""Tiny FP8 checkpoints of several families to test absorbing: only their inner sizes are unaligned.

Weights are random; names and layouts are those that transformers saves. Per-channel models have the layout of
compressed-tensors, per-tensor and block-scaled ones that of Hugging Face's `fp8`, static ones that of AutoFP8.
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

FP8_MAX = 448.0
BLOCK = 16

Scheme = Literal["channel", "tensor", "static", "block"]

_TEXT: Mapping[str, Any] = {
    "vocab_size": 512, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "head_dim": 32, "intermediate_size": 213, "max_position_embeddings": 256, "pad_token_id": 0,
}  # fmt: skip
_MOE: Mapping[str, Any] = {
    **_TEXT, "num_key_value_heads": 4, "moe_intermediate_size": 88, "n_routed_experts": 4, "num_experts": 4,
    "num_local_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 2, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "mlp_only_layers": [0], "q_lora_rank": 32, "kv_lora_rank": 32, "v_head_dim": 32,
    "qk_nope_head_dim": 32, "qk_rope_head_dim": 32,
}  # fmt: skip
_VISION: Mapping[str, Any] = {
    "depth": 2, "hidden_size": 64, "intermediate_size": 100, "num_heads": 2, "out_hidden_size": 128, "patch_size": 14,
    "fullatt_block_indexes": [1],
}  # fmt: skip

CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "llama": {**_TEXT, "mlp_bias": True},
    "gpt_bigcode": {
        "vocab_size": 512, "n_embd": 128, "n_inner": 213, "n_head": 4, "n_layer": 2, "n_positions": 256,
    },
    "phi3": _TEXT,
    "opt": {**_TEXT, "ffn_dim": 213, "word_embed_proj_dim": 128},
    "qwen3_moe": _MOE,
    "deepseek_v3": _MOE,
    "qwen2_5_vl": {
        "text_config": {**_TEXT, "rope_scaling": {"rope_type": "default", "mrope_section": [4, 6, 6]}},
        "vision_config": _VISION, "image_token_id": 6, "video_token_id": 7, "vision_start_token_id": 3,
        "vision_end_token_id": 4, "vision_token_id": 5,
    },
}  # fmt: skip


@dataclass(frozen=True)
class TinyFp8:
    """A checkpoint to make: a family, the scheme of its weights, and changes to its sizes."""

    model_type: str
    scheme: Scheme
    sizes: tuple[tuple[str, Any], ...] = ()
    block: int = BLOCK
    dead_neurons: tuple[int, int] = (0, 0)

    @property
    def name(self) -> str:
        """Return a name for folders and test ids."""
        return "-".join([self.model_type, self.scheme, *(f"{value}" for _, value in self.sizes)])


def build(tiny: TinyFp8, folder: Path) -> Path:
    """Write the checkpoint to `folder` and return it."""
    import transformers

    torch.manual_seed(20)
    config = transformers.AutoConfig.for_model(tiny.model_type, **_sized(CONFIGS[tiny.model_type], tiny.sizes))
    is_vision = hasattr(config, "vision_config")
    kind = transformers.AutoModelForImageTextToText if is_vision else transformers.AutoModelForCausalLM
    model = kind.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)  # transformers starts them at zero, which would show nothing
    model.save_pretrained(folder)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        _kill(name, tensor, tiny.dead_neurons)
        tensors |= _quantized(name, tensor, tiny) if _is_linear(name, tensor) else {name: tensor}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    document = json.loads((folder / "config.json").read_text())
    document["quantization_config"] = _quantization_config(tiny)
    (folder / "config.json").write_text(json.dumps(document, indent=1))
    return folder


def _sized(config: Mapping[str, Any], sizes: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    sized = copy.deepcopy(dict(config))
    for path, value in sizes:
        *sections, key = path.split(".")
        place = sized
        for section in sections:
            place = place[section]
        place[key] = value
    return sized


def _kill(name: str, tensor: torch.Tensor, neurons: tuple[int, int]) -> None:
    """Zero the weights that produce and consume the activations of a range of neurons of Llama's MLP."""
    first, end = neurons
    if name.endswith("mlp.down_proj.weight"):
        tensor[:, first:end] = 0
    elif ".mlp." in name and "down_proj" not in name:
        tensor[first:end] = 0


def _is_linear(name: str, tensor: torch.Tensor) -> bool:
    parts = name.split(".")
    inside = {"self_attn", "attn", "mlp", "experts", "fc1", "fc2"} & set(parts)
    return (
        bool(inside)
        and tensor.dim() == 2
        and parts[-1] == "weight"
        and parts[-2] not in {"gate"}
        and "merger" not in parts
    )


def _quantized(name: str, weight: torch.Tensor, tiny: TinyFp8) -> dict[str, torch.Tensor]:
    values = weight.float()
    if tiny.scheme == "channel":
        scale = (values.abs().amax(dim=1, keepdim=True).clamp(min=1e-9) / FP8_MAX).bfloat16()  # [N, 1]
        return {name: (values / scale.float()).to(torch.float8_e4m3fn), f"{name}_scale": scale}
    if tiny.scheme == "tensor":
        scale = (values.abs().max() / FP8_MAX).reshape(1, 1)
        return {name: (values / scale).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale}
    if tiny.scheme == "static":
        scale = values.abs().max() / FP8_MAX
        input_scale = torch.tensor(0.02)
        fp8 = (values / scale).to(torch.float8_e4m3fn)
        return {name: fp8, f"{name}_scale": scale, name.replace("weight", "input_scale"): input_scale}
    fp8, grid = block_scaled(values, tiny.block)
    return {name: fp8, f"{name}_scale_inv": grid}


def block_scaled(values: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a weight as FP8, and the scale of each block, `[ceil(N / block), ceil(K / block)]`."""
    num_n, num_k = (-(-size // block) for size in values.shape)
    whole = torch.zeros(num_n * block, num_k * block)
    whole[: values.shape[0], : values.shape[1]] = values
    grid = whole.abs().reshape(num_n, block, num_k, block).amax(dim=(1, 3)) / FP8_MAX
    spread = grid.repeat_interleave(block, 0).repeat_interleave(block, 1)[: values.shape[0], : values.shape[1]]
    return (values / spread).to(torch.float8_e4m3fn), grid


def _quantization_config(tiny: TinyFp8) -> dict[str, Any]:
    if tiny.scheme == "channel":
        weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
        activations = {**weights, "strategy": "token", "dynamic": True}
        return {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "quantization_status": "compressed",
            "config_groups": {
                "group_0": {"targets": ["Linear"], "weights": weights, "input_activations": activations},
            },
            "ignore": ["lm_head", "re:.*merger.*", "re:.*mlp.gate$"],
        }
    if tiny.scheme == "static":
        return {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}
    config: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    config["modules_to_not_convert"] = ["lm_head", "merger", "mlp.gate"]
    return config | ({"weight_block_size": [tiny.block, tiny.block]} if tiny.scheme == "block" else {})
