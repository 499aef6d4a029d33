"""Converted checkpoints answer as their originals do: the same tokens and logprobs, by vLLM's CPU build, eager."""

from collections.abc import Callable
from pathlib import Path

import pytest
from serving import serve

pytestmark = pytest.mark.vllm

Convert = Callable[..., Path]
Tiny = Callable[[str], Path]


@pytest.mark.parametrize(
    "name",
    [
        "llama",
        "llama_bias",
        "llama_float32_scales",
        "llama_float16_scales",
        "llama_hidden_200",
        "llama_quantized_head",
        "phi3",
        "gpt_bigcode",
    ],
)
def test_per_channel_models_answer_as_their_originals(name: str, tiny: Tiny, converted: Convert) -> None:
    """Weights per channel and dynamic activations: equal to the last digit, with the shim padding layers."""
    original, padded = serve(tiny(name)), serve(converted(tiny(name)))
    assert padded.answers == original.answers
    assert padded.padded_layers
    assert not original.padded_layers
