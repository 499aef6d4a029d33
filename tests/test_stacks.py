"""Experts stacked in one weight: recognised by their family file, in both orders of axes, planned for all TP sizes."""

from collections.abc import Mapping
from itertools import product
from math import prod
from typing import Any

import pytest

from fp8pad.padded import AxisActions
from fp8pad.planning import plan_checkpoint
from fp8pad.planning.absorb.matching import find_governed
from fp8pad.planning.families import families, sections_of
from fp8pad.planning.plan import CheckpointPlan
from fp8pad.planning.scale_layouts import granularity_of
from fp8pad.record import Policy
from fp8pad.scales import Granularity, PerBlock, PerChannel, PerTensor
from fp8pad.tensors import ShardHeader, TensorHeader

CHANNEL = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"type": "float", "num_bits": 8, "strategy": "channel"}}},
}
BLOCK = {"quant_method": "fp8", "weight_block_size": [128, 128]}
EXPERTS = Policy(absorb=True, absorb_experts=True)

# Every family with separate experts, by the first of its model types, and where its experts are.
SPLIT = {
    family.model_types[0]: (family.prefixes[0] + mlp.down.partition("{expert}")[0].replace("{layer}", "0"), mlp)
    for family in families().values()
    for mlp in family.mlp
    if mlp.experts and not mlp.stacked
}


def planned(
    config: Mapping[str, Any], tensors: Mapping[str, tuple[str, tuple[int, ...]]], policy: Policy
) -> CheckpointPlan:
    """Plan a checkpoint with these tensors."""
    headers = tuple(TensorHeader(name, dtype, shape, 0) for name, (dtype, shape) in tensors.items())
    return plan_checkpoint([ShardHeader("model.safetensors", 0, 0, headers)], {"config.json": config}, policy)


def stack(name: str, num_n: int, num_k: int, order: str, granularity: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return four FP8 matrices in one weight, and their scales."""
    grid = (-(-num_n // 128), -(-num_k // 128)) if granularity == "block" else (num_n, 1)
    shape, scale = ((4, num_n, num_k), (4, *grid)) if order == "nk" else ((4, num_k, num_n), (4, *grid[::-1]))
    return {name: ("F8_E4M3", shape), f"{name}_scale": ("F32", scale)}


@pytest.mark.parametrize("model_type", SPLIT)
def test_every_family_is_known_with_its_experts_stacked(model_type: str) -> None:
    """Gate and up in one stack, in either order: planned as [num_experts, N, K], absorbed if requested."""
    for order, granularity, num_ranks in product(("nk", "kn"), ("channel", "block"), (1, 3, 8)):
        check_stacked(model_type, order, granularity, num_ranks)


def check_stacked(model_type: str, order: str, granularity: str, num_ranks: int) -> None:
    """Check the plans of gate, up and down in two stacks, with and without absorbing."""
    folder, mlp = SPLIT[model_type]
    key, inner = str(mlp.size_key), 384
    config = {"model_type": model_type, key: inner, "quantization_config": BLOCK if granularity == "block" else CHANNEL}
    names = ["gate_up_proj", "down_proj"] if mlp.is_gated else ["up_proj", "down_proj"]
    rows = inner * (2 if mlp.is_gated else 1)
    tensors = stack(folder + names[0], rows, 256, order, granularity)
    tensors |= stack(folder + names[1], 256, inner, order, granularity)
    plain = planned(config, tensors, Policy(tensor_parallel_size=num_ranks))
    assert [(layer.plan.logical_shape, layer.plan.axes.n) for layer in plain.layers] == [
        ((4, rows, 256), "aligned"),
        ((4, 256, inner), "aligned"),
    ]
    assert not plain.tensors
    plan = planned(config, tensors, Policy(absorb=True, absorb_experts=True, tensor_parallel_size=num_ranks))
    multiple = num_ranks * (128 if granularity == "block" else 16)
    grown = -(-inner // multiple) * multiple
    assert [edit.new for edit in plan.config_edits] == ([grown] if grown != inner else [])
    assert [layer.plan.config_shape for layer in plan.layers] == [(4, rows // inner * grown, 256), (4, 256, grown)]
    first = plan.tensors[folder + names[0]].padded_shape if plan.tensors else (4, rows, 256)
    found = first if order == "nk" or not plan.tensors else (first[0], first[2], first[1])
    assert found == plan.layers[0].plan.config_shape


def test_aligned_experts_are_aligned() -> None:
    """Aligned experts are counted as such, with or without absorbing; only broken ones are left unchanged."""
    config = {"model_type": "qwen3_moe", "moe_intermediate_size": 200, "quantization_config": CHANNEL}
    folder = "model.layers.0.mlp.experts.0."
    names = (("gate_proj", 208, 64), ("up_proj", 208, 64), ("down_proj", 64, 208))
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, num_n, num_k in names:
        tensors[f"{folder}{name}.weight"] = ("F8_E4M3", (num_n, num_k))
        tensors[f"{folder}{name}.weight_scale"] = ("F32", (num_n, 1))
    config["moe_intermediate_size"] = 208
    for policy in (Policy(), EXPERTS):
        plan = planned(config, tensors, policy)
        assert {layer.plan.reason for layer in plan.layers} == {"N and K are multiples of 16"}
        assert {layer.plan.axes for layer in plan.layers} == {AxisActions("aligned", "aligned")}
    assert not planned(config, tensors, Policy(tensor_parallel_size=2)).modules


def test_gate_and_up_apart() -> None:
    """Step's `moe.gate_proj` is such a stack; here, with the names of Qwen3-MoE, all three grow."""
    folder = "model.layers.0.mlp.experts."
    tensors = {
        **stack(folder + "gate_proj", 200, 64, "nk", "channel"),
        **stack(folder + "up_proj", 200, 64, "nk", "channel"),
        **stack(folder + "down_proj", 64, 200, "nk", "channel"),
    }
    config = {"model_type": "qwen3_moe", "moe_intermediate_size": 200, "quantization_config": CHANNEL}
    plan = planned(config, tensors, EXPERTS)
    assert [layer.plan.config_shape for layer in plan.layers] == [(4, 208, 64), (4, 208, 64), (4, 64, 208)]


def test_a_size_that_both_orders_could_have() -> None:
    """If N equals K, only the config, or gate and up in one weight, reveal the order: here they do."""
    config = {"model_type": "qwen3_moe", "moe_intermediate_size": 200, "quantization_config": CHANNEL}
    folder = "model.layers.0.mlp.experts."
    for order in ("nk", "kn"):
        tensors = stack(folder + "gate_up_proj", 400, 200, order, "channel")
        tensors |= stack(folder + "down_proj", 200, 200, order, "channel")
        headers = {name: TensorHeader(name, dtype, shape, 0) for name, (dtype, shape) in tensors.items()}
        modules = find_governed(sections_of(config), headers).modules.values()
        assert {axis.order for axis in modules if axis.mlp.experts} == {order}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model_type": "blob"}, "no file in planning/families describes the model type blob"),
        ({"model_type": "llama"}, "no file in planning/families describes these experts"),
        ({"moe_intermediate_size": [200, 208]}, "moe_intermediate_size is not absorbed: its value is a list"),
        ({"hidden_act": "expcos"}, "moe_intermediate_size is not absorbed: the activation 'expcos' is not known"),
    ],
)
def test_experts_that_are_left_have_a_reason(change: dict[str, Any], reason: str) -> None:
    """With --absorb-experts, each routed expert that is left unchanged has a reason, stacked or not."""
    config = {"model_type": "qwen3_moe", "moe_intermediate_size": 200, "quantization_config": CHANNEL} | change
    folder = "model.layers.0.mlp.experts."
    split = {
        f"{folder}0.{name}{leaf}": (dtype, shape)
        for name, num_n, num_k in (("gate_proj", 200, 64), ("up_proj", 200, 64), ("down_proj", 64, 200))
        for leaf, dtype, shape in ((".weight", "F8_E4M3", (num_n, num_k)), (".weight_scale", "F32", (num_n, 1)))
    }
    stacked = stack(folder + "gate_up_proj", 400, 64, "nk", "channel") | stack(
        folder + "down_proj", 64, 200, "nk", "channel"
    )
    for tensors in (split, stacked):
        for layer in planned(config, tensors, EXPERTS).layers:
            assert reason in layer.plan.reason, layer.name


def test_a_stack_flattened_to_two_dimensions_is_no_linear() -> None:
    """A [num_experts x N, K] weight that the family calls experts is left unchanged, not padded as one matrix."""
    moe = "model.layers.0.block_sparse_moe."
    tensors = {
        f"{moe}input_linear.weight": ("F8_E4M3", (1600, 128)),
        f"{moe}input_linear.weight_scale": ("F32", (1600, 1)),
        f"{moe}output_linear.weight": ("F8_E4M3", (512, 200)),
        f"{moe}output_linear.weight_scale": ("F32", (512, 1)),
    }
    config = {"model_type": "granitemoe", "intermediate_size": 200, "quantization_config": CHANNEL}
    plan = planned(config, tensors, EXPERTS)
    assert not plan.tensors
    assert [layer.plan.axes.k for layer in plan.layers] == ["skip", "skip"]
    assert all("[1600, 128], a layout that fp8pad does not pad" in layer.plan.reason for layer in plan.layers)
    assert not any(layer.plan.is_understood for layer in plan.layers)


@pytest.mark.parametrize(
    ("scale_shape", "order", "granularity"),
    [
        ((), "nk", PerTensor()),
        ((4,), "nk", PerTensor()),
        ((4, 1, 1), "kn", PerTensor()),
        ((4, 300), "nk", PerChannel()),
        ((4, 300, 1), "nk", PerChannel()),
        ((4, 1, 300), "kn", PerChannel()),
        ((4, 3, 2), "nk", PerBlock(128, 128)),
        ((4, 2, 3), "kn", PerBlock(128, 128)),
        ((4, 2, 3), "nk", None),
        ((4, 200), "nk", None),
        ((2,), "nk", None),
    ],
)
def test_scales_of_stacks(scale_shape: tuple[int, ...], order: Any, granularity: Granularity | None) -> None:
    """A stack of four matrices [300, 200], with one scale, one per matrix, one per channel, or one per block."""
    shape = (4, 300, 200) if order == "nk" else (4, 200, 300)
    assert prod(shape) == 4 * 300 * 200
    kinds = (PerTensor(), PerChannel(), PerBlock(128, 128))
    assert granularity_of(shape, scale_shape, kinds, order) == granularity
