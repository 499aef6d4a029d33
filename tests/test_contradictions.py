"""Tensors and configs that contradict each other are refused with the tensor, what was expected and what was found."""

import pytest

from fp8pad.errors import PlanError, UsageError
from fp8pad.planning import plan_checkpoint
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.record import Json, Policy
from fp8pad.tensors import ShardHeader, TensorHeader

FP8 = {"quant_method": "fp8", "activation_scheme": "static"}
FP8_BLOCK = {"quant_method": "fp8", "weight_block_size": [128, 128]}
FBGEMM = {"quant_method": "fbgemm_fp8"}
INT8 = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"type": "int", "num_bits": 8}}}}
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4"}

PAD = Policy()

Tensors = list[tuple[str, str, tuple[int, ...]]]
WEIGHT: Tensors = [("a.proj.weight", "F8_E4M3", (136, 213))]
PER_TENSOR: Tensors = [*WEIGHT, ("a.proj.weight_scale", "F32", ())]
PER_CHANNEL: Tensors = [*WEIGHT, ("a.proj.weight_scale", "F32", (136, 1))]


def planned(
    tensors: Tensors, quantization: Json | None = FP8, policy: Policy = PAD, model_type: str = "llama"
) -> CheckpointPlan:
    """Return the plan of one shard with these tensors."""
    headers = tuple(TensorHeader(name, dtype, shape, 0) for name, dtype, shape in tensors)
    config = {"model_type": model_type} | ({"quantization_config": quantization} if quantization else {})
    return plan_checkpoint([ShardHeader("model.safetensors", 0, 0, headers)], {"config.json": config}, policy)


@pytest.mark.parametrize(
    ("tensors", "quantization", "message"),
    [
        ([], FP8, "has no tensors"),
        (PER_CHANNEL, None, "a.proj.weight: F8_E4M3, but config.json has no quantization_config"),
        (
            PER_CHANNEL,
            FP8_BLOCK,
            r"expected block scales, as config.json: quantization_config says, got channel scales \[136, 1\]",
        ),
        (PER_TENSOR, FBGEMM, r"expected channel scales, .* got tensor scales \[\]"),
        (PER_CHANNEL, INT8, "a.proj.weight: F8_E4M3, but config.json: quantization_config says 8-bit int"),
        (PER_TENSOR, NVFP4, "a.proj.weight: F8_E4M3, but config.json: quantization_config says NVFP4"),
        (PER_CHANNEL, {"quant_method": "gptq", "bits": 4}, "says 4-bit gptq"),
        ([("a.proj.weight_scale", "F32", (136, 1))], FP8, "a scale without its weight: expected a.proj.weight"),
        (
            [("a.proj.weight_scale_inv", "F32", (2, 2)), ("a.proj.bias", "BF16", (136,))],
            FP8_BLOCK,
            "a.proj.weight_scale_inv: a scale without its weight",
        ),
        ([*WEIGHT, ("a.proj.weight_scale", "I32", (136, 1))], FP8, "or F8_E8M0, got I32"),
        ([*WEIGHT, ("a.proj.weight_scale", "F8_E4M3", ())], FP8, "or F8_E8M0, got F8_E4M3"),
        ([*WEIGHT, ("a.proj.weight_scale_inv", "U8", (2, 2))], FP8_BLOCK, "got U8"),
        (
            [("a.norm.weight", "F8_E4M3", (136,)), ("a.norm.weight_scale", "F32", ())],
            FP8,
            r"a.norm.weight: expected a matrix, since a.norm.weight_scale belongs to it, got \[136\]",
        ),
        (
            [("a.weight", "F8_E4M3", ()), ("a.weight_scale", "F32", ())],
            FP8,
            r"a.weight: expected a matrix, .* got \[\]",
        ),
        ([("a.proj.weight", "F8_E4M3", (0, 16)), ("a.proj.weight_scale", "F32", ())], FP8, r"a size of 0 in \[0, 16\]"),
        ([("a.proj.weight", "F8_E4M3", (16, 0))], FP8, r"a.proj.weight: a size of 0 in \[16, 0\]"),
        ([("a.experts.w1", "F8_E4M3", (0, 16, 16))], FP8, r"a.experts.w1: a size of 0"),
        ([*WEIGHT, ("a.proj.weight_scale", "F32", (0,))], FP8, r"a.proj.weight_scale: a size of 0 in \[0\]"),
        ([*PER_TENSOR, ("a.proj.bias", "BF16", (137,))], FP8, r"a.proj.bias: expected \[136\], .* got \[137\]"),
        ([*PER_CHANNEL, ("a.proj.bias", "BF16", (1, 136))], FP8, r"a.proj.bias: expected \[136\], .* got \[1, 136\]"),
        (
            [*PER_TENSOR, ("a.proj.input_scale", "F32", (213,))],
            FP8,
            r"expected one scale for the whole input, got \[213\]",
        ),
        (
            [*PER_TENSOR, ("a.proj.input_scale", "F32", (0,))],
            FP8,
            r"expected one scale for the whole input, got \[0\]",
        ),
        (
            [*PER_TENSOR, ("a.proj.input_scale", "I32", ())],
            FP8,
            r"a.proj.input_scale: expected scales of F32 .*got I32",
        ),
        ([*PER_TENSOR, ("a.proj.activation_scale", "F8_E4M3", ())], FP8, r"activation_scale: .*got F8_E4M3"),
        (
            [
                ("a.gate_proj.weight", "F8_E4M3", (213, 8)),
                ("a.gate_proj.weight_scale", "F32", ()),
                ("a.up_proj.weight", "F8_E4M3", (212, 8)),
                ("a.up_proj.weight_scale", "F32", ()),
            ],
            FP8,
            r"a.up_proj.weight: expected 213 rows to match a.gate_proj.weight \[213, 8\], got \[212, 8\]",
        ),
    ],
)
@pytest.mark.parametrize("absorb", [False, True])
def test_contradictions_are_refused(tensors: Tensors, quantization: Json | None, message: str, absorb: bool) -> None:
    """Engines fail on these, or give wrong outputs, absorbed or not."""
    with pytest.raises(PlanError, match=message):
        planned(tensors, quantization, Policy(absorb=absorb))


@pytest.mark.parametrize(
    "tensors",
    [
        [*PER_TENSOR, ("a.proj.input_scale", "F32", (1,)), ("a.proj.bias", "BF16", (136,))],
        [*PER_CHANNEL, ("a.proj.input_scale", "F32", (213,))],
        [("t.embed.shard_0.weight", "F8_E4M3", (64, 20)), ("t.embed.weight_scale", "F32", (1,))],
        [("a.proj.weight_packed", "U8", (136, 100)), ("a.proj.weight_scale", "F8_E4M3", (136, 13))],
        [("a.norm.weight", "F8_E4M3", (136,))],
        [("a.empty", "F32", (0, 136))],
        [("a.attn.k_scale", "F32", ()), ("a.attn.weight_norm.scale", "F32", (8,))],
    ],
)
def test_what_only_looks_like_a_contradiction_is_planned(tensors: Tensors) -> None:
    """Dynamic scales per token, tables in shards with one scale, packed weights, and tensors that are not FP8."""
    assert planned(tensors).bytes_before >= 0


@pytest.mark.parametrize(("skip", "reason"), [((), "a Conv1D, stored as [K, N]"), (("h.*",), "--skip h.*")])
def test_the_bias_of_a_transposed_weight_is_as_long_as_its_columns(skip: tuple[str, ...], reason: str) -> None:
    """transformers' Conv1D stores `[K, N]`, whatever the reason for which it is not padded."""
    weight, scale = ("h.0.c_attn.weight", "F8_E4M3", (100, 300)), ("h.0.c_attn.weight_scale", "F32", ())
    tensors = [weight, scale, ("h.0.c_attn.bias", "BF16", (300,))]
    (layer,) = planned(tensors, policy=Policy(skip=skip), model_type="gpt2").layers
    assert (layer.plan.logical_shape, layer.plan.padded_shape, layer.plan.reason) == ((300, 100), (300, 100), reason)


def test_a_config_of_two_formats_is_no_contradiction() -> None:
    """INT8 groups next to FP8 ones are for other layers; a scale that fits neither is carried unchanged."""
    channel = {"type": "float", "num_bits": 8, "strategy": "channel"}
    groups = {"g": {"weights": {"type": "int", "num_bits": 8}}, "h": {"weights": channel}}
    plan = planned(PER_CHANNEL, {"quant_method": "compressed-tensors", "config_groups": groups})
    assert plan.not_understood == ()
    assert plan.tensors


def test_a_pattern_that_names_no_module_is_refused() -> None:
    """A typo in --skip would pad a module that should be left unchanged."""
    assert planned(PER_TENSOR, policy=Policy(skip=("a.*",))).changes_nothing
    with pytest.raises(UsageError, match=r"--skip b\.\*: no module has this name, and patterns match whole names$"):
        planned(PER_TENSOR, policy=Policy(skip=("a.*", "b.*")))


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("q_proj", "*q_proj"),
        ("self_attn", "*self_attn.*"),
        ("model.layers.0", "model.layers.0.*"),
        ("*.q_prj", "*.q_proj"),
        ("mlp.q_prj", "*.q_proj"),
        ("nothing", None),
    ],
)
def test_a_suggested_pattern_matches_something(pattern: str, meant: str | None) -> None:
    """It is tried before it is suggested."""
    name = "model.layers.0.self_attn.q_proj"
    tensors: Tensors = [(f"{name}.weight", "F8_E4M3", (136, 213)), (f"{name}.weight_scale", "F32", ())]
    with pytest.raises(UsageError) as refused:
        planned(tensors, policy=Policy(skip=(pattern,)))
    assert str(refused.value).partition("; did you mean ")[2] == (f"'{meant}'?" if meant else "")
    if meant:
        assert planned(tensors, policy=Policy(skip=(meant,))).changes_nothing
