"""The plan as a whole, compared with literal numbers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fp8pad.planning import plan_checkpoint
from fp8pad.planning.config import edited_config
from fp8pad.planning.plan import CheckpointPlan, LayerPlan, UntouchedTensor
from fp8pad.record import Axes, BaseSource, ConfigEdit, ModuleRecord, PaddedTensor, Policy
from fp8pad.tensors import ShardHeader, TensorHeader, tensor_bytes

FBGEMM = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}
CONFIG = {"model_type": "llama", "quantization_config": FBGEMM, "vocab_size": 509}


def shard(file: str, *tensors: tuple[str, str, tuple[int, ...]]) -> ShardHeader:
    """A shard's header with its tensors one behind the other."""
    headers, end = [], 0
    for name, dtype, shape in tensors:
        begin, end = end, end + tensor_bytes(dtype, shape)
        headers.append(TensorHeader(name, dtype, shape, begin, end))
    return ShardHeader(file, 1000 + end, 1000, tuple(headers), {"format": "pt"})


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
    """Weight and scale are padded, each in its own shard, and the runtime is told."""
    plan = plan_checkpoint([DOWN, SCALES], {"config.json": CONFIG}, Policy())
    reason = "N = 136 is not a multiple of 16 and K = 213 is not a multiple of 16"
    pads = Axes("pad", "pad")
    assert plan == CheckpointPlan(
        policy=Policy(),
        layers=(LayerPlan("mlp.down_proj", "channel", (136, 213), (144, 224), (16, 16), pads, reason, (136, 213)),),
        untouched=(UntouchedTensor("lm_head.weight", "BF16", (509, 136), "BF16, not FP8"),),
        tensors={
            "mlp.down_proj.weight": PaddedTensor((136, 213), (144, 224), 0, pads),
            "mlp.down_proj.weight_scale": PaddedTensor((136, 1), (144, 1), 1, Axes("pad", "aligned")),
        },
        modules={"mlp.down_proj": ModuleRecord((136, 213), (144, 224), (16, 16))},
        config_edits=(),
        base=FBGEMM,
        base_source=BaseSource("config.json", "quantization_config"),
        shards_rewritten=("1.safetensors", "2.safetensors"),
        bytes_before=136 * 213 + 136 * 2 + 136 * 2 + 509 * 136 * 2,
        bytes_after=144 * 224 + 136 * 2 + 144 * 2 + 509 * 136 * 2,
    )


def test_a_checkpoint_without_fp8_changes_nothing() -> None:
    """There is nothing to pad, to edit or to tell the runtime."""
    plan = plan_checkpoint([LM_HEAD], {"config.json": {"model_type": "llama"}}, Policy())
    assert plan.changes_nothing
    assert edited_config({"model_type": "llama"}, plan) == {"model_type": "llama"}


@pytest.mark.parametrize(("alignment", "padded"), [("auto", (144, 224)), (32, (160, 224)), (128, (256, 256))])
def test_alignment_is_the_users_to_choose(alignment: object, padded: tuple[int, int]) -> None:
    """A coarser alignment rounds both axes up to it."""
    plan = plan_checkpoint([DOWN, SCALES], {"config.json": CONFIG}, Policy(alignment=alignment))  # type: ignore[arg-type]
    assert plan.layers[0].padded_shape == padded


def test_a_layer_unaligned_on_a_rank_only_needs_the_runtime_but_no_padding() -> None:
    """10944 is a multiple of 16, an eighth of it is not: no tensor changes, the runtime is told, the reason says so."""
    header = shard(
        "m.safetensors",
        ("mlp.down_proj.weight", "F8_E4M3", (2048, 10944)),
        ("mlp.down_proj.weight_scale", "F32", (2048, 1)),
    )
    alone, eight = (
        plan_checkpoint([header], {"config.json": CONFIG}, Policy(tensor_parallel_size=size)) for size in (1, 8)
    )
    assert alone.changes_nothing
    assert (eight.tensors, eight.layers[0].axes) == ({}, Axes("aligned", "aligned"))
    assert eight.modules == {"mlp.down_proj": ModuleRecord((2048, 10944), (2048, 10944), (16, 16))}
    assert eight.layers[0].reason == (
        "N and K are multiples of 16; K = 10944 / 8 = 1368 is not a multiple of 16: the runtime pads it at load"
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
    """The MLP's inner size goes into the config, the hidden size stays to the runtime, which knows the edited shape."""
    plan = plan_checkpoint([MLP], {"config.json": MLP_CONFIG}, Policy(absorb=True))
    down, up = Axes("pad", "absorb"), Axes("absorb", "pad")
    assert plan.config_edits == (ConfigEdit("config.json", "intermediate_size", 213, 224),)
    assert {name.removeprefix("model.layers.0.mlp."): tensor for name, tensor in plan.tensors.items()} == {
        "down_proj.weight": PaddedTensor((136, 213), (144, 224), 0, down),
        "down_proj.weight_scale": PaddedTensor((136, 1), (144, 1), 1, Axes("pad", "aligned")),
        "gate_proj.weight": PaddedTensor((213, 136), (224, 144), 0, up),
        "gate_proj.weight_scale": PaddedTensor((213, 1), (224, 1), 1, Axes("absorb", "aligned")),
        "up_proj.weight": PaddedTensor((213, 136), (224, 144), 0, up),
        "up_proj.weight_scale": PaddedTensor((213, 1), (224, 1), 1, Axes("absorb", "aligned")),
    }
    assert plan.modules["model.layers.0.mlp.down_proj"] == ModuleRecord((136, 224), (144, 224), (16, 16))
    assert plan.modules["model.layers.0.mlp.up_proj"] == ModuleRecord((224, 136), (224, 144), (16, 16))
    edited = edited_config(MLP_CONFIG, plan)
    assert (edited["intermediate_size"], edited["quantization_config"]["base"]) == (224, FBGEMM)


def test_absorbing_experts_alone_leaves_dense_sizes_to_the_runtime() -> None:
    """`--absorb-experts` concerns routed experts; what sizes dense layers only is edited by `--absorb`."""
    plan = plan_checkpoint([MLP], {"config.json": MLP_CONFIG}, Policy(absorb_experts=True))
    assert (plan.config_edits, plan.layers[0].axes) == ((), Axes("pad", "pad"))


def test_what_cannot_be_absorbed_is_padded_and_says_why() -> None:
    """A family that no file knows falls back to `pad`."""
    plan = plan_checkpoint([MLP], {"config.json": MLP_CONFIG | {"model_type": "unheard_of"}}, Policy(absorb=True))
    assert plan.config_edits == ()
    assert {layer.axes for layer in plan.layers} == {Axes("pad", "pad")}
    assert plan.layers[0].reason.endswith("no file in planning/architectures knows the model type unheard_of")


def test_the_config_is_replaced_in_place() -> None:
    """Key order and foreign keys stay, the original is nested verbatim."""
    plan = plan_checkpoint([DOWN, SCALES], {"config.json": CONFIG}, Policy())
    edited = edited_config(CONFIG, plan)
    assert list(edited) == list(CONFIG)
    assert edited["quantization_config"]["quant_method"] == "fp8pad"
    assert edited["quantization_config"]["base"] == FBGEMM
    assert json.loads(json.dumps(edited))["quantization_config"]["modules"] == {
        "mlp.down_proj": {"logical_shape": [136, 213], "padded_shape": [144, 224], "alignment": [16, 16]}
    }
    assert CONFIG["quantization_config"] is FBGEMM


def test_a_config_from_modelopts_own_file_moves_to_the_top_level() -> None:
    """Old ModelOpt checkpoints get a `quantization_config`; the document that stood alone is its base."""
    configs = {"config.json": {"model_type": "llama"}, "hf_quant_config.json": {"quantization": {"quant_algo": "FP8"}}}
    header = shard("m.safetensors", ("a.weight", "F8_E4M3", (20, 20)), ("a.weight_scale", "F32", ()))
    plan = plan_checkpoint([header], configs, Policy())
    edited = edited_config(configs["config.json"], plan)
    assert list(edited) == ["model_type", "quantization_config"]
    assert edited["quantization_config"]["base"] == configs["hf_quant_config.json"]


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([16, 32, 64, 128]))
def test_padding_is_the_least_that_aligns(num_n: int, num_k: int, alignment: int) -> None:
    """Every padded size is a multiple of the alignment and less than one alignment above its logical size."""
    header = shard("m.safetensors", ("a.weight", "F8_E4M3", (num_n, num_k)), ("a.weight_scale", "F32", (num_n,)))
    plan = plan_checkpoint([header], {"config.json": CONFIG}, Policy(alignment=alignment))  # type: ignore[arg-type]
    (layer,) = plan.layers
    for logical, padded, disposition in zip(
        (num_n, num_k), layer.padded_shape, (layer.axes.n, layer.axes.k), strict=True
    ):
        assert padded % alignment == 0
        assert 0 <= padded - logical < alignment
        assert disposition == ("pad" if logical % alignment else "aligned")
    assert set(plan.tensors) <= {"a.weight", "a.weight_scale"}
    assert plan.changes_nothing == (num_n % alignment == 0 and num_k % alignment == 0)
