"""Recognising FP8 Linears by their tensors."""

import pytest

from fp8pad.errors import PlanError
from fp8pad.planning.layers import Fp8Linear, recognise
from fp8pad.planning.quantization import find_quantization
from fp8pad.record import Json
from fp8pad.scales import PerBlock, PerChannel, PerTensor
from fp8pad.tensors import TensorHeader, tensor_bytes

FP8 = {"quant_method": "fp8"}
FP8_BLOCK = {"quant_method": "fp8", "weight_block_size": [128, 128]}
FBGEMM = {"quant_method": "fbgemm_fp8"}
MODELOPT_BLOCK = {"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"}
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4"}


def header(name: str, dtype: str, shape: tuple[int, ...]) -> TensorHeader:
    """A tensor's header; where its data lies does not matter here."""
    return TensorHeader(name, dtype, shape, 0, tensor_bytes(dtype, shape))


def recognised(
    *tensors: tuple[str, str, tuple[int, ...]], quantization: Json | None = FP8, model_type: str = "llama"
) -> tuple[tuple[Fp8Linear, ...], dict[str, str]]:
    """The FP8 Linears among `tensors`, and the reason for each other weight."""
    config: dict[str, object] = {"model_type": model_type}
    if quantization is not None:
        config["quantization_config"] = quantization
    headers = {name: header(name, dtype, shape) for name, dtype, shape in tensors}
    linears, untouched = recognise(headers, find_quantization({"config.json": config}), config)
    return linears, {tensor.name: tensor.reason for tensor in untouched}


@pytest.mark.parametrize(
    ("quantization", "scale_name", "scale_shape", "scheme"),
    [
        (FP8, "weight_scale", (), "tensor"),
        (FP8, "weight_scale", (1,), "tensor"),
        (FP8, "weight_scale_inv", (1, 1), "tensor"),
        (FP8, "scale", (), "tensor"),
        (FBGEMM, "weight_scale", (200, 1), "channel"),
        (FBGEMM, "weight_scale", (200,), "channel"),
        (FP8_BLOCK, "weight_scale_inv", (2, 3), "block"),
    ],
)
def test_scheme_follows_from_the_scale(
    quantization: Json, scale_name: str, scale_shape: tuple[int, ...], scheme: str
) -> None:
    """The shape of the scale and the config together say how a weight is scaled."""
    (linear,), _ = recognised(
        ("a.q.weight", "F8_E4M3", (200, 300)), (f"a.q.{scale_name}", "F32", scale_shape), quantization=quantization
    )
    assert linear.granularity is not None
    assert (linear.name, linear.granularity.name, linear.skip_reason) == ("a.q", scheme, None)


def test_a_single_row_is_scaled_as_its_config_says() -> None:
    """A scale `[1, 1]` of a one-row weight is a channel scale or one block, as the config has it."""
    tensors = ("gate.weight", "F8_E4M3", (1, 100)), ("gate.weight_scale", "BF16", (1, 1))
    found = [recognised(*tensors, quantization=q)[0][0].granularity for q in (FBGEMM, FP8_BLOCK)]
    assert found == [PerChannel(), PerBlock(128, 128)]


@pytest.mark.parametrize(
    ("name", "model_type", "scale_dtype", "reason"),
    [
        ("model.layers.0.mlp.experts.7.up_proj", "qwen3_moe", "F32", "routed expert"),
        ("model.embed_tokens", "llama", "F32", "embedding"),
        ("h.0.attn.c_attn", "gpt2", "F32", "Conv1D"),
        ("a.q", "llama", "F8_E8M0", "scales of dtype F8_E8M0"),
    ],
)
def test_what_is_skipped_has_its_reason(name: str, model_type: str, scale_dtype: str, reason: str) -> None:
    """An FP8 weight that must not be padded on its own says why."""
    (linear,), _ = recognised(
        (f"{name}.weight", "F8_E4M3", (136, 213)), (f"{name}.weight_scale", scale_dtype, (1,)), model_type=model_type
    )
    assert linear.skip_reason is not None
    assert reason in linear.skip_reason


def test_one_scale_of_one_row_is_not_padded_where_the_config_allows_a_scale_per_tensor() -> None:
    """transformers' FP8 keeps `[1, 1]` for every weight, also for a gate of a single row."""
    (linear,), _ = recognised(("gate.weight", "F8_E4M3", (1, 136)), ("gate.weight_scale_inv", "F32", (1, 1)))
    assert linear.granularity == PerTensor()


def test_conv1d_is_recognised_inside_a_composite_model() -> None:
    """A GPT-2 under `text_config` keeps its weights as `[K, N]` too."""
    config = {"model_type": "composite", "text_config": {"model_type": "gpt2"}, "quantization_config": FP8}
    headers = {
        name: header(name, dtype, shape)
        for name, dtype, shape in (("h.0.c_attn.weight", "F8_E4M3", (100, 300)), ("h.0.c_attn.weight_scale", "F32", ()))
    }
    (linear,), _ = recognise(headers, find_quantization({"config.json": config}), config)
    assert linear.skip_reason == "a Conv1D, stored as [K, N]"


def test_shared_experts_and_gpt_bigcode_are_linears() -> None:
    """Names and families that only look like routed experts or Conv1D are padded."""
    linears, _ = recognised(
        ("mlp.shared_experts.up_proj.weight", "F8_E4M3", (70, 136)),
        ("mlp.shared_experts.up_proj.weight_scale", "F32", ()),
        ("h.0.attn.c_attn.weight", "F8_E4M3", (224, 160)),
        ("h.0.attn.c_attn.weight_scale", "F32", ()),
        model_type="gpt_bigcode",
    )
    assert [linear.skip_reason for linear in linears] == [None, None]


@pytest.mark.parametrize("name", ["mlp.experts.gate_up_proj", "moe.up_proj.weight", "block_sparse_moe.w13"])
def test_a_stack_that_no_family_describes_is_skipped(name: str) -> None:
    """A 3-D FP8 weight of any name is named and left alone, as is its scale, whatever its shape."""
    (linear,), _ = recognised((name, "F8_E4M3", (4, 90, 136)), (f"{name}_scale", "F32", (4, 3)))
    assert (linear.is_expert, linear.granularity) == (True, None)
    assert linear.skip_reason == "matrices stacked in one 3-D weight, whose order no family file tells"


def test_weights_that_are_not_fp8_are_listed_with_their_dtype() -> None:
    """INT8, BF16, packed FP4 with its FP8 scales, and FP8 convolutions come through, each with a reason."""
    linears, untouched = recognised(
        ("lm_head.weight", "BF16", (509, 136)),
        ("mlp.up_proj.weight", "I8", (213, 136)),
        ("mlp.down_proj.weight_packed", "U8", (136, 107)),
        ("mlp.down_proj.weight_scale", "F8_E4M3", (136, 14)),
        ("conv.weight", "F8_E4M3", (8, 3, 4, 4)),
        ("norm.weight", "BF16", (136,)),
        quantization=NVFP4,
    )
    assert linears == ()
    assert untouched == {
        "lm_head.weight": "BF16, not FP8",
        "mlp.up_proj.weight": "I8, not FP8",
        "mlp.down_proj.weight_packed": "U8, not FP8",
        "mlp.down_proj.weight_scale": "an FP8 scale, not a weight",
        "conv.weight": "FP8, but not the 2-D weight of a Linear",
    }


@pytest.mark.parametrize("grid", [(2, 1, 3, 1), (2, 3)])
def test_modelopts_grids_are_recognised_and_skipped(grid: tuple[int, ...]) -> None:
    """vLLM pads N of such a layer itself, and asks for K in whole blocks; the runtime does not meet it."""
    (linear,), _ = recognised(
        ("a.weight", "F8_E4M3", (200, 300)), ("a.weight_scale", "F32", grid), quantization=MODELOPT_BLOCK
    )
    assert linear.granularity == PerBlock(128, 128)
    assert linear.skip_reason == "block scales of ModelOpt, which the runtime does not pad"


def test_a_layout_that_the_config_marks_as_foreign_is_skipped() -> None:
    """MXFP8 keeps one scale for 32 elements; fp8pad does not pad it and says so."""
    group = {"type": "float", "num_bits": 8, "strategy": "group", "group_size": 32}
    quantization = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": group}}}
    (linear,), _ = recognised(
        ("a.weight", "F8_E4M3", (100, 64)), ("a.weight_scale", "U8", (100, 2)), quantization=quantization
    )
    assert linear.granularity is None
    assert linear.skip_reason == "scales U8 [100, 2] of a layout that is not padded (compressed-tensors)"


@pytest.mark.parametrize(
    ("tensors", "quantization", "message"),
    [
        ([("a.weight", "F8_E4M3", (4, 4))], FP8, "a.weight: an FP8 weight without a scale: expected a.weight_scale"),
        ([("a.weight", "F8_E4M3", (4, 4))], None, "a.weight: F8_E4M3, but config.json has no quantization_config"),
        (
            [("a.weight", "F8_E4M3", (136, 213)), ("a.weight_scale", "F32", (1, 136))],
            FBGEMM,
            r"a.weight_scale: expected a channel scale \[136, 1\] for the weight \[136, 213\], got \[1, 136\]",
        ),
        (
            [("a.weight", "F8_E4M3", (136, 213)), ("a.weight_scale", "F32", (136, 1))],
            FP8_BLOCK,
            r"a.weight_scale: expected a block scale \[2, 2\] for the weight \[136, 213\], got \[136, 1\]",
        ),
        (
            [
                ("a.gate_proj.weight", "F8_E4M3", (213, 8)),
                ("a.gate_proj.weight_scale", "F32", ()),
                ("a.up_proj.weight", "F8_E4M3", (212, 8)),
                ("a.up_proj.weight_scale", "F32", ()),
            ],
            FP8,
            r"a.up_proj.weight: expected 213 rows as a.gate_proj.weight \[213, 8\] asks for, got \[212, 8\]",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(
    tensors: list[tuple[str, str, tuple[int, ...]]], quantization: Json | None, message: str
) -> None:
    """A weight and a scale, a config or a sibling that disagree are one clear error."""
    with pytest.raises(PlanError, match=message):
        recognised(*tensors, quantization=quantization)
