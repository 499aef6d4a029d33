"""Other ways to pad a checkpoint, for bench_convert.py: safetensors.torch by hand, and compressed-tensors' converter.

    python tests/bench/peers.py (safetensors | compressed-tensors) MODEL OUT_DIR

Needs torch, and compressed-tensors for the second. Both pad the weights and per-channel scales that fp8pad pads, to
multiples of 16; neither writes records, reads anything back or survives being killed.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

MULTIPLE = 16


def padded(name: str, tensor: torch.Tensor, weights: dict[str, torch.Size]) -> torch.Tensor:
    """Return a weight `[N, K]` or its scale `[N, 1]` padded; zeros for weights, ones for scales."""
    weight = name.removesuffix("_scale")
    if weight not in weights:
        return tensor
    n, k = (-(-size // MULTIPLE) * MULTIPLE for size in weights[weight])
    if name == weight:
        # torch cannot pad FP8, but zero is the byte 0.
        as_bytes = tensor.view(torch.uint8)
        larger = torch.nn.functional.pad(as_bytes, (0, k - tensor.shape[1], 0, n - tensor.shape[0]))
        return larger.view(tensor.dtype)
    return torch.nn.functional.pad(tensor, (0, 0, 0, n - tensor.shape[0]), value=1.0)


def to_pad(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Size]:
    """Return the shapes of unaligned FP8 weights."""
    return {
        name: tensor.shape
        for name, tensor in tensors.items()
        if tensor.dtype == torch.float8_e4m3fn and any(size % MULTIPLE for size in tensor.shape)
    }


def with_safetensors(model: Path, out_dir: Path) -> None:
    """Load each shard completely, pad it, and save it."""
    out_dir.mkdir()
    total = 0
    for path in sorted(model.iterdir()):
        if path.suffix != ".safetensors":
            shutil.copy(path, out_dir / path.name)
            continue
        with safe_open(path, "pt") as shard:
            tensors = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118  no mapping
        weights = to_pad(tensors)
        tensors = {name: padded(name, tensor, weights) for name, tensor in tensors.items()}
        total += sum(tensor.nbytes for tensor in tensors.values())
        save_file(tensors, out_dir / path.name, {"format": "pt"})
    index = out_dir / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    document["metadata"]["total_size"] = total
    index.write_text(json.dumps(document))


class PaddingConverter:
    """A `Converter` of compressed-tensors 0.20 that pads."""

    def process(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Pad the tensors of a shard."""
        weights = to_pad(tensors)
        return {name: padded(name, tensor, weights) for name, tensor in tensors.items()}

    def validate(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Pad tensors without data."""
        return self.process(tensors)

    def update_config(self, config: Any) -> Any:
        """Leave the quantization config unchanged: the time to write one does not count."""
        return config

    def update_model_config(self, model_config: dict[str, Any]) -> dict[str, Any]:
        """Leave the rest of config.json unchanged."""
        return model_config

    def get_dependencies(self, weight_name: str) -> set[str]:
        """Request a weight together with its scale."""
        return {f"{weight_name}_scale"} if weight_name.endswith("_proj.weight") else set()


def with_compressed_tensors(model: Path, out_dir: Path) -> None:
    """Convert with two workers, as fp8pad does by default."""
    from compressed_tensors.entrypoints.convert import convert_checkpoint

    convert_checkpoint(model, out_dir, PaddingConverter(), max_workers=2)


if __name__ == "__main__":
    ways = {"safetensors": with_safetensors, "compressed-tensors": with_compressed_tensors}
    ways[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
