"""Headers of small made-up models, for planning: no files, no tensors."""

from collections.abc import Mapping
from typing import Any

from fp8pad.tensors import ShardHeader, TensorHeader

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}
BLOCKS = {"type": "float", "num_bits": 8, "strategy": "block", "block_structure": [128, 128]}
COMPRESSED = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": BLOCKS}}}
_CHANNEL = {"type": "float", "num_bits": 8, "strategy": "channel"}
_TOKEN = {"type": "float", "num_bits": 8, "strategy": "token", "dynamic": True}
CHANNELS = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": _CHANNEL, "input_activations": _TOKEN}},
}

Shapes = dict[str, tuple[int, int]]
Headers = tuple[tuple[ShardHeader], dict[str, Mapping[str, Any]]]


def headers(
    config: Mapping[str, Any], quantization: Mapping[str, Any], shapes: Shapes, scheme: str | None = None
) -> Headers:
    """Return the header of one shard with these Linears, scaled as the quantization config says, and the config.

    `scheme` is "channel" or "block"; if not given, the former for `CHANNELS`, and the latter for others.
    """
    tensors: list[TensorHeader] = []
    method, block = quantization["quant_method"], quantization.get("weight_block_size", (128, 128))
    scheme = scheme or ("channel" if quantization == CHANNELS else "block")
    for name, (num_n, num_k) in shapes.items():
        scale_shape = (num_n, 1) if scheme == "channel" else (-(-num_n // block[0]), -(-num_k // block[1]))
        scale_name = f"{name}.weight_scale{'_inv' if method == 'fp8' else ''}"
        for tensor, dtype, shape in ((f"{name}.weight", "F8_E4M3", (num_n, num_k)), (scale_name, "F32", scale_shape)):
            begin = tensors[-1].end if tensors else 0
            tensors.append(TensorHeader(tensor, dtype, shape, begin))
    shard = ShardHeader("model.safetensors", tensors[-1].end, 0, tuple(tensors))
    return (shard,), {"config.json": {**config, "quantization_config": quantization}}


def gated(prefix: str, inner: int, hidden: int = 256) -> Shapes:
    """Return the shapes of gate, up and down."""
    up, down = (inner, hidden), (hidden, inner)
    return {f"{prefix}.gate_proj": up, f"{prefix}.up_proj": up, f"{prefix}.down_proj": down}


def attention(head_dim: int, hidden: int = 256) -> Shapes:
    """Return the shapes of an attention of four heads and two key-value heads."""
    rows, prefix = {"q_proj": 4 * head_dim, "k_proj": 2 * head_dim, "v_proj": 2 * head_dim}, "model.layers.0.self_attn"
    return {f"{prefix}.{name}": (num_n, hidden) for name, num_n in rows.items()} | {
        f"{prefix}.o_proj": (hidden, 4 * head_dim)
    }
