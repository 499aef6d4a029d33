"""Absorbed checkpoints in stock vLLM, its CPU build, eager, without fp8pad's plugin: the same answers as the originals.

On one rank tokens and logprobs are equal to the last digit where activations are quantized per token. With static
scales per tensor that build's GEMM adds up in an order that depends on the inner size; see test_serving.py.

On two ranks vLLM gives half of an MLP's neurons to each and scales the input of down by the maximum on that rank. Which
neuron is on which rank depends on the inner size, so with a larger size the last digits differ, as they do between one
rank and two. If both sizes divide the neurons in the same way, answers are equal to the last digit on two ranks too.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from absorb_models import TinyFp8, build
from serving import Answer, serve, serve_apart
from stock import PLUGINS, serve_stock
from test_serving import with_torchvision

pytestmark = pytest.mark.vllm

Convert = Callable[..., Path]
Answers = tuple[Answer, ...]
Pair = tuple[Answers, Answers]

# One bfloat16 step is 2^-8 of a number; the logits here are about 1, and logprobs are differences of them.
BFLOAT16_STEP = 2.0**-8
# Rounding to e4m3 moves a number by 2^-4 of it at most.
E4M3_ROUNDING = 2.0**-4
TWO_RANKS = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}

ODD = TinyFp8("llama", "channel")
STATIC = TinyFp8("llama", "static")
PER_TOKEN = (ODD, TinyFp8("phi3", "channel"), TinyFp8("opt", "channel"), TinyFp8("gpt_bigcode", "channel"))
DEAD = TinyFp8("llama", "channel", (("intermediate_size", 208),), dead_neurons=(104, 112))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory, converted: Convert) -> dict[TinyFp8, tuple[Path, Path]]:
    """Make the originals, and each of them absorbed for two ranks."""
    folder = tmp_path_factory.mktemp("originals")
    originals = {
        tiny: build(tiny, folder / f"{tiny.name}-{number}") for number, tiny in enumerate((*PER_TOKEN, STATIC, DEAD))
    }
    return {
        tiny: (original, converted(original, "--absorb", "--tensor-parallel-size", "2"))
        for tiny, original in originals.items()
    }


@pytest.fixture(scope="module")
def alone(pairs: dict[TinyFp8, tuple[Path, Path]]) -> dict[TinyFp8, Pair]:
    """Return stock vLLM's answers on one rank, before and after: all models in one process."""
    asked = (*PER_TOKEN, STATIC)
    answers = iter(serve_stock([model for tiny in asked for model in pairs[tiny]]))
    return {tiny: (next(answers), next(answers)) for tiny in asked}


@pytest.mark.parametrize("tiny", PER_TOKEN, ids=lambda tiny: tiny.name)
def test_answers_are_equal_to_the_last_digit(tiny: TinyFp8, alone: dict[TinyFp8, Pair]) -> None:
    """Biases, gate and up fused on disk, no gate at all, and vLLM's Transformers backend."""
    before, after = alone[tiny]
    assert after == before


def test_static_scales_answer_within_a_step(alone: dict[TinyFp8, Pair]) -> None:
    """With scales per tensor, gate and up are requantized to the larger scale at load; zeros stay zeros."""
    check_near(*alone[STATIC], BFLOAT16_STEP)


def test_two_ranks(pairs: dict[TinyFp8, tuple[Path, Path]], alone: dict[TinyFp8, Pair]) -> None:
    """Equal to the last digit if 208 and 224 neurons divide into the same live ones, since 104 to 111 are dead.

    213 neurons do not fit two ranks at all; 224 do, and equal 213 on one rank, except for how two ranks quantize.
    """
    before, after, together = serve_stock([*pairs[DEAD], pairs[ODD][1]], **TWO_RANKS)
    assert after == before
    check_near(alone[ODD][0], together, E4M3_ROUNDING)


def test_stock_vllm_does_not_split_the_original(pairs: dict[TinyFp8, tuple[Path, Path]]) -> None:
    """Without absorbing, vLLM refuses it."""
    with pytest.raises(RuntimeError, match=r"output_size % self\.tp_size == 0(.|\n)*AssertionError"):
        serve_stock([pairs[ODD][0]], **TWO_RANKS)


def test_the_runtime_serves_what_is_left(tiny: Callable[[str], Path], converted: Convert) -> None:
    """213 neurons are absorbed and a hidden size of 136 is padded in the same weights: the runtime pads the latter."""
    original = tiny("llama")
    mixed = converted(original, "--absorb")
    config = json.loads((mixed / "config.json").read_text())
    assert config["intermediate_size"] == 224
    assert config["quantization_config"]["modules"]["model.layers.0.mlp.down_proj"] == {
        "logical_shape": [136, 224],
        "padded_shape": [144, 224],
        "alignment": [16, 16],
        "inner": "k",
    }
    before, after = serve(original), serve(mixed)
    assert after.answers == before.answers
    assert after.padded_layers


def test_a_vision_tower_answers_as_its_original(case: Callable[[str], Path], converted: Convert) -> None:
    """Qwen2.5-VL with an image: the text and the vision part have separate sizes, and both grow."""
    environment = {**with_torchvision(), "VLLM_PLUGINS": PLUGINS}
    image = {"prompt_token_ids": [20, 30, 3, 6, 4, 50, 60, 70], "image_size": [70, 98]}  # 6 stands for the image
    prompts = [image, {"prompt_token_ids": [20, 30, 50, 60, 70]}]
    original = case("good/qwen2_5_vl_dyn")
    absorbed = converted(original, "--absorb")
    config = json.loads((absorbed / "config.json").read_text())
    assert (config["text_config"]["intermediate_size"], config["vision_config"]["intermediate_size"]) == (224, 112)
    before, after = (
        serve_apart(model, prompts, environment, skip_tokenizer_init=False) for model in (original, absorbed)
    )
    assert after == before
    assert not after.padded_layers


def check_near(before: Answers, after: Answers, tolerance: float) -> None:
    """Check that tokens are equal and logprobs within `tolerance`."""
    assert [answer.tokens for answer in after] == [answer.tokens for answer in before]
    assert max_difference(before, after) <= tolerance


def max_difference(before: Answers, after: Answers) -> float:
    """Return the largest difference of two logprobs."""
    pairs = zip(before, after, strict=True)
    return max(
        abs(one - other)
        for first, second in pairs
        for one, other in zip(
            first.logprobs + first.prompt_logprobs, second.logprobs + second.prompt_logprobs, strict=True
        )
    )
