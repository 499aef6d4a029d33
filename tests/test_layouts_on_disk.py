"""Layouts that tools write: converted, checked byte by byte without fp8pad, verified and restored."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import Tensors, files_of, stored, tensor_rows, write_checkpoint

from fp8pad.checkpoint.options import WriteOptions
from fp8pad.checkpoint.progress import Progress
from fp8pad.checkpoint.read import read_unconverted
from fp8pad.conversion import convert
from fp8pad.planned import PlanReport
from fp8pad.planning import plan_checkpoint
from fp8pad.record import Policy
from fp8pad.unpadding import unpad
from fp8pad.verification import verify

FILE = "model.safetensors"
ONE = {"F32": b"\x00\x00\x80\x3f", "BF16": b"\x80\x3f", "F8_E8M0": b"\x7f"}

BLOCK = {"quant_method": "fp8", "weight_block_size": [128, 128]}
QUARK_WEIGHT = {"dtype": "fp8_e4m3", "qscheme": "per_block", "block_size": [64, 32]}
# The scale's leaf and dtype, the block, and the quantization config of each layout.
LAYOUTS: dict[str, tuple[str, str, tuple[int, int], dict[str, Any]]] = {
    "deepseek": ("weight_scale_inv", "F32", (128, 128), BLOCK),
    "deepseek-v4": ("scale", "F8_E8M0", (128, 128), {**BLOCK, "scale_fmt": "ue8m0"}),
    "transformers, exponents alone": ("weight_scale_inv", "F8_E8M0", (128, 128), BLOCK),
    "transformers, small blocks": ("weight_scale_inv", "F32", (4, 4), {**BLOCK, "weight_block_size": [4, 4]}),
    "quark": (
        "weight_scale",
        "BF16",
        (64, 32),
        {"quant_method": "quark", "layer_quant_config": {"*proj": {"weight": QUARK_WEIGHT}}},
    ),
    "auto-round": (
        "weight_scale_inv",
        "BF16",
        (128, 64),
        {"quant_method": "auto-round", "data_type": "fp", "bits": 8, "group_size": [128, 64]},
    ),
}
N, K = 150, 213


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("alignment", ["auto", 128])
def test_block_scales_of_every_tool(layout: str, alignment: Any, tmp_path: Path) -> None:
    """Weights end in zeros at whole blocks; a grid is unchanged, or gets ones for additional blocks."""
    leaf, dtype, (block_n, block_k), quantization = LAYOUTS[layout]
    grid = -(-N // block_n), -(-K // block_k)
    weight, scale = "layers.0.ffn.shared_experts.w2.weight", f"layers.0.ffn.shared_experts.w2.{leaf}"
    tensors: Tensors = {weight: ("F8_E4M3", (N, K)), scale: (dtype, grid)}
    config = {"model_type": "unknown", "quantization_config": quantization}
    model, out_dir = write_checkpoint(tmp_path / "model", {FILE: tensors}, config), tmp_path / "out"
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, Policy(alignment=alignment))
    convert(PlanReport(source, plan, card=False), out_dir, WriteOptions(jobs=1), Progress())
    multiple_n, multiple_k = (block_n, block_k) if alignment == "auto" else (128, 128)
    padded_n, padded_k = -(-N // multiple_n) * multiple_n, -(-K // multiple_k) * multiple_k
    expected = np.zeros((padded_n, padded_k, 1), np.uint8)
    expected[:N, :K] = tensor_rows(model / FILE, weight)
    assert np.array_equal(tensor_rows(out_dir / FILE, weight), expected)
    ones = np.frombuffer(ONE[dtype], np.uint8)
    expected = np.broadcast_to(ones, (padded_n // block_n, padded_k // block_k, len(ones))).copy()
    expected[: grid[0], : grid[1]] = tensor_rows(model / FILE, scale)
    assert np.array_equal(tensor_rows(out_dir / FILE, scale), expected)
    assert verify(model, out_dir, Progress()).ok
    unpad(out_dir, tmp_path / "restored", WriteOptions(jobs=1), Progress())
    assert files_of(tmp_path / "restored") == files_of(model)


def block(name: str, num_n: int, num_k: int) -> Tensors:
    """Return a Linear with a scale for each block of 128 x 128."""
    grid = -(-num_n // 128), -(-num_k // 128)
    return {f"{name}.weight": ("F8_E4M3", (num_n, num_k)), f"{name}.weight_scale_inv": ("BF16", grid)}


# Checkpoints that fp8pad understands in part, with the modules that it does not understand.
STRANGE: dict[str, tuple[Tensors, tuple[str, ...]]] = {
    "a table of n-grams in shards, with one scale for all": (
        {f"ple.ngram_embedding.shard_{shard}.weight": ("F8_E4M3", (103, 20)) for shard in range(3)}
        | {"ple.ngram_embedding.weight_scale": ("F32", (1,))},
        ("ple.ngram_embedding.shard_0", "ple.ngram_embedding.shard_1", "ple.ngram_embedding.shard_2"),
    ),
    "a fused QKV, quantized in four stripes": (
        {"attn.qkv_proj.weight": ("F8_E4M3", (848, 256)), "attn.qkv_proj.weight_scale_inv": ("F32", (8, 2))},
        ("attn.qkv_proj",),
    ),
    "a fused QKV with a scale for each of its parts": (
        {"attn.qkv_proj.weight": ("F8_E4M3", (96, 64)), "attn.qkv_proj.weight_scale": ("F32", (3,))},
        ("attn.qkv_proj",),
    ),
    "keys with another input than queries": (
        {**block("attn.q_proj", 100, 256), **block("attn.k_proj", 100, 200)},
        ("attn.q_proj", "attn.k_proj"),
    ),
    "an embedding without a scale": (
        {"embed_tokens_per_layer.weight": ("F8_E4M3", (99, 70))},
        ("embed_tokens_per_layer",),
    ),
    "embeddings with scales of their own": ({**block("embed", 99, 70), **block("embedding", 99, 70)}, ()),
    "a stack that no family describes": ({"mlp.stack": ("F8_E4M3", (3, 100, 70))}, ("mlp.stack",)),
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_is_not_understood_is_carried_byte_for_byte(name: str, tmp_path: Path) -> None:
    """A layer next to it is padded, and the plan counts what is not understood."""
    strange, not_understood = STRANGE[name]
    tensors = {**block("mlp.down_proj", N, K), **strange}
    config = {"model_type": "unknown", "quantization_config": BLOCK}
    model, out_dir = write_checkpoint(tmp_path / "model", {FILE: tensors}, config), tmp_path / "out"
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, Policy())
    assert tuple(name for name, _ in plan.not_understood) == not_understood
    convert(PlanReport(source, plan, card=False), out_dir, WriteOptions(jobs=1), Progress())
    assert stored(out_dir / FILE)["mlp.down_proj.weight"][1] == (256, 256)
    for tensor in strange:
        assert np.array_equal(tensor_rows(out_dir / FILE, tensor), tensor_rows(model / FILE, tensor))
    assert verify(model, out_dir, Progress()).ok
    unpad(out_dir, tmp_path / "restored", WriteOptions(jobs=1), Progress())
    assert files_of(tmp_path / "restored") == files_of(model)
