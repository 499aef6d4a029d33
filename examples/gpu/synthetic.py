"""Writes FP8 checkpoints of real sizes and random weights: per-channel scales, as llm-compressor's FP8_DYNAMIC writes.

    python examples/gpu/synthetic.py llama-13653 /tmp/models/llama-13653

What they answer means nothing, but how fast, and whether two servers agree to the last bit, does not depend on that.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Tensors = Iterator[tuple[str, torch.Tensor]]

FP8_DYNAMIC = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False},
            "input_activations": {
                "num_bits": 8,
                "type": "float",
                "strategy": "token",
                "symmetric": True,
                "dynamic": True,
            },
        }
    },
}


@dataclass(frozen=True, slots=True)
class Decoder:
    """The sizes of a Llama-like decoder."""

    hidden: int
    intermediate: int
    layers: int
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    vocabulary: int = 32000

    def tensors(self, *, qkv_bias: bool = False) -> Tensors:
        """Yield every tensor under its checkpoint name."""
        yield "model.embed_tokens.weight", _normal(self.vocabulary, self.hidden)
        for layer in range(self.layers):
            yield from self._layer(f"model.layers.{layer}", qkv_bias)
        yield "model.norm.weight", _ones(self.hidden)
        yield "lm_head.weight", _normal(self.vocabulary, self.hidden) * self.hidden**-0.5

    def _layer(self, prefix: str, qkv_bias: bool) -> Tensors:
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield f"{prefix}.input_layernorm.weight", _ones(self.hidden)
        yield from _linear(f"{prefix}.self_attn.q_proj", queries, self.hidden, bias=qkv_bias)
        yield from _linear(f"{prefix}.self_attn.k_proj", keys, self.hidden, bias=qkv_bias)
        yield from _linear(f"{prefix}.self_attn.v_proj", keys, self.hidden, bias=qkv_bias)
        yield from _linear(f"{prefix}.self_attn.o_proj", self.hidden, queries)
        yield f"{prefix}.post_attention_layernorm.weight", _ones(self.hidden)
        yield from _gated_mlp(f"{prefix}.mlp", self.hidden, self.intermediate)

    def config(self) -> dict[str, Any]:
        """Return its sizes as a Hugging Face config names them."""
        return {
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 16384,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-5,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }


@dataclass(frozen=True, slots=True)
class VisionTower:
    """The sizes of Qwen2.5-VL's vision tower; by default those of the 3B and 7B models."""

    out_hidden: int
    hidden: int = 1280
    intermediate: int = 3420
    depth: int = 32
    heads: int = 16
    full_attention: tuple[int, ...] = (7, 15, 23, 31)

    def tensors(self) -> Tensors:
        """Yield every tensor under its checkpoint name."""
        yield "visual.patch_embed.proj.weight", _normal(self.hidden, 3, 2, 14, 14) * 0.03
        for block in range(self.depth):
            prefix = f"visual.blocks.{block}"
            yield f"{prefix}.norm1.weight", _ones(self.hidden)
            yield f"{prefix}.norm2.weight", _ones(self.hidden)
            yield from _linear(f"{prefix}.attn.qkv", 3 * self.hidden, self.hidden, bias=True)
            yield from _linear(f"{prefix}.attn.proj", self.hidden, self.hidden, bias=True)
            yield from _gated_mlp(f"{prefix}.mlp", self.hidden, self.intermediate, bias=True)
        yield "visual.merger.ln_q.weight", _ones(self.hidden)
        yield from _linear("visual.merger.mlp.0", 4 * self.hidden, 4 * self.hidden, bias=True)
        yield from _linear("visual.merger.mlp.2", self.out_hidden, 4 * self.hidden, bias=True)

    def config(self) -> dict[str, Any]:
        """Return its sizes as `vision_config` names them."""
        return {
            "model_type": "qwen2_5_vl_vision",
            "depth": self.depth,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_heads": self.heads,
            "out_hidden_size": self.out_hidden,
            "fullatt_block_indexes": list(self.full_attention),
            "hidden_act": "silu",
            "in_channels": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
        }


SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def write_llama(out_dir: Path, decoder: Decoder) -> None:
    """Write a Llama checkpoint."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **decoder.config()}
    _write(out_dir, config, decoder.tensors())


def write_qwen2_5_vl(out_dir: Path, decoder: Decoder, tower: VisionTower) -> None:
    """Write a Qwen2.5-VL checkpoint, with a tokenizer of single bytes and an image processor."""
    text = decoder.config() | {
        "model_type": "qwen2_5_vl_text",
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "vision_start_token_id": SPECIAL_TOKENS.index("<|vision_start|>"),
        "vision_end_token_id": SPECIAL_TOKENS.index("<|vision_end|>"),
        "image_token_id": SPECIAL_TOKENS.index("<|image_pad|>"),
        "video_token_id": SPECIAL_TOKENS.index("<|video_pad|>"),
        "text_config": text,
        "vision_config": tower.config(),
    }
    _write(out_dir, config, _chain(decoder.tensors(qkv_bias=True), tower.tensors()))
    _write_processor(out_dir)


def _chain(*parts: Tensors) -> Tensors:
    for part in parts:
        yield from part


def _write(out_dir: Path, config: dict[str, Any], tensors: Tensors) -> None:
    out_dir.mkdir(parents=True, exist_ok=True)
    whole = {**config, "dtype": "bfloat16", "tie_word_embeddings": False, "quantization_config": FP8_DYNAMIC}
    (out_dir / "config.json").write_text(json.dumps(whole, indent=1))
    on_host = {name: tensor.to("cpu").contiguous() for name, tensor in tensors}
    save_file(on_host, out_dir / "model.safetensors", metadata={"format": "pt"})


def _write_processor(out_dir: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.save(str(out_dir / "tokenizer.json"))
    files = {
        "tokenizer_config.json": {
            "tokenizer_class": "Qwen2Tokenizer",
            "eos_token": SPECIAL_TOKENS[0],
            "pad_token": SPECIAL_TOKENS[0],
            "model_max_length": 16384,
        },
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
            "min_pixels": 3136,
            "max_pixels": 4 * 1024 * 1024,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
    }
    for name, content in files.items():
        (out_dir / name).write_text(json.dumps(content, indent=1))


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device=_device()).to(torch.bfloat16)


def _ones(size: int) -> torch.Tensor:
    return torch.ones(size, dtype=torch.bfloat16)


def _linear(name: str, n: int, k: int, *, bias: bool = False) -> Tensors:
    """Yield an FP8 weight `[N, K]`, its scales `[N, 1]`, and perhaps its bias `[N]`: outputs as large as inputs."""
    weight = torch.randn(n, k, device=_device()) * 64.0
    yield f"{name}.weight", weight.clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
    spread = 0.5 + torch.rand(n, 1, device=_device())
    yield f"{name}.weight_scale", (spread * k**-0.5 / 64.0).to(torch.bfloat16)
    if bias:
        yield f"{name}.bias", _normal(n) * 0.1


def _gated_mlp(name: str, hidden: int, intermediate: int, *, bias: bool = False) -> Tensors:
    yield from _linear(f"{name}.gate_proj", intermediate, hidden, bias=bias)
    yield from _linear(f"{name}.up_proj", intermediate, hidden, bias=bias)
    yield from _linear(f"{name}.down_proj", hidden, intermediate, bias=bias)


def write_model(name: str, out_dir: Path, seed: int = 0, *, tiny: bool = False) -> None:
    """Write one of `MODELS`; `tiny` keeps what is unaligned and makes the rest small, to try a script on a CPU."""
    torch.manual_seed(seed)
    layers = 2 if tiny else 12
    small: dict[str, int] = {"heads": 4, "kv_heads": 2, "vocabulary": 512} if tiny else {}
    if name == "llama-13653":
        write_llama(out_dir, Decoder(256 if tiny else 4096, 213 if tiny else 13653, layers, **small))
    elif name == "llama-hidden-4104":
        # transformers wants the number of heads to divide the hidden size: 264 = 4 * 66, 4104 = 24 * 171.
        sizes = small or {"heads": 24}
        write_llama(out_dir, Decoder(264 if tiny else 4104, 512 if tiny else 14336, layers, **sizes))
    elif name == "qwen2_5_vl-3420":
        # vLLM's Qwen2 takes hidden size / heads for the size of a head, whatever the config says.
        hidden = 256 if tiny else 2048
        decoder = Decoder(
            hidden, 512 if tiny else 11008, 2 if tiny else 4, **(small | {"heads": hidden // 128, "kv_heads": 2})
        )
        tower = VisionTower(decoder.hidden, 128, 172, 2, 2, (1,)) if tiny else VisionTower(decoder.hidden)
        write_qwen2_5_vl(out_dir, decoder, tower)
    else:
        raise ValueError(f"model: expected one of {', '.join(MODELS)}, got {name}")


MODELS = ("llama-13653", "llama-hidden-4104", "qwen2_5_vl-3420")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="keep only what is unaligned; runs on a CPU")
    arguments = parser.parse_args()
    write_model(arguments.name, arguments.out_dir, arguments.seed, tiny=arguments.tiny)
