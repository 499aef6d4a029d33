"""Write FP8 checkpoints of real sizes and random weights.

    python examples/gpu/synthetic.py llama-13653 /tmp/models/llama-13653

Their outputs mean nothing, but their speed, and whether two servers agree bitwise, does not depend on that.
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from decoders import Decoder, GatedDeltaDecoder, LatentDecoder, SharedExpertDecoder, StepDecoder, gated_mlp, ones
from fp8_schemes import SCHEMES, Fp8Scheme, Tensors, normal
from needed import torch
from safetensors.torch import save_file


@dataclass(frozen=True, slots=True)
class VisionTower:
    """The sizes of Qwen2.5-VL's vision tower; by default those of the 3B and 7B models."""

    out_hidden: int
    hidden: int = 1280
    intermediate: int = 3420
    depth: int = 32
    heads: int = 16
    full_attention: tuple[int, ...] = (7, 15, 23, 31)
    scheme: Fp8Scheme = SCHEMES["channel"]

    def tensors(self) -> Tensors:
        """Yield every tensor under its checkpoint name."""
        linear = self.scheme.linear
        yield "visual.patch_embed.proj.weight", normal(self.hidden, 3, 2, 14, 14) * 0.03
        for block in range(self.depth):
            prefix = f"visual.blocks.{block}"
            yield f"{prefix}.norm1.weight", ones(self.hidden)
            yield f"{prefix}.norm2.weight", ones(self.hidden)
            yield from linear(f"{prefix}.attn.qkv", 3 * self.hidden, self.hidden, bias=True)
            yield from linear(f"{prefix}.attn.proj", self.hidden, self.hidden, bias=True)
            yield from gated_mlp(self.scheme, f"{prefix}.mlp", self.hidden, self.intermediate, bias=True)
        yield "visual.merger.ln_q.weight", ones(self.hidden)
        yield from linear("visual.merger.mlp.0", 4 * self.hidden, 4 * self.hidden, bias=True)
        yield from linear("visual.merger.mlp.2", self.out_hidden, 4 * self.hidden, bias=True)

    def config(self) -> dict[str, Any]:
        """Return the `vision_config` with its sizes."""
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


def write_decoder(out_dir: Path, decoder: Decoder) -> None:
    """Write a checkpoint of a decoder without other parts."""
    scheme, exceptions = decoder.scheme, decoder.not_converted()
    if exceptions:
        scheme = replace(
            scheme, quantization_config={**scheme.quantization_config, "modules_to_not_convert": exceptions}
        )
    _write(out_dir, decoder.config(), decoder.tensors(), scheme)


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
    _write(out_dir, config, chain(decoder.tensors(), tower.tensors()), decoder.scheme)
    _write_processor(out_dir)


def _write(out_dir: Path, config: dict[str, Any], tensors: Iterator[Any], scheme: Fp8Scheme) -> None:
    out_dir.mkdir(parents=True, exist_ok=True)
    common = {"dtype": "bfloat16", "tie_word_embeddings": False, "quantization_config": scheme.quantization_config}
    (out_dir / "config.json").write_text(json.dumps({**config, **common}, indent=1))
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


_BLOCK = SCHEMES["block"]
_SMALL: Mapping[str, int] = {"layers": 2, "heads": 4, "kv_heads": 2, "vocabulary": 512}
_SMALL_TOWER = VisionTower(256, 128, 172, 2, 2, (1,))


# Each model, and a tiny version of it with unaligned sizes too. transformers requires that the number of heads divides
# the hidden size, and vLLM's Qwen2 uses hidden size / heads as the size of a head, whatever the config says.
_DECODERS: Mapping[str, tuple[Decoder, Decoder]] = {
    "llama-13653": (Decoder(4096, 13653), Decoder(256, 213, **_SMALL)),
    "llama-13652": (Decoder(4096, 13652), Decoder(256, 212, **_SMALL)),
    "llama-hidden-4104": (Decoder(4104, 14336, heads=24), Decoder(264, 512, **_SMALL)),
    "llama-projections-2520": (
        Decoder(3200, 8704, 6, heads=25, kv_heads=5, head_dim=72),
        Decoder(200, 256, 2, heads=5, kv_heads=1, head_dim=40, vocabulary=512),
    ),
    **{
        f"llama-13653-{name}": (
            Decoder(4096, 13653, 4, scheme=SCHEMES[name]),
            Decoder(256, 213, **_SMALL, scheme=SCHEMES[name]),
        )
        for name in SCHEMES
        if name != "channel"
    },
    # Scales per block: Qwen2.5-72B's sizes, where the second half begins inside a block; DeepSeek-V2-Lite's dense
    # layer; and a shared expert of Step-3.5's size, where quarters begin inside a block.
    "llama-29568-block": (
        Decoder(8192, 29568, 3, heads=64, scheme=_BLOCK),
        Decoder(256, 384, **_SMALL, scheme=_BLOCK),
    ),
    "llama-10944-block": (
        Decoder(2048, 10944, 4, heads=16, kv_heads=16, scheme=_BLOCK),
        Decoder(256, 448, **_SMALL, scheme=_BLOCK),
    ),
    "shared-expert-1280-block": (
        SharedExpertDecoder(4096, 1280, 4, qkv_bias=True, scheme=_BLOCK),
        SharedExpertDecoder(256, 192, **_SMALL, qkv_bias=True, scheme=_BLOCK, routed=512, experts=4),
    ),
    # Experts of the size of Qwen3.6-35B-A3B, an eighth of which is half a block, and of Step-3.5-Flash; but fewer.
    "qwen3.6-512-block": (
        GatedDeltaDecoder(
            2048, 512, 4, heads=16, kv_heads=2, head_dim=256, scheme=_BLOCK, routed=512, experts=32, experts_per_token=8
        ),
        GatedDeltaDecoder(
            256,
            192,
            2,
            heads=4,
            kv_heads=2,
            vocabulary=512,
            scheme=_BLOCK,
            routed=256,
            experts=4,
            linear_keys=2,
            linear_values=4,
        ),
    ),
    "step3.5-1280-block": (
        StepDecoder(4096, 1280, 4, heads=64, scheme=_BLOCK, routed=1280, experts=32, experts_per_token=8),
        StepDecoder(256, 192, **_SMALL, scheme=_BLOCK, routed=256, experts=4, dense=256),
    ),
    "deepseek-latent-2040": (
        LatentDecoder(2040, 5464, 4, heads=5, q_rank=1032),
        LatentDecoder(280, 212, 2, heads=5, vocabulary=512, q_rank=72, v_dim=120),
    ),
    "deepseek-latent-block": (
        LatentDecoder(2048, 5504, 4, heads=4, scheme=_BLOCK),
        LatentDecoder(256, 256, 2, heads=4, vocabulary=512, q_rank=128, scheme=_BLOCK),
    ),
}
_VISION = "qwen2_5_vl-3420"

MODELS = (*_DECODERS, _VISION)


def write_model(name: str, out_dir: Path, seed: int = 0, *, tiny: bool = False) -> None:
    """Write one of `MODELS`, or its tiny version, which is unaligned too, to try a script on a CPU."""
    torch.manual_seed(seed)
    if name != _VISION:
        write_decoder(out_dir, _DECODERS[name][tiny])
    elif tiny:
        write_qwen2_5_vl(out_dir, Decoder(256, 512, 2, 2, 2, vocabulary=512, qkv_bias=True), _SMALL_TOWER)
    else:
        write_qwen2_5_vl(out_dir, Decoder(2048, 11008, 4, 16, 2, qkv_bias=True), VisionTower(2048))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=MODELS)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="keep only what is unaligned; runs on a CPU")
    arguments = parser.parse_args()
    write_model(arguments.name, arguments.out_dir, arguments.seed, tiny=arguments.tiny)
