"""Make checkpoints of any size on a small disk: real headers, an index and a config, and holes instead of data.

    python tests/bench/sparse_checkpoint.py FOLDER [--shards 200] [--layers 60] [--experts 256]

The default is like DeepSeek-V3: 150,000 tensors, block-scaled, separate routed experts, 0.7 TB. If `--inner` is not a
multiple of the block, experts can be absorbed; `--hidden` sizes everything else.
"""

import argparse
import json
from collections.abc import Iterator
from math import prod
from pathlib import Path

BYTES = {"F8_E4M3": 1, "F32": 4, "BF16": 2}
BLOCK = 128

Tensor = tuple[str, str, tuple[int, ...]]


def linear(name: str, n: int, k: int) -> Iterator[Tensor]:
    """Yield a block-scaled Linear."""
    yield f"{name}.weight", "F8_E4M3", (n, k)
    yield f"{name}.weight_scale_inv", "F32", (-(-n // BLOCK), -(-k // BLOCK))


def layer(number: int, hidden: int, inner: int, experts: int) -> Iterator[Tensor]:
    """Yield one layer of a mixture of experts."""
    prefix = f"model.layers.{number}"
    yield f"{prefix}.input_layernorm.weight", "BF16", (hidden,)
    for name in "qkvo":
        yield from linear(f"{prefix}.self_attn.{name}_proj", hidden, hidden)
    yield f"{prefix}.mlp.gate.weight", "BF16", (experts, hidden)
    for expert in range(experts):
        for name, n, k in (("gate", inner, hidden), ("up", inner, hidden), ("down", hidden, inner)):
            yield from linear(f"{prefix}.mlp.experts.{expert}.{name}_proj", n, k)


def write_sparse_checkpoint(
    root: Path, *, num_shards: int = 200, layers: int = 60, experts: int = 416, hidden: int = 4096, inner: int = 2048
) -> int:
    """Write a checkpoint and return its number of tensors."""
    root.mkdir(parents=True, exist_ok=True)
    tensors = [tensor for number in range(layers) for tensor in layer(number, hidden, inner, experts)]
    per_shard = -(-len(tensors) // num_shards)
    weight_map: dict[str, str] = {}
    total = 0
    for number, begin in enumerate(range(0, len(tensors), per_shard)):
        file = f"model-{number + 1:05}-of-{num_shards:05}.safetensors"
        total += write_sparse_shard(root / file, tensors[begin : begin + per_shard])
        weight_map |= {name: file for name, _, _ in tensors[begin : begin + per_shard]}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (root / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (root / "config.json").write_text(json.dumps(config(layers, experts, hidden, inner), indent=2))
    return len(tensors)


def write_sparse_shard(path: Path, tensors: list[Tensor]) -> int:
    """Write a header and a hole in place of the data; return the size of the data."""
    header, end = {}, 0
    for name, dtype, shape in tensors:
        begin, end = end, end + prod(shape) * BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()  # as the safetensors library writes it
    text += b" " * (-len(text) % 8)
    with path.open("wb") as shard:
        shard.write(len(text).to_bytes(8, "little") + text)
        shard.truncate(8 + len(text) + end)
    return end


def config(layers: int, experts: int, hidden: int, inner: int) -> dict[str, object]:
    """Return the config of a Qwen3 mixture of experts in FP8."""
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": hidden,
        "intermediate_size": hidden,
        "moe_intermediate_size": inner,
        "num_experts": experts,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 128,
        "num_key_value_heads": hidden // 128,
        "head_dim": 128,
        "hidden_act": "silu",
        "quantization_config": {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": [BLOCK, BLOCK],
        },
    }


def main() -> None:
    """Write one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, value in (("shards", 200), ("layers", 60), ("experts", 416), ("hidden", 4096), ("inner", 2048)):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"(default: {value})")
    options = parser.parse_args()
    sizes = {name: getattr(options, name) for name in ("layers", "experts", "hidden", "inner")}
    print(write_sparse_checkpoint(options.folder, num_shards=options.shards, **sizes), "tensors in", options.folder)


if __name__ == "__main__":
    main()
