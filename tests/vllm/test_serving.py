"""Converted checkpoints produce the outputs of their originals, in vLLM's CPU build, eager, one rank.

Tokens and logprobs are equal to the last digit if activations are quantized per token: the kernel sums the same
products, and those of padding are zeros. If they are quantized per tensor, that build's GEMM groups its float32 sums
by K, so a sum may be rounded to the neighbouring bfloat16 number: one of the 15,000 outputs of all layers of such a
model was seen to differ, by one such step.
"""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from serving import PROMPTS, Served, serve, serve_apart

from fp8pad.runtime import linear
from fp8pad.runtime.activations import cut_output

pytestmark = pytest.mark.vllm

Find = Callable[[str], Path]
Convert = Callable[..., Path]

# One bfloat16 step is 2^-8 of a number; the logits here are about 1, and logprobs are differences of them.
BFLOAT16_STEP = 2.0**-8
VISION = Path(__file__).parent / "standins_vision"
MEDIA = Path(sys.prefix) / "media"


@pytest.mark.parametrize(
    "name", ["llama", "llama_float32_scales", "llama_float16_scales", "llama_hidden_200", "llama_quantized_head"]
)
def test_tiny_models_answer_as_their_originals(name: str, tiny: Find, converted: Convert) -> None:
    """Weights per channel: scales of each dtype, a hidden size, a quantized head."""
    _, padded = _check_equal(tiny(name), converted(tiny(name)))
    inner = () if name == "llama_hidden_200" else tuple(name for name in padded.padded_layers if ".mlp." in name)
    assert padded.kept_layers == inner


@pytest.mark.parametrize(
    "name",
    [
        "good/llama_bias_dyn",
        "good/llama_dyn_sharded",
        "good/llama_layer0_skip",
        "good/llama_mixed_fp8_int8",
        "good/llama_mo_pcpt",
        "good/llama_tied_dyn",
        "good/phi3_dyn",
        "good/opt_dyn",
        "good/gpt_bigcode_dyn",
    ],
)
def test_models_of_real_tools_answer_as_their_originals(name: str, case: Find, converted: Convert) -> None:
    """Checkpoints of llm-compressor and ModelOpt: biases, ignored layers, fused on disk, vLLM's Transformers backend.

    Padding is kept inside the MLPs, except for the one whose gate and up are INT8.
    """
    _, padded = _check_equal(case(name), converted(case(name)))
    assert bool(padded.kept_layers) == (name != "good/llama_mixed_fp8_int8")


def test_a_mamba_mixer_answers_from_an_output_that_is_not_copied(
    case: Find, converted: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of its `in_proj`, 616 of 624 columns, are a view, filled by Mamba's own loaders; answers are equal."""
    views = []

    def record(output: torch.Tensor, n: int, **options: bool) -> torch.Tensor:
        cut = cut_output(output, n, **options)
        views.append((n, cut.data_ptr() == output.data_ptr()))
        return cut

    monkeypatch.setattr(linear, "cut_output", record)
    _check_equal(case("good/mamba2_dyn"), converted(case("good/mamba2_dyn")))
    assert set(views) == {(616, True)}


def test_attention_that_takes_no_view_gets_a_copy(tiny: Find, converted: Convert) -> None:
    """DeepSeek's attention without MLA slices its latent; the CPU's rotary operator would misread a view."""
    original, padded = (
        serve_apart(model, PROMPTS, {"VLLM_MLA_DISABLE": "1"})
        for model in (tiny("deepseek"), converted(tiny("deepseek")))
    )
    assert padded.answers == original.answers
    assert "model.layers.0.self_attn.kv_a_proj_with_mqa" in padded.padded_layers


@pytest.mark.parametrize(
    "name",
    [
        "good/llama_static",
        "good/llama_hand_autofp8_static",
        "good/llama_mo_fp8",
        "good/llama_qk_fp8",
        "variants/v_modelopt_only_hfquant",
        "variants/v_scale_shape_scalar",
    ],
)
def test_static_models_answer_as_their_originals(name: str, case: Find, converted: Convert) -> None:
    """Each tool's static layout, and a ModelOpt checkpoint without a method in config.json.

    Scales per tensor: q, k, v and gate, up are requantized to their largest scale at load, in padded form too.
    """
    _check_near(case(name), converted(case(name)))


def test_a_block_scaled_model_answers_as_its_original(tiny: Find, converted: Convert) -> None:
    """vLLM takes a hidden size of six and a quarter blocks; the stand-in's sums are exact for any size."""
    _check_equal(tiny("llama_block"), converted(tiny("llama_block")))


def test_blocks_that_straddle_matrices_answer_as_when_absorbed(tiny: Find, converted: Convert) -> None:
    """Gate and up of 213 rows in blocks of 32: absorbing is the other way to keep each row's scale."""
    original = tiny("llama_block_inner")
    _check_equal(converted(original, "--absorb"), converted(original))


@pytest.mark.parametrize("name", ["good/llama_block", "good/llama_wide_block"])
def test_block_scaled_models_of_real_tools_answer_as_when_absorbed(name: str, case: Find, converted: Convert) -> None:
    """llm-compressor's layout, in which queries, keys and values straddle blocks too; both ways need the plugin."""
    padded, absorbed = (serve(converted(case(name), *options)) for options in ((), ("--absorb",)))
    assert padded.answers == absorbed.answers
    assert len(padded.padded_layers) == len(absorbed.padded_layers) == 8


@pytest.mark.parametrize("name", ["llama_kv_cache", "llama_modelopt_kv_cache"])
def test_the_kv_cache_has_the_originals_dtype(name: str, tiny: Find, converted: Convert) -> None:
    """FP8 scales of the KV cache make it FP8, as without padding, whether the scheme or the method decides."""
    original, padded = _check_equal(tiny(name), converted(tiny(name)))
    assert padded.kv_cache_dtype == original.kv_cache_dtype
    assert padded.kv_cache_dtype.startswith("fp8")


def test_a_vision_tower_answers_as_its_original(case: Find, converted: Convert) -> None:
    """Qwen2.5-VL with an image: its vision tower is padded too, under the model's names for its modules."""
    environment = with_torchvision()
    image = {"prompt_token_ids": [20, 30, 3, 6, 4, 50, 60, 70], "image_size": [70, 98]}  # 6 stands for the image

    def answers(model: Path) -> Served:
        prompts = [image, {"prompt_token_ids": [20, 30, 50, 60, 70]}]
        return serve_apart(model, prompts, environment, skip_tokenizer_init=False)

    original = case("good/qwen2_5_vl_dyn")
    padded = answers(converted(original))
    assert padded.answers == answers(original).answers
    assert {name.split(".")[0] for name in padded.kept_layers} == {"visual", "language_model"}
    assert {name.split(".")[0] for name in padded.padded_layers} == {"visual", "language_model"}


def test_a_gated_delta_net_answers_as_its_original(tiny: Find, converted: Convert) -> None:
    """Qwen3.5's linear attention, whose fused projections have loaders of their own."""
    models = tiny("qwen3_5"), converted(tiny("qwen3_5"))
    original, padded = (serve_apart(model, PROMPTS, with_torchvision()) for model in models)
    assert padded.answers == original.answers
    linear_attention = {f"model.layers.0.linear_attn.{name}" for name in ("in_proj_qkvz", "in_proj_ba", "out_proj")}
    assert linear_attention <= set(padded.padded_layers)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_several_ranks_answer_as_the_original_on_as_many(num_ranks: int, tiny: Find, converted: Convert) -> None:
    """One padded checkpoint serves any number of ranks, even if only a rank's share is unaligned.

    Four ranks have copies of two key-value heads.
    """
    environment = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    options = {"tensor_parallel_size": num_ranks, "distributed_executor_backend": "mp"}
    models = tiny("llama_halves"), converted(tiny("llama_halves"), "-tp", str(num_ranks))
    original, padded = (serve_apart(model, PROMPTS, environment, **options) for model in models)
    assert padded.answers == original.answers
    assert padded.kept_layers
    assert not original.padded_layers


def _check_equal(original: Path, padded: Path) -> tuple[Served, Served]:
    expected, got = serve(original), serve(padded)
    assert got.answers == expected.answers
    _check_padded(expected, got)
    return expected, got


def _check_near(original: Path, padded: Path) -> None:
    expected, got = serve(original), serve(padded)
    for answer, wanted in zip(got.answers, expected.answers, strict=True):
        assert answer.tokens == wanted.tokens
        assert answer.logprobs == pytest.approx(wanted.logprobs, abs=BFLOAT16_STEP)
        assert answer.prompt_logprobs == pytest.approx(wanted.prompt_logprobs, abs=BFLOAT16_STEP)
    _check_padded(expected, got)


def _check_padded(original: Served, padded: Served) -> None:
    assert padded.padded_layers
    assert not original.padded_layers


def with_torchvision() -> dict[str, str]:
    """Return an environment in which vLLM can import models with a vision tower."""
    return {"PYTHONPATH": os.pathsep.join([str(VISION), *_torchvision(), os.environ["PYTHONPATH"]])}


def _torchvision() -> list[str]:
    if importlib.util.find_spec("torchvision"):
        return []
    if not (MEDIA / "torchvision").is_dir():
        pytest.skip(f"no torchvision, here or in {MEDIA}: Qwen2.5-VL's image processor needs it")
    return [str(MEDIA)]
