"""How FP8 checkpoints store a quantized Linear: the tensors next to each weight, and the part of config.json.

Weights are random, with scales that make outputs about as large as inputs.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from needed import torch

Tensors = Iterator[tuple[str, torch.Tensor]]

FP8_MAX = 448.0
BLOCK = 128
# Random weights are multiplied by this before they are rounded, so that few are clamped and few are subnormal.
SPREAD = 64.0
_WEIGHTS = {"num_bits": 8, "type": "float", "symmetric": True, "dynamic": False}


@dataclass(frozen=True, slots=True)
class Fp8Scheme:
    """A layout: its quantization config, and the scales of a weight `[N, K]`."""

    quantization_config: dict[str, Any]
    scales: Callable[[str, int, int], Tensors]

    def linear(self, name: str, n: int, k: int, *, bias: bool = False) -> Tensors:
        """Yield an FP8 weight `[N, K]`, its scales, and its bias `[N]` if `bias`."""
        weight = torch.randn(n, k, device=device()) * SPREAD
        yield f"{name}.weight", weight.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
        yield from self.scales(name, n, k)
        if bias:
            yield f"{name}.bias", normal(n) * 0.1


def device() -> str:
    """Return the device on which tensors are made."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def normal(*shape: int) -> torch.Tensor:
    """Return BF16 values of a standard normal distribution."""
    return torch.randn(shape, device=device()).to(torch.bfloat16)


def _scale(k: int, *shape: int) -> torch.Tensor:
    """Return FP32 scales around the value that makes sums of K products about as large as the inputs."""
    return (0.5 + torch.rand(shape, device=device())) * k**-0.5 / SPREAD


def _per_channel(name: str, n: int, k: int) -> Tensors:
    yield f"{name}.weight_scale", _scale(k, n, 1).to(torch.bfloat16)


def _per_tensor(name: str, n: int, k: int) -> Tensors:  # noqa: ARG001 (one scale, whatever N)
    yield f"{name}.weight_scale", _scale(k, 1)


def _static(name: str, n: int, k: int) -> Tensors:
    yield from _per_tensor(name, n, k)
    yield f"{name}.input_scale", torch.tensor([0.02])  # activations up to 9


def _per_block(leaf: str, dtype: torch.dtype, block: int = BLOCK) -> Callable[[str, int, int], Tensors]:
    def scales(name: str, n: int, k: int) -> Tensors:
        yield f"{name}.{leaf}", _scale(k, -(-n // block), -(-k // block)).to(dtype)

    return scales


def _fp8_block(block: int) -> dict[str, Any]:
    return {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [block, block]}


def _compressed_tensors(weights: str, activations: str | None, *, dynamic: bool = True) -> dict[str, Any]:
    """Return the quantization config for weights and activations of these strategies."""
    group = {
        "targets": ["Linear"],
        "weights": {**_WEIGHTS, "strategy": weights},
        "input_activations": {**_WEIGHTS, "strategy": activations, "dynamic": dynamic} if activations else None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


_FP8 = {"dtype": "fp8_e4m3", "symmetric": True}
_QUARK_BLOCK = {
    "quant_method": "quark",
    "global_quant_config": {
        "weight": {**_FP8, "qscheme": "per_block", "block_size": [BLOCK, BLOCK], "is_dynamic": False},
        "input_tensors": {**_FP8, "qscheme": "per_group", "group_size": BLOCK, "ch_axis": -1, "is_dynamic": True},
        "output_tensors": None,
        "bias": None,
    },
    "layer_quant_config": {},
    "layer_type_quant_config": {},
    "exclude": ["lm_head"],
    "export": {"kv_cache_group": [], "pack_method": "reorder", "weight_format": "real_quantized"},
}
_AUTOROUND_BLOCK = {
    "quant_method": "auto-round",
    "packing_format": "auto_round:fp8",
    "data_type": "fp",
    "bits": 8,
    "group_size": [BLOCK, BLOCK],
    "sym": True,
    "act_bits": 8,
    "act_data_type": "fp",
    "act_group_size": BLOCK,
    "act_sym": True,
    "act_dynamic": True,
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
}

SCHEMES = {
    "channel": Fp8Scheme(_compressed_tensors("channel", "token"), _per_channel),
    "weight-only": Fp8Scheme(_compressed_tensors("channel", None), _per_channel),
    "tensor": Fp8Scheme(_compressed_tensors("tensor", "tensor"), _per_tensor),
    "static": Fp8Scheme(_compressed_tensors("tensor", "tensor", dynamic=False), _static),
    "block": Fp8Scheme(_fp8_block(BLOCK), _per_block("weight_scale_inv", torch.float32)),
    "block-64": Fp8Scheme(_fp8_block(64), _per_block("weight_scale_inv", torch.float32, 64)),
    "block-e8m0": Fp8Scheme(_fp8_block(BLOCK), _per_block("weight_scale_inv", torch.float8_e8m0fnu)),
    "block-quark": Fp8Scheme(_QUARK_BLOCK, _per_block("weight_scale", torch.float32)),
    "block-autoround": Fp8Scheme(_AUTOROUND_BLOCK, _per_block("weight_scale_inv", torch.bfloat16)),
}
