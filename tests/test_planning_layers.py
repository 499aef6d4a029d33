"""Recognising FP8 Linears by their tensors."""

import pytest

from fp8pad.planning.layers import recognise
from fp8pad.planning.left_alone import left_alone
from fp8pad.planning.linear import ROTATED, Fp8Linear
from fp8pad.planning.linear_names import type_by_name
from fp8pad.planning.quantization import find_quantization
from fp8pad.record import Json
from fp8pad.scales import PerBlock, PerChannel, PerTensor
from fp8pad.tensors import TensorHeader

FP8 = {"quant_method": "fp8"}
FP8_BLOCK = {"quant_method": "fp8", "weight_block_size": [128, 128]}
FBGEMM = {"quant_method": "fbgemm_fp8"}
MODELOPT_BLOCK = {"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"}
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4"}


def header(name: str, dtype: str, shape: tuple[int, ...]) -> TensorHeader:
    """Return a tensor's header; the position of its data does not matter here."""
    return TensorHeader(name, dtype, shape, 0)


def recognised(
    *tensors: tuple[str, str, tuple[int, ...]], quantization: Json | None = FP8, model_type: str = "llama"
) -> tuple[tuple[Fp8Linear, ...], dict[str, str]]:
    """Return the FP8 Linears among `tensors`, and the reason for each other weight."""
    config: dict[str, object] = {"model_type": model_type}
    if quantization is not None:
        config["quantization_config"] = quantization
    headers = {name: header(name, dtype, shape) for name, dtype, shape in tensors}
    found = find_quantization({"config.json": config})
    linears, untouched = recognise(headers, found, config)
    linears = tuple(left_alone(linears, (), found, ()))
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
    """The shape of the scale and the config together decide the granularity."""
    (linear,), _ = recognised(
        ("a.q.weight", "F8_E4M3", (200, 300)), (f"a.q.{scale_name}", "F32", scale_shape), quantization=quantization
    )
    assert linear.granularity is not None
    assert (linear.name, linear.granularity.name, linear.skip_reason) == ("a.q", scheme, None)


def test_a_single_row_is_scaled_as_its_config_says() -> None:
    """A scale `[1, 1]` of a one-row weight is a channel scale or one block, depending on the config."""
    tensors = ("gate.weight", "F8_E4M3", (1, 100)), ("gate.weight_scale", "BF16", (1, 1))
    found = [recognised(*tensors, quantization=q)[0][0].granularity for q in (FBGEMM, FP8_BLOCK)]
    assert found == [PerChannel(), PerBlock(128, 128)]


@pytest.mark.parametrize(
    ("name", "model_type", "scale_dtype", "reason"),
    [
        ("model.layers.0.mlp.experts.7.up_proj", "qwen3_moe", "F32", "routed expert"),
        ("model.embed_tokens", "llama", "F32", "embedding"),
        ("h.0.attn.c_attn", "gpt2", "F32", "Conv1D"),
        ("a.q", "llama", "F64", "scales of dtype F64"),
    ],
)
def test_what_is_skipped_has_its_reason(name: str, model_type: str, scale_dtype: str, reason: str) -> None:
    """An FP8 weight that must not be padded by itself has a reason."""
    (linear,), _ = recognised(
        (f"{name}.weight", "F8_E4M3", (136, 213)), (f"{name}.weight_scale", scale_dtype, (1,)), model_type=model_type
    )
    assert linear.skip_reason is not None
    assert reason in linear.skip_reason


def test_one_scale_of_one_row_is_not_padded_where_the_config_allows_a_scale_per_tensor() -> None:
    """transformers' FP8 stores `[1, 1]` for every weight, including a gate with a single row."""
    (linear,), _ = recognised(("gate.weight", "F8_E4M3", (1, 136)), ("gate.weight_scale_inv", "F32", (1, 1)))
    assert linear.granularity == PerTensor()


def test_conv1d_is_recognised_inside_a_composite_model() -> None:
    """A GPT-2 under `text_config` stores its weights as `[K, N]` too."""
    config = {"model_type": "composite", "text_config": {"model_type": "gpt2"}, "quantization_config": FP8}
    headers = {
        name: header(name, dtype, shape)
        for name, dtype, shape in (("h.0.c_attn.weight", "F8_E4M3", (100, 300)), ("h.0.c_attn.weight_scale", "F32", ()))
    }
    (linear,), _ = recognise(headers, find_quantization({"config.json": config}), config)
    assert linear.skip_reason == "a Conv1D, stored as [K, N]"


def test_shared_experts_and_gpt_bigcode_are_linears() -> None:
    """They only look like routed experts or Conv1D, and are padded."""
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
    """A 3-D FP8 weight of any name is named and left unchanged, as is its scale, whatever its shape."""
    (linear,), _ = recognised((name, "F8_E4M3", (4, 90, 136)), (f"{name}_scale", "F32", (4, 3)))
    assert (linear.is_expert, linear.granularity, linear.is_understood) == (True, None, True)
    assert linear.skip_reason == "matrices stacked in one 3-D weight, whose axis order no family file describes"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.0.mlp.down_proj", "linear"),
        ("transformer.h.0.attn.c_attn", "linear"),
        ("layers.0.attn.wq_a", "linear"),
        ("layers.0.feed_forward.w13", "linear"),
        ("model.decoder.layers.0.fc2", "linear"),
        ("visual.merger.mlp.2", "linear"),
        ("vision.projector.layers.1", "linear"),
        ("encoder.block.0.layer.0.SelfAttention.q", "linear"),
        ("blocks.0.attention.query_key_value", "linear"),
        ("rwkv.blocks.0.ffn.receptance", "linear"),
        ("lm_head", "linear"),
        ("embed_out", "linear"),
        ("embed_vision.embedding_projection", "linear"),
        ("model.embed_tokens", "table"),
        ("model.embed_tokens_per_layer", "table"),
        ("embed", "table"),
        ("gpt_neox.embed_in", "table"),
        ("embedding", "table"),
        ("model.layers.1.ple.ngram_embedding.shard_0", "table"),
        ("codec_embeddings.3", "table"),
        ("tok_embeddings", "table"),
        ("transformer.wte", "table"),
        ("transformer.wpe", "table"),
        ("codebooks.0", "table"),
        ("query_embed", "table"),
        ("shared", None),
        ("memory", None),
        ("ngrams.shard_3", None),
        ("relative_attention_bias", None),
    ],
)
def test_a_name_tells_a_linear_from_a_table(name: str, kind: str | None) -> None:
    """Names that engines and transformers give Linears, names of embeddings, and names that say neither."""
    assert type_by_name(name) == kind


@pytest.mark.parametrize(
    ("name", "others", "reason"),
    [
        ("model.embed_tokens_per_layer", {}, "an embedding, not a Linear"),
        ("ngram_embedding.shard_0", {}, "an embedding, not a Linear"),
        ("memory", {}, "'memory' is not a name that engines use for a Linear"),
        ("memory", {"bias": (136,)}, None),
        ("memory", {"input_scale": ()}, None),
        ("memory", {"norm": (136,)}, "'memory' is not a name that engines use for a Linear"),
    ],
)
def test_what_is_not_known_to_be_a_linear_is_carried(
    name: str, others: dict[str, tuple[int, ...]], reason: str | None
) -> None:
    """Embeddings are understood; an unknown name counts as a Linear if there is a bias or an input scale."""
    (linear,), _ = recognised(
        (f"{name}.weight", "F8_E4M3", (136, 213)),
        (f"{name}.weight_scale", "F32", ()),
        *((f"{name}.{leaf}", "F32", shape) for leaf, shape in others.items()),
    )
    assert linear.skip_reason == reason
    assert linear.is_understood == (reason is None or "embedding" in reason)


@pytest.mark.parametrize(
    ("tensors", "quantization", "reason"),
    [
        ([("a.proj.weight", "F8_E4M3", (4, 4))], FP8, "an FP8 weight without a scale of its own"),
        ([("a.proj.weight", "F8_E4M3", (4, 4))], None, "an FP8 weight without a scale of its own"),
        (
            [("embed.shard_0.weight", "F8_E4M3", (64, 20)), ("embed.weight_scale", "F32", (1,))],
            FP8_BLOCK,
            "an embedding without a scale of its own",
        ),
        (
            [("a.qkv_proj.weight", "F8_E4M3", (96, 64)), ("a.qkv_proj.weight_scale", "F32", (3,))],
            FP8,
            "scales F32 [3] where a tensor scale [] or a channel scale [96, 1] is expected",
        ),
        (
            [("a.qkv_proj.weight", "F8_E4M3", (848, 256)), ("a.qkv_proj.weight_scale_inv", "F32", (8, 2))],
            FP8_BLOCK,
            "scales F32 [8, 2] where a block scale [7, 2] is expected",
        ),
        (
            [("a.proj.weight", "F8_E4M3", (100, 64)), ("a.proj.weight_scale", "F32", (100, 2))],
            {"quant_method": "torchao"},
            "scales F32 [100, 2] of a layout that fp8pad does not pad (torchao)",
        ),
        (
            [("a.stack.weight", "F8_E4M3", (4, 90, 136))],
            FP8,
            "matrices stacked in one 3-D weight, whose axis order no family file describes",
        ),
    ],
)
def test_what_is_not_understood_is_carried_with_its_reason(
    tensors: list[tuple[str, str, tuple[int, ...]]], quantization: Json | None, reason: str
) -> None:
    """No scale, or one of an unknown layout: the reason says what was found and what is expected."""
    (linear,), _ = recognised(*tensors, quantization=quantization)
    assert (linear.granularity, linear.skip_reason, linear.is_understood) == (None, reason, False)


def test_attention_with_different_inputs_is_carried() -> None:
    """If `k_proj` and `q_proj` have different K, how engines fuse them is unknown; the output is a plain Linear."""
    linears, _ = recognised(
        *attention("a.q_proj", 128, 256), *attention("a.k_proj", 128, 192), *attention("a.o_proj", 256, 128)
    )
    reason = "attention with different inputs: q_proj of 256 and k_proj of 192"
    assert [linear.skip_reason for linear in linears] == [reason, reason, None]
    assert [linear.is_understood for linear in linears] == [False, False, True]


def attention(name: str, num_n: int, num_k: int) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """Return a Linear with one scale."""
    return (f"{name}.weight", "F8_E4M3", (num_n, num_k)), (f"{name}.weight_scale", "F32", ())


def test_modules_that_the_user_names_are_carried() -> None:
    """`--skip` takes globs of module names, and modules that match count as understood."""
    tensors = *attention("m.0.up_proj", 100, 50), *attention("m.1.up_proj", 100, 50), *attention("lm_head", 50, 100)[:1]
    headers = {name: header(name, dtype, shape) for name, dtype, shape in tensors}
    config = {"model_type": "llama", "quantization_config": FP8}
    quantization = find_quantization({"config.json": config})
    linears = list(left_alone(recognise(headers, quantization, config)[0], ["lm_*", "*.1.*"], quantization, ()))
    assert [linear.skip_reason for linear in linears] == [None, "--skip *.1.*", "--skip lm_*"]
    assert all(linear.is_understood for linear in linears)


def test_weights_that_are_not_fp8_are_listed_with_their_dtype() -> None:
    """INT8, BF16, packed FP4 with FP8 scales, and FP8 convolutions are carried, each with a reason."""
    linears, untouched = recognised(
        ("lm_head.weight", "BF16", (509, 136)),
        ("mlp.up_proj.weight", "I8", (213, 136)),
        ("mlp.down_proj.weight_packed", "U8", (136, 107)),
        ("mlp.down_proj.weight_scale", "F8_E4M3", (136, 14)),
        ("conv.weight", "F8_E4M3", (8, 3, 4, 4)),
        ("norm.weight", "BF16", (136,)),
        ("table", "F8_E4M3", (8, 16)),
        quantization=NVFP4,
    )
    assert linears == ()
    assert untouched == {
        "lm_head.weight": "BF16, not FP8",
        "mlp.up_proj.weight": "I8, not FP8",
        "mlp.down_proj.weight_packed": "U8, not FP8",
        "mlp.down_proj.weight_scale": "an FP8 scale, not a weight",
        "conv.weight": "FP8, but with 4 dimensions, not the weight of a Linear",
        "table": "FP8, but not under the name of a weight",
    }


@pytest.mark.parametrize("grid", [(2, 1, 3, 1), (2, 3)])
def test_modelopts_grids_are_recognised_and_skipped(grid: tuple[int, ...]) -> None:
    """vLLM pads N of such a layer itself, and needs K in whole blocks; the runtime is not involved."""
    (linear,), _ = recognised(
        ("a.weight", "F8_E4M3", (200, 300)), ("a.weight_scale", "F32", grid), quantization=MODELOPT_BLOCK
    )
    assert linear.granularity == PerBlock(128, 128)
    assert linear.skip_reason == "ModelOpt block scales, which the plugin does not pad"


@pytest.mark.parametrize(("shape", "stored"), [((100, 300), (3,)), ((300, 100), (3,)), ((100, 100), ())])
def test_grids_without_their_sizes_of_one_are_known_and_skipped(
    shape: tuple[int, int], stored: tuple[int, ...]
) -> None:
    """transformers writes the grids of single experts so, and ModelOpt those of weights of one block."""
    (linear,), _ = recognised(
        ("a.up_proj.weight", "F8_E4M3", shape), ("a.up_proj.weight_scale_inv", "F32", stored), quantization=FP8_BLOCK
    )
    grid = list(PerBlock(128, 128).scale_shape(shape))
    reason = f"scales F32 {list(stored)}: block scales {grid} without sizes of 1, which fp8pad does not pad"
    assert (linear.granularity, linear.skip_reason, linear.is_understood) == (None, reason, True)


def test_weights_with_zero_points_are_skipped() -> None:
    """llm-compressor writes them for asymmetric FP8: the zeros of padding would not count as 0."""
    (linear,), _ = recognised(
        ("a.up_proj.weight", "F8_E4M3", (200, 300)),
        ("a.up_proj.weight_scale", "F32", (200, 1)),
        ("a.up_proj.weight_zero_point", "F8_E4M3", (200, 1)),
        quantization=FBGEMM,
    )
    assert (linear.skip_reason, linear.is_understood) == ("FP8 with zero points, which fp8pad does not pad", True)


def test_no_layer_of_a_model_that_rotates_activations_is_padded() -> None:
    """A matrix that rotates an input has the size of K: with more columns, engines rotate padding into the rest."""
    group = {"weights": {"type": "float", "num_bits": 8, "strategy": "channel"}, "targets": ["Linear"]}
    rotation = {"type": "random-matrix", "apply": [{"location": "input", "targets": ["re:.*down_proj$"]}]}
    linears, untouched = recognised(
        *channels("mlp.down_proj", 136, 212),
        *channels("mlp.up_proj", 212, 136),
        ("mlp.down_proj.R4_input.weight", "F64", (212, 212)),
        quantization={
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": group},
            "transform_config": {"config_groups": {"R4": rotation}},
        },
    )
    assert [(linear.skip_reason, linear.is_understood) for linear in linears] == [(ROTATED, True)] * 2
    assert list(untouched) == ["mlp.down_proj.R4_input.weight"]


def test_what_is_not_understood_says_why_in_a_model_that_rotates_too() -> None:
    """The rotation is not the reason for that."""
    rotation = {"apply": [{"location": "input", "targets": ["Linear"]}]}
    group = {"weights": {"type": "float", "num_bits": 8, "strategy": "channel"}, "targets": ["Linear"]}
    (linear,), _ = recognised(
        *channels("mlp.zzz", 136, 212),
        quantization={
            "quant_method": "compressed-tensors",
            "config_groups": {"group_0": group},
            "transform_config": {"config_groups": {"R4": rotation}},
        },
    )
    assert (linear.skip_reason, linear.is_understood) == ("'zzz' is not a name that engines use for a Linear", False)


def test_what_engines_make_of_a_conv1d_with_scales_per_row_is_not_known() -> None:
    """Tools take the rows of the stored [K, N] for output channels; engines turn the weight, not its scales."""
    (linear,), _ = recognised(*channels("h.0.attn.c_attn", 100, 300), quantization=FBGEMM, model_type="gpt2")
    assert (linear.granularity, linear.is_understood) == (None, True)
    assert linear.skip_reason == "a Conv1D, stored as [K, N], with scales [100, 1], which engines may not load"


def channels(name: str, num_n: int, num_k: int) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """Return a Linear with a scale for each output channel."""
    return (f"{name}.weight", "F8_E4M3", (num_n, num_k)), (f"{name}.weight_scale", "BF16", (num_n, 1))


def test_a_layout_that_the_config_marks_as_foreign_is_skipped() -> None:
    """MXFP8 has one scale for 32 elements; fp8pad does not pad it and says so."""
    group = {"type": "float", "num_bits": 8, "strategy": "group", "group_size": 32}
    quantization = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": group}}}
    (linear,), _ = recognised(
        ("a.weight", "F8_E4M3", (100, 64)), ("a.weight_scale", "U8", (100, 2)), quantization=quantization
    )
    reason = "MXFP8, scales U8 [100, 2]: one for each 32 inputs, which fp8pad does not pad"
    assert (linear.granularity, linear.skip_reason, linear.is_understood) == (None, reason, True)
