"""Which axes are inside an MLP: complete MLPs of FP8 Linears, whatever happens to their size."""

from collections.abc import Mapping
from typing import Any

import pytest
from helpers import gated, linear

from fp8pad.planning.absorb.inner import inner_axes
from fp8pad.planning.absorb.matching import find_governed
from fp8pad.planning.families import index_families, sections_of
from fp8pad.planning.layers import recognise
from fp8pad.planning.quantization import find_quantization
from fp8pad.tensors import TensorHeader

CONFIG = {"model_type": "llama", "intermediate_size": 213, "quantization_config": {"quant_method": "fp8"}}
MLP = "model.layers.0.mlp"
LLAMA = gated(MLP, 213, 64)
INNER = {f"{MLP}.gate_proj": "n", f"{MLP}.up_proj": "n", f"{MLP}.down_proj": "k"}

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]


def inner_of(config: Mapping[str, Any], tensors: Tensors, text: str | None = None) -> Mapping[str, str]:
    """Return the inner axes of a checkpoint with these tensors; `text` is a family file to read instead of all."""
    headers = {name: TensorHeader(name, dtype, shape, 0) for name, (dtype, shape) in tensors.items()}
    sections = sections_of(config, index_families({"toy.toml": text}) if text else None)
    governed = find_governed(sections, headers)
    linears, _ = recognise(headers, find_quantization({"config.json": config}), config, governed.modules)
    return inner_axes(governed, linears)


@pytest.mark.parametrize("size", [213, 999, None, [213, 214]])
def test_llamas_mlp(size: object) -> None:
    """Rows of gate and up and columns of down, whatever size the config has; attention is not inside."""
    tensors = LLAMA | linear("model.layers.0.self_attn.o_proj", 64, 213)
    assert inner_of(CONFIG | {"intermediate_size": size}, tensors) == INNER


def test_gate_and_up_in_one() -> None:
    """Phi-3's gate_up_proj is inside with its N."""
    tensors = linear(f"{MLP}.gate_up_proj", 426, 64) | linear(f"{MLP}.down_proj", 64, 213)
    assert inner_of(CONFIG | {"model_type": "phi3"}, tensors) == {f"{MLP}.gate_up_proj": "n", f"{MLP}.down_proj": "k"}


@pytest.mark.parametrize(
    "change",
    [
        {f"{MLP}.up_proj.weight": ("BF16", (213, 64))},
        {f"{MLP}.down_proj.weight": ("BF16", (64, 213))},
        {f"{MLP}.inner_norm.weight": ("BF16", (213,))},
        {f"{MLP}.up_proj.lora_B.weight": ("BF16", (213, 8))},
    ],
)
def test_an_mlp_that_is_not_whole(change: Tensors) -> None:
    """A part that is not FP8, a norm over the inner size, or an adapter: none of its axes is inside."""
    tensors = LLAMA | gated("model.layers.1.mlp", 213, 64) | dict(change)
    assert inner_of(CONFIG, tensors) == {name.replace(".0.", ".1."): axis for name, axis in INNER.items()}


@pytest.mark.parametrize(
    ("config", "tensors"),
    [
        (CONFIG | {"hidden_act": "expcos"}, LLAMA),
        (CONFIG | {"model_type": "unknown"}, LLAMA),
        (CONFIG | {"model_type": "qwen3_moe"}, gated(f"{MLP}.experts.0", 213, 64)),
        (CONFIG | {"model_type": "gemma3n_text"}, LLAMA),
    ],
)
def test_nothing_is_guessed(config: Mapping[str, Any], tensors: Tensors) -> None:
    """An unknown activation, an unknown model, routed experts, and statistics over the inner size."""
    assert inner_of(config, tensors) == {}


FIXED = """
model_types = ["toy"]
[[mlp]]
unabsorbable = "its size is 4 x hidden_size"
up = "merger.fc1"
down = "merger.fc2"
activation = "gelu"
"""


def test_a_size_that_is_no_key_of_its_own() -> None:
    """A size that cannot be absorbed can still be inside an MLP."""
    tensors = linear("merger.fc1", 213, 64) | linear("merger.fc2", 64, 213)
    assert inner_of(CONFIG | {"model_type": "toy"}, tensors, FIXED) == {"merger.fc1": "n", "merger.fc2": "k"}
