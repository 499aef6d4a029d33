"""Absorbed checkpoints in stock transformers, without any plugin: the same logits, to the last bit, as the originals.

In bfloat16, the dtype of the checkpoints. With another inner size the engine's matrix product may add in another order,
which changes the last bits in float32: `test_summation_order_in_float32` bounds that.
"""

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="needs transformers (make test-vllm)")
pytest.importorskip("accelerate", reason="transformers loads FP8 models through accelerate")

import torch
import transformers
from absorb_models import TinyFp8, build

pytestmark = pytest.mark.vllm
transformers.logging.set_verbosity_error()

Convert = Callable[..., Path]
LENGTHS = (1, 5, 16, 33)

# transformers dequantizes only whole blocks: 13 of them here, which two ranks cannot share.
BLOCKS: tuple[tuple[str, int], ...] = (("intermediate_size", 208),)
MODELS = [
    TinyFp8("llama", "channel"),
    TinyFp8("llama", "tensor"),
    TinyFp8("llama", "block", BLOCKS),
    TinyFp8("phi3", "channel"),
    TinyFp8("phi3", "tensor"),
    TinyFp8("phi3", "block", BLOCKS),
    TinyFp8("opt", "channel"),
    TinyFp8("opt", "tensor"),
    TinyFp8("opt", "block", (("ffn_dim", 208),)),
    TinyFp8("qwen2_5_vl", "channel"),
    TinyFp8("qwen2_5_vl", "tensor"),
    TinyFp8("qwen2_5_vl", "block", (("text_config.intermediate_size", 208), ("vision_config.intermediate_size", 112))),
    TinyFp8("qwen3_moe", "tensor"),
    TinyFp8("qwen3_moe", "block", (*BLOCKS, ("moe_intermediate_size", 80))),
    TinyFp8("deepseek_v3", "tensor"),
    TinyFp8("deepseek_v3", "block", (*BLOCKS, ("moe_intermediate_size", 80))),
]


@pytest.mark.parametrize("tiny", MODELS, ids=lambda tiny: tiny.name)
def test_logits_are_equal_to_the_last_bit(tiny: TinyFp8, tmp_path: Path, converted: Convert) -> None:
    """Absorbed for two ranks, including experts; no plugin is required, and the larger sizes are in use."""
    original = build(tiny, tmp_path / tiny.name)
    absorbed = converted(original, "--absorb", "--absorb-experts", "--tensor-parallel-size", "2")
    config = json.loads((absorbed / "config.json").read_text())
    assert config["quantization_config"] == json.loads((original / "config.json").read_text())["quantization_config"]
    before, after = logits(original), logits(absorbed)
    assert all(one.isfinite().all() for one in before)
    assert [torch.equal(one, other) for one, other in zip(before, after, strict=True)] == [True] * len(before)


@pytest.mark.parametrize(("inner_size", "padded_inner_size"), [(213, 224), (208, 224), (3420, 3424), (1368, 1408)])
def test_summation_order_in_float32(inner_size: int, padded_inner_size: int) -> None:
    """Zeros added to a float32 product change at most the order of its sum.

    Whatever the order, a sum of n products is off by at most n u / (1 - n u) times the sum of their absolute values,
    u = 2**-24 (Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition, section 3.1); two orders by twice
    that.
    """
    generator = torch.Generator().manual_seed(inner_size)
    activations = torch.randn(33, inner_size, generator=generator)
    weight = torch.randn(128, inner_size, generator=generator).to(torch.float8_e4m3fn).float()
    padding = (0, padded_inner_size - inner_size)
    before = torch.nn.functional.linear(activations, weight)
    after = torch.nn.functional.linear(
        torch.nn.functional.pad(activations, padding), torch.nn.functional.pad(weight, padding)
    )
    rounding = inner_size * 2.0**-24
    magnitude = torch.nn.functional.linear(activations.abs().double(), weight.abs().double())
    assert ((before - after).double().abs() <= 2 * rounding / (1 - rounding) * magnitude).all()


def logits(model_dir: Path) -> list[torch.Tensor]:
    """Return stock transformers' logits for prompts of several lengths, and for an image if the model takes one."""
    model = load(model_dir)
    vocabulary = 400
    prompts = [torch.tensor([[(7 * place + length) % vocabulary + 8 for place in range(length)]]) for length in LENGTHS]
    with torch.no_grad():
        answers = [model(input_ids=prompt).logits for prompt in prompts]
        if hasattr(model.config, "vision_config"):
            answers.append(model(**_image(model.config)).logits)
    del model
    gc.collect()
    return answers


def load(model_dir: Path, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Load a checkpoint in the way transformers can on a CPU: Hugging Face's `fp8` with dequantized weights."""
    document = json.loads((model_dir / "config.json").read_text())
    quantization = document["quantization_config"]
    options: dict[str, Any] = {}
    if quantization["quant_method"] == "fp8":
        given = {key: value for key, value in quantization.items() if key != "quant_method"}
        options["quantization_config"] = transformers.FineGrainedFP8Config(
            dequantize=True, **{"weight_block_size": None, **given}
        )
    is_vision = "vision_config" in document
    kind = transformers.AutoModelForImageTextToText if is_vision else transformers.AutoModelForCausalLM
    return kind.from_pretrained(model_dir, dtype=dtype, **options).eval()


def _image(config: Any) -> dict[str, torch.Tensor]:
    """Return four by six patches of random pixels, which two by two become six tokens in a prompt."""
    pixels = torch.randn(24, 3 * 2 * 14 * 14, generator=torch.Generator().manual_seed(3))
    image, start, end = config.image_token_id, config.vision_start_token_id, config.vision_end_token_id
    prompt = torch.tensor([[11, start, *[image] * 6, end, 12, 13]])
    return {
        "input_ids": prompt,
        "pixel_values": pixels.bfloat16(),
        "image_grid_thw": torch.tensor([[1, 4, 6]]),
        "mm_token_type_ids": (prompt == image).int(),
    }
