"""The plan as a whole, compared with literal numbers."""

import json
from math import lcm
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fp8pad.padded import AxisActions, PaddedTensor
from fp8pad.planning import padding, plan_checkpoint
from fp8pad.planning.alignment import KERNEL_MULTIPLES
from fp8pad.planning.config import edited_config
from fp8pad.planning.linear import Layer, LayerPlan
from fp8pad.planning.plan import CheckpointPlan, UntouchedTensor
from fp8pad.planning.sharding import Sharding
from fp8pad.quantization_config import ModuleRecord, QuantizationRecord
from fp8pad.record import Alignment, BaseSource, ConfigEdit, Json, Policy
from fp8pad.scales import PerBlock, PerChannel
from fp8pad.tensors import ShardHeader, TensorHeader, tensor_bytes

FBGEMM = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}
CONFIG = {"model_type": "llama", "quantization_config": FBGEMM, "vocab_size": 509}


def shard(file: str, *tensors: tuple[str, str, tuple[int, ...]]) -> ShardHeader:
    """Return a shard's header with its tensors one after another."""
    headers, end = [], 0
    for name, dtype, shape in tensors:
        begin, end = end, end + tensor_bytes(dtype, shape)
        headers.append(TensorHeader(name, dtype, shape, begin))
    return ShardHeader(file, 1000 + end, 1000, tuple(headers), {"format": "pt"})


def config_of(plan: CheckpointPlan, config: Json) -> dict[str, Any]:
    """Return config.json of the converted checkpoint."""
    quantization = QuantizationRecord(plan.modules, plan.base or {}, "0.1.0") if plan.needs_runtime else None
    return edited_config(config, plan.config_edits, quantization, plan.base_source)


DOWN = shard(
    "1.safetensors",
    ("mlp.down_proj.weight", "F8_E4M3", (136, 213)),
    ("norm.weight", "BF16", (136,)),
)
SCALES = shard(
    "2.safetensors", ("mlp.down_proj.weight_scale", "BF16", (136, 1)), ("lm_head.weight", "BF16", (509, 136))
)
LM_HEAD = shard("3.safetensors", ("lm_head.weight", "BF16", (509, 136)))


def test_a_channel_scaled_layer_is_planned_to_the_last_number() -> None:
    """Weight and scale are padded, each in its own shard, and the module is recorded for the runtime."""
    plan = plan_checkpoint([DOWN, SCALES], {"config.json": CONFIG}, Policy())
    reason = "N = 136 is not a multiple of 16 and K = 213 is not a multiple of 16"
    pads, shapes = AxisActions("pad", "pad"), ((136, 213), (144, 224), (16, 16))
    assert plan == CheckpointPlan(
        policy=Policy(),
        layers=(
            Layer(
                "mlp.down_proj",
                LayerPlan(PerChannel(), *shapes, pads, reason, (136, 213), Sharding("row"), scale_bytes=2),
            ),
        ),
        untouched=(UntouchedTensor("lm_head.weight", "BF16", (509, 136), "BF16, not FP8"),),
        tensors={
            "mlp.down_proj.weight": PaddedTensor((136, 213), (144, 224), 0, pads),
            "mlp.down_proj.weight_scale": PaddedTensor((136, 1), (144, 1), 1, AxisActions("pad", "aligned")),
        },
        modules={"mlp.down_proj": ModuleRecord(*shapes)},
        config_edits=(),
        base=FBGEMM,
        base_source=BaseSource("config.json", "quantization_config"),
        shards_rewritten=("1.safetensors", "2.safetensors"),
        bytes_before=136 * 213 + 136 * 2 + 136 * 2 + 509 * 136 * 2,
        bytes_after=144 * 224 + 136 * 2 + 144 * 2 + 509 * 136 * 2,
    )


def block_scaled(name: str, num_n: int, num_k: int, dtype: str = "F32") -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """Return an FP8 weight with a scale for each block of 32 rows and 128 columns."""
    grid = (-(-num_n // 32), -(-num_k // 128))
    return (f"{name}.weight", "F8_E4M3", (num_n, num_k)), (f"{name}.weight_scale_inv", dtype, grid)


BLOCK = {"quant_method": "fp8", "weight_block_size": [32, 128]}
BLOCK_CONFIG = {**CONFIG, "quantization_config": BLOCK}


def test_a_block_scaled_layer_is_planned_to_the_last_number() -> None:
    """Both axes grow to whole blocks; the scales already cover them, so only the weight changes."""
    header = shard("m.safetensors", *block_scaled("mlp.down_proj", 136, 213))
    plan = plan_checkpoint([header], {"config.json": BLOCK_CONFIG}, Policy())
    reason = "N = 136 is not a multiple of 32 and K = 213 is not a multiple of 128"
    pads, shapes = AxisActions("pad", "pad"), ((136, 213), (160, 256), (32, 128))
    assert plan == CheckpointPlan(
        policy=Policy(),
        layers=(
            Layer(
                "mlp.down_proj",
                LayerPlan(PerBlock(32, 128), *shapes, pads, reason, (136, 213), Sharding("row"), scale_bytes=4),
            ),
        ),
        untouched=(),
        tensors={"mlp.down_proj.weight": PaddedTensor((136, 213), (160, 256), 0, pads)},
        modules={"mlp.down_proj": ModuleRecord(*shapes)},
        config_edits=(),
        base=BLOCK,
        base_source=BaseSource("config.json", "quantization_config"),
        shards_rewritten=("m.safetensors",),
        bytes_before=136 * 213 + 5 * 2 * 4,
        bytes_after=160 * 256 + 5 * 2 * 4,
    )


def test_a_grid_of_scales_grows_where_the_alignment_is_larger_than_the_block() -> None:
    """128 is four blocks of 32 rows and one of 128 columns: rows of ones are added to the scales, no columns."""
    header = shard("m.safetensors", *block_scaled("mlp.down_proj", 136, 213, "BF16"))
    plan = plan_checkpoint([header], {"config.json": BLOCK_CONFIG}, Policy(alignment=128))
    assert plan.tensors == {
        "mlp.down_proj.weight": PaddedTensor((136, 213), (256, 256), 0, AxisActions("pad", "pad")),
        "mlp.down_proj.weight_scale_inv": PaddedTensor((5, 2), (8, 2), 1, AxisActions("pad", "aligned")),
    }
    assert plan.bytes_after == 256 * 256 + 8 * 2 * 2


def test_the_siblings_of_a_padded_block_scaled_layer_are_recorded_too() -> None:
    """An engine that fuses layers with the same input must know where in the grid each one begins."""
    attention = "model.layers.0.self_attn"
    header = shard(
        "m.safetensors",
        *block_scaled(f"{attention}.q_a_proj", 1536, 7168),
        *block_scaled(f"{attention}.kv_a_proj_with_mqa", 580, 7168),
        *block_scaled(f"{attention}.q_b_proj", 1536, 1536),
        *block_scaled("model.layers.1.self_attn.q_a_proj", 1536, 7168),
    )
    plan = plan_checkpoint([header], {"config.json": BLOCK_CONFIG}, Policy())
    assert plan.tensors.keys() == {f"{attention}.kv_a_proj_with_mqa.weight"}
    assert plan.modules == {
        f"{attention}.q_a_proj": ModuleRecord((1536, 7168), (1536, 7168), (32, 128)),
        f"{attention}.kv_a_proj_with_mqa": ModuleRecord((580, 7168), (608, 7168), (32, 128)),
    }


def test_scales_without_a_known_one_are_left_as_they_are() -> None:
    """fp8pad does not fill 64-bit scales, which no tool writes."""
    header = shard("m.safetensors", *block_scaled("mlp.down_proj", 136, 213, "F64"))
    plan = plan_checkpoint([header], {"config.json": BLOCK_CONFIG}, Policy(tensor_parallel_size=2))
    assert plan.changes_nothing
    ((_, layer),) = plan.layers
    assert (layer.axes, layer.reason) == (AxisActions("skip", "skip"), "scales of dtype F64")
    assert [name for name, _ in plan.not_understood] == ["mlp.down_proj"]


def test_an_fp8_weight_of_four_dimensions_is_understood_as_a_convolution_alone() -> None:
    """Neither is a Linear; only a name like `conv1` shows that it is a convolution."""
    tensors = [(f"{name}.weight", "F8_E4M3", (8, 4, 3, 3)) for name in ("conv1", "mix")]
    plan = plan_checkpoint([shard("m.safetensors", *tensors)], {"config.json": BLOCK_CONFIG}, Policy())
    assert [name for name, _ in plan.not_understood] == ["mix.weight"]


@pytest.mark.parametrize(("alignment", "rows"), [("auto", 5), (128, 8)])
def test_scales_that_are_exponents_alone(alignment: Any, rows: int) -> None:
    """E8M0: padding inside blocks does not change the grid, and new rows of it are filled with 1.0."""
    header = shard("m.safetensors", *block_scaled("mlp.down_proj", 136, 213, "F8_E8M0"))
    plan = plan_checkpoint([header], {"config.json": BLOCK_CONFIG}, Policy(alignment=alignment))
    assert plan.tensors["mlp.down_proj.weight"].padded_shape == (rows * 32, 256)
    grid = plan.tensors.get("mlp.down_proj.weight_scale_inv")
    assert grid == (None if rows == 5 else PaddedTensor((5, 2), (8, 2), 1, AxisActions("pad", "aligned")))


def test_a_checkpoint_without_fp8_changes_nothing() -> None:
    """There is nothing to pad, to edit or to record for the runtime."""
    plan = plan_checkpoint([LM_HEAD], {"config.json": {"model_type": "llama"}}, Policy())
    assert plan.changes_nothing
    assert config_of(plan, {"model_type": "llama"}) == {"model_type": "llama"}


@pytest.mark.parametrize(("alignment", "padded"), [("auto", (144, 224)), (32, (160, 224)), (128, (256, 256))])
def test_alignment_is_the_users_to_choose(alignment: object, padded: tuple[int, int]) -> None:
    """A larger alignment rounds both axes up to it."""
    plan = plan_checkpoint([DOWN, SCALES], {"config.json": CONFIG}, Policy(alignment=alignment))  # type: ignore[arg-type]
    assert plan.layers[0].plan.padded_shape == padded


def test_a_layer_unaligned_on_a_rank_only_needs_the_runtime_but_no_padding() -> None:
    """10944 is a multiple of 16, an eighth is not: no tensor changes, but the module is recorded, with a reason."""
    header = shard(
        "m.safetensors",
        ("mlp.down_proj.weight", "F8_E4M3", (2048, 10944)),
        ("mlp.down_proj.weight_scale", "F32", (2048, 1)),
    )
    alone, eight = (
        plan_checkpoint([header], {"config.json": CONFIG}, Policy(tensor_parallel_size=size)) for size in (1, 8)
    )
    assert alone.changes_nothing
    assert (eight.tensors, eight.layers[0].plan.axes) == ({}, AxisActions("aligned", "aligned"))
    assert eight.modules == {"mlp.down_proj": ModuleRecord((2048, 10944), (2048, 10944), (16, 16))}
    assert eight.layers[0].plan.reason == (
        "N and K are multiples of 16; K = 10944 / 8 = 1368 is not a multiple of 16: the plugin pads it at load"
    )


@pytest.mark.parametrize(
    ("module", "shape", "reason"),
    [
        (
            "mlp.down_proj",
            (8192, 29568),
            "K = 29568 / 2 = 14784 is not a multiple of 128: {inside}",
        ),
        (
            "self_attn.q_proj",
            (96, 8192),
            "N = 96 / 2 = 48 is not a multiple of 32: {inside}",
        ),
    ],
)
def test_a_share_that_begins_inside_a_block_is_reported_and_left_alone(
    module: str, shape: tuple[int, int], reason: str
) -> None:
    """Padding at load cannot fix its scales, so the config stays; only an MLP's inner size can be absorbed."""
    header = shard("m.safetensors", *block_scaled(module, *shape))
    plan = plan_checkpoint([header], {"config.json": BLOCK_CONFIG}, Policy(tensor_parallel_size=2))
    assert plan.changes_nothing
    inside = "a rank's share begins inside a scale block"
    assert plan.layers[0].plan.reason == "N and K are multiples of 32 and 128; " + reason.format(inside=inside)


def test_inside_an_mlp_a_share_may_begin_inside_a_block() -> None:
    """Nothing is padded on disk; the record alone lets the runtime serve it at TP 2, and at any other size."""
    name, inner, hidden = "model.layers.0.mlp", 29568, 8192
    shapes = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    header = shard(
        "m.safetensors",
        *(
            (f"{name}.{part}.{tensor}", dtype, shape)
            for part, (n, k) in shapes.items()
            for tensor, dtype, shape in (
                ("weight", "F8_E4M3", (n, k)),
                ("weight_scale_inv", "F32", (n // 128, k // 128)),
            )
        ),
    )
    config = {"model_type": "llama", "intermediate_size": inner, "hidden_act": "silu"}
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    plan = plan_checkpoint([header], {"config.json": config}, Policy(tensor_parallel_size=2))
    assert not plan.tensors
    assert {module.rpartition(".")[2]: record.inner for module, record in plan.modules.items()} == {
        "gate_proj": "n",
        "up_proj": "n",
        "down_proj": "k",
    }
    assert all(
        layer.plan.reason.endswith("= 14784 is not a multiple of 128: the plugin pads it at load")
        for layer in plan.layers
    )
    alone = plan_checkpoint([header], {"config.json": config}, Policy())
    assert alone.changes_nothing
    assert {layer.plan.fit_at(2) for layer in alone.layers} == {"unaligned"}


BLOCK_128 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@pytest.mark.parametrize(
    ("module", "shape", "reason"),
    [
        ("self_attn.qkv_proj", (384, 256), "N = 384 is 128 + 64 + 64 on each of 2 ranks, where 64 {broken}: {inside}"),
        (
            "mlp.gate_up_proj",
            (768, 256),
            "N = 768 is 192 + 192 on each of 2 ranks, where 192 {broken}: {inside}",
        ),
        ("mlp.gate_up_proj", (640, 256), "N = 640 / 2 = 320 {broken}: {inside}"),
    ],
)
def test_the_matrices_of_a_layer_fused_on_disk_are_named(module: str, shape: tuple[int, int], reason: str) -> None:
    """The reason lists them. The runtime cannot help, so it is not needed; nor can absorbing, in one case."""
    name = f"model.layers.0.{module}"
    grid = tuple(size // 128 for size in shape)
    header = shard("m.safetensors", (f"{name}.weight", "F8_E4M3", shape), (f"{name}.weight_scale_inv", "F32", grid))
    config = {
        "model_type": "phi3",
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "quantization_config": BLOCK_128,
    }
    alone, two = (plan_checkpoint([header], {"config.json": config}, Policy(tensor_parallel_size=n)) for n in (1, 2))
    words = {
        "broken": "is not a multiple of 128",
        "inside": "a rank's share begins inside a scale block",
    }
    assert alone.changes_nothing
    assert two.changes_nothing
    assert alone.layers[0].plan.reason == "N and K are multiples of 128"
    assert two.layers[0].plan.reason == "N and K are multiples of 128; " + reason.format(**words)


def test_a_copied_key_that_ends_inside_a_block_is_reported() -> None:
    """Padded on disk, it is served on one rank; on two, the queries are split and the runtime refuses the layer."""
    name = "model.layers.0.self_attn.k_proj"
    header = shard(
        "m.safetensors", (f"{name}.weight", "F8_E4M3", (64, 256)), (f"{name}.weight_scale_inv", "F32", (1, 2))
    )
    config = {"model_type": "llama", "num_key_value_heads": 1, "quantization_config": BLOCK_128}
    plan = plan_checkpoint([header], {"config.json": config}, Policy(tensor_parallel_size=2))
    assert plan.modules == {name: ModuleRecord((64, 256), (128, 256), (128, 128))}
    assert plan.layers[0].plan.reason == (
        "N = 64 is not a multiple of 128; N = 64 on each of 2 ranks is not a multiple of 128: "
        "a rank's share begins inside a scale block"
    )


def test_a_share_of_copied_heads_is_not_called_a_quotient() -> None:
    """Two heads of 24 on four ranks: each rank has one, 24 rows, which is not a quarter of 48."""
    name = "model.layers.0.self_attn.k_proj"
    header = shard("m.safetensors", (f"{name}.weight", "F8_E4M3", (48, 256)), (f"{name}.weight_scale", "F32", (48, 1)))
    plan = plan_checkpoint(
        [header], {"config.json": {**CONFIG, "num_key_value_heads": 2}}, Policy(tensor_parallel_size=4)
    )
    assert plan.layers[0].plan.reason == (
        "N and K are multiples of 16; N = 24 on each of 4 ranks is not a multiple of 16: the plugin pads it at load"
    )


def test_a_share_of_whole_blocks_is_padded_at_load() -> None:
    """With multiples of 128, three blocks of 32 rows on each of four ranks are one block short."""
    header = shard("m.safetensors", *block_scaled("mlp.up_proj", 384, 256))
    plan = plan_checkpoint([header], {"config.json": BLOCK_CONFIG}, Policy(alignment=128, tensor_parallel_size=4))
    assert (plan.tensors, list(plan.modules)) == ({}, ["mlp.up_proj"])
    assert plan.layers[0].plan.reason == (
        "N and K are multiples of 128; N = 384 / 4 = 96 is not a multiple of 128: the plugin pads it at load"
    )


MLP = shard(
    "m.safetensors",
    ("model.layers.0.mlp.down_proj.weight", "F8_E4M3", (136, 213)),
    ("model.layers.0.mlp.down_proj.weight_scale", "F32", (136, 1)),
    ("model.layers.0.mlp.gate_proj.weight", "F8_E4M3", (213, 136)),
    ("model.layers.0.mlp.gate_proj.weight_scale", "F32", (213, 1)),
    ("model.layers.0.mlp.up_proj.weight", "F8_E4M3", (213, 136)),
    ("model.layers.0.mlp.up_proj.weight_scale", "F32", (213, 1)),
)
MLP_CONFIG = {"model_type": "llama", "hidden_act": "silu", "intermediate_size": 213, "quantization_config": FBGEMM}


def test_one_axis_absorbed_and_the_other_padded_compose() -> None:
    """The MLP's inner size goes into the config; the runtime pads the hidden size and knows the edited shape."""
    plan = plan_checkpoint([MLP], {"config.json": MLP_CONFIG}, Policy(absorb=True))
    down, up = AxisActions("pad", "absorb"), AxisActions("absorb", "pad")
    assert plan.config_edits == (ConfigEdit("config.json", "intermediate_size", 213, 224),)
    assert {name.removeprefix("model.layers.0.mlp."): tensor for name, tensor in plan.tensors.items()} == {
        "down_proj.weight": PaddedTensor((136, 213), (144, 224), 0, down),
        "down_proj.weight_scale": PaddedTensor((136, 1), (144, 1), 1, AxisActions("pad", "aligned")),
        "gate_proj.weight": PaddedTensor((213, 136), (224, 144), 0, up),
        "gate_proj.weight_scale": PaddedTensor((213, 1), (224, 1), 1, AxisActions("absorb", "aligned")),
        "up_proj.weight": PaddedTensor((213, 136), (224, 144), 0, up),
        "up_proj.weight_scale": PaddedTensor((213, 1), (224, 1), 1, AxisActions("absorb", "aligned")),
    }
    assert plan.modules["model.layers.0.mlp.down_proj"] == ModuleRecord((136, 224), (144, 224), (16, 16), "k")
    assert plan.modules["model.layers.0.mlp.up_proj"] == ModuleRecord((224, 136), (224, 144), (16, 16), "n")
    edited = config_of(plan, MLP_CONFIG)
    assert (edited["intermediate_size"], edited["quantization_config"]["base"]) == (224, FBGEMM)


def test_one_axis_of_a_block_scaled_layer_absorbed_and_the_other_padded_compose() -> None:
    """Each axis extends its part of the grid: columns of ones for the inner size, rows of ones for the hidden size."""
    mlp = "model.layers.0.mlp"
    sizes = {"gate_proj": (213, 136), "up_proj": (213, 136), "down_proj": (136, 213)}
    tensors = [tensor for name, size in sizes.items() for tensor in block_scaled(f"{mlp}.{name}", *size)]
    config = {**MLP_CONFIG, "quantization_config": BLOCK}
    policy = Policy(alignment=128, tensor_parallel_size=3, absorb=True)
    plan = plan_checkpoint([shard("m.safetensors", *tensors)], {"config.json": config}, policy)
    down, up = AxisActions("pad", "absorb"), AxisActions("absorb", "pad")
    assert plan.config_edits == (ConfigEdit("config.json", "intermediate_size", 213, 384),)
    assert {name.removeprefix(f"{mlp}."): tensor for name, tensor in plan.tensors.items()} == {
        "gate_proj.weight": PaddedTensor((213, 136), (384, 256), 0, up),
        "gate_proj.weight_scale_inv": PaddedTensor((7, 2), (12, 2), 1, AxisActions("absorb", "aligned")),
        "up_proj.weight": PaddedTensor((213, 136), (384, 256), 0, up),
        "up_proj.weight_scale_inv": PaddedTensor((7, 2), (12, 2), 1, AxisActions("absorb", "aligned")),
        "down_proj.weight": PaddedTensor((136, 213), (256, 384), 0, down),
        "down_proj.weight_scale_inv": PaddedTensor((5, 2), (8, 3), 1, down),
    }
    assert plan.modules == {
        f"{mlp}.gate_proj": ModuleRecord((384, 136), (384, 256), (128, 128), "n"),
        f"{mlp}.up_proj": ModuleRecord((384, 136), (384, 256), (128, 128), "n"),
        f"{mlp}.down_proj": ModuleRecord((136, 384), (256, 384), (128, 128), "k"),
    }


def test_absorbing_experts_alone_leaves_dense_sizes_to_the_runtime() -> None:
    """`--absorb-experts` is for routed experts; keys that size only dense layers are edited by `--absorb`."""
    plan = plan_checkpoint([MLP], {"config.json": MLP_CONFIG}, Policy(absorb_experts=True))
    assert (plan.config_edits, plan.layers[0].plan.axes) == ((), AxisActions("pad", "pad"))


def test_what_cannot_be_absorbed_is_padded_and_says_why() -> None:
    """Layers of an unknown family are padded instead."""
    plan = plan_checkpoint([MLP], {"config.json": MLP_CONFIG | {"model_type": "unheard_of"}}, Policy(absorb=True))
    assert plan.config_edits == ()
    assert {layer.plan.axes for layer in plan.layers} == {AxisActions("pad", "pad")}
    assert plan.layers[0].plan.reason.endswith("no file in planning/families describes the model type unheard_of")


def test_the_config_is_replaced_in_place() -> None:
    """Key order and foreign keys stay, and the original is nested unchanged."""
    plan = plan_checkpoint([DOWN, SCALES], {"config.json": CONFIG}, Policy())
    edited = config_of(plan, CONFIG)
    assert list(edited) == list(CONFIG)
    assert edited["quantization_config"]["quant_method"] == "fp8pad"
    assert edited["quantization_config"]["base"] == FBGEMM
    assert json.loads(json.dumps(edited))["quantization_config"]["modules"] == {
        "mlp.down_proj": {"logical_shape": [136, 213], "padded_shape": [144, 224], "alignment": [16, 16]}
    }
    assert CONFIG["quantization_config"] is FBGEMM


def test_a_config_from_modelopts_own_file_moves_to_the_top_level() -> None:
    """Old ModelOpt checkpoints get a `quantization_config`, with the contents of the separate file as its base."""
    configs: dict[str, dict[str, object]]
    configs = {"config.json": {"model_type": "llama"}, "hf_quant_config.json": {"quantization": {"quant_algo": "FP8"}}}
    header = shard("m.safetensors", ("a.weight", "F8_E4M3", (20, 20)), ("a.weight_scale", "F32", ()))
    plan = plan_checkpoint([header], configs, Policy())
    edited = config_of(plan, configs["config.json"])
    assert list(edited) == ["model_type", "quantization_config"]
    assert edited["quantization_config"]["base"] == configs["hf_quant_config.json"]


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([16, 32, 64, 128]))
def test_padding_is_the_least_that_aligns(num_n: int, num_k: int, alignment: int) -> None:
    """Every padded size is a multiple of the alignment, less than one alignment above the logical size."""
    header = shard("m.safetensors", ("a.weight", "F8_E4M3", (num_n, num_k)), ("a.weight_scale", "F32", (num_n,)))
    plan = plan_checkpoint([header], {"config.json": CONFIG}, Policy(alignment=alignment))  # type: ignore[arg-type]
    (layer,) = plan.layers
    for logical, padded, disposition in zip(
        (num_n, num_k), layer.plan.padded_shape, (layer.plan.axes.n, layer.plan.axes.k), strict=True
    ):
        assert padded % alignment == 0
        assert 0 <= padded - logical < alignment
        assert disposition == ("pad" if logical % alignment else "aligned")
    assert set(plan.tensors) <= {"a.weight", "a.weight_scale"}
    assert plan.changes_nothing == (num_n % alignment == 0 and num_k % alignment == 0)


@given(
    sizes=st.tuples(st.integers(1, 500), st.integers(1, 500)),
    block=st.tuples(st.integers(1, 150), st.integers(1, 150)),
    alignment=st.sampled_from(["auto", 16, 128]),
)
def test_a_grid_of_scales_covers_the_padded_weight(
    sizes: tuple[int, int], block: tuple[int, int], alignment: object
) -> None:
    """Padded sizes are whole blocks, the smallest that align, and each block has exactly one scale."""
    grid = tuple(-(-size // side) for size, side in zip(sizes, block, strict=True))
    header = shard("m.safetensors", ("a.weight", "F8_E4M3", sizes), ("a.weight_scale_inv", "F32", grid))
    config = {"model_type": "llama", "quantization_config": {**BLOCK, "weight_block_size": list(block)}}
    plan = plan_checkpoint([header], {"config.json": config}, Policy(alignment=alignment))  # type: ignore[arg-type]
    (layer,) = plan.layers
    scale = plan.tensors.get("a.weight_scale_inv")
    for axis in (0, 1):
        multiple = block[axis] if alignment == "auto" else lcm(block[axis], int(str(alignment)))
        assert layer.plan.padded_shape[axis] == -(-sizes[axis] // multiple) * multiple
        assert (scale.padded_shape if scale else grid)[axis] * block[axis] == layer.plan.padded_shape[axis]
    assert scale is None or (scale.fill, scale.logical_shape) == (1, grid)
    assert ("a.weight" in plan.tensors) == (layer.plan.padded_shape != sizes)


def test_layers_that_are_alike_are_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of a hundred thousand layers has few kinds; within one only the names differ."""
    worked_out = []

    def reason_of(layer: LayerPlan, *_: object) -> str:
        worked_out.append(layer)
        return "because"

    monkeypatch.setattr(padding, "reason_of", reason_of)
    tensors = (tensor for number in range(200) for tensor in block_scaled(f"layers.{number}.mlp.down_proj", 136, 213))
    plan = plan_checkpoint([shard("m.safetensors", *tensors)], {"config.json": BLOCK_CONFIG}, Policy())
    assert [layer.name for layer in plan.layers] == [f"layers.{number}.mlp.down_proj" for number in range(200)]
    assert len(worked_out) == 1


@pytest.mark.parametrize(
    ("alignment", "of_channels", "of_blocks"),
    [
        ("auto", (144, 224), (160, 256)),
        ("marlin", (192, 256), (192, 256)),
        ("sm120", (256, 256), (256, 256)),
        ("deepgemm", (192, 256), (192, 256)),
    ],
)
def test_presets_are_what_kernels_want(
    alignment: Any, of_channels: tuple[int, int], of_blocks: tuple[int, int]
) -> None:
    """N and K have separate multiples, with whole blocks of 32 x 128 whatever the kernel needs."""
    policy = Policy(alignment=alignment)
    (layer,) = plan_checkpoint([DOWN, SCALES], {"config.json": CONFIG}, policy).layers
    assert layer.plan.padded_shape == of_channels
    header = shard("m.safetensors", *block_scaled("mlp.down_proj", 136, 213))
    (layer,) = plan_checkpoint([header], {"config.json": BLOCK_CONFIG}, policy).layers
    assert layer.plan.padded_shape == of_blocks


def test_adapters_that_no_longer_fit_are_named() -> None:
    """Those of absorbed modules, folded into one pattern; if nothing is absorbed, there is no note."""
    tensors = [
        tensor
        for layer in range(3)
        for name, sizes in (("gate_proj", (213, 136)), ("up_proj", (213, 136)), ("down_proj", (136, 213)))
        for tensor in block_scaled(f"model.layers.{layer}.mlp.{name}", *sizes)
    ]
    config = {**BLOCK_CONFIG, "intermediate_size": 213, "hidden_act": "silu"}
    header = shard("m.safetensors", *tensors)
    absorbed = plan_checkpoint([header], {"config.json": config}, Policy(absorb=True))
    names = "model.layers.*.mlp.gate_proj, model.layers.*.mlp.up_proj, model.layers.*.mlp.down_proj"
    assert f"LoRA adapters trained on the original do not fit the absorbed modules: {names}" in absorbed.notes
    assert plan_checkpoint([header], {"config.json": config}, Policy()).notes == ()


@pytest.mark.parametrize("suffix", ["", ".weight"])
def test_adapters_of_stacked_experts_are_named_too(suffix: str) -> None:
    """PEFT also adapts bare parameters; scales and biases are not modules."""
    experts = "model.layers.0.mlp.experts"
    header = shard(
        "m.safetensors",
        (f"{experts}.gate_up_proj{suffix}", "F8_E4M3", (4, 426, 64)),
        (f"{experts}.gate_up_proj{suffix}_scale", "F32", (4, 426, 1)),
        (f"{experts}.down_proj{suffix}", "F8_E4M3", (4, 64, 213)),
        (f"{experts}.down_proj{suffix}_scale", "F32", (4, 64, 1)),
    )
    config = {**CONFIG, "model_type": "qwen3_moe", "moe_intermediate_size": 213, "hidden_act": "silu"}
    plan = plan_checkpoint([header], {"config.json": config}, Policy(absorb_experts=True))
    names = "model.layers.*.mlp.experts.gate_up_proj, model.layers.*.mlp.experts.down_proj"
    assert plan.notes == (f"LoRA adapters trained on the original do not fit the absorbed modules: {names}",)


def test_an_edit_changes_one_of_two_sections_that_are_alike() -> None:
    """Parsed JSON may share one object between them."""
    section = {"intermediate_size": 100}
    config = {"text_config": section, "vision_config": section}
    edit = ConfigEdit("config.json", "text_config.intermediate_size", 100, 112)
    edited = edited_config(config, [edit], None, None)
    assert edited == {"text_config": {"intermediate_size": 112}, "vision_config": {"intermediate_size": 100}}
    assert section == {"intermediate_size": 100}


def test_every_preset_of_alignment_has_its_multiples() -> None:
    """Each name that a policy accepts is `auto` or a kernel with known multiples."""
    names = {name for name in get_args(Alignment) if isinstance(name, str)}
    assert names == {"auto", *KERNEL_MULTIPLES}
