"""Absorbing as a pure function: what grows, what is refused and why, what is an error, and that outputs stay equal."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from helpers import gated, linear

from fp8pad.errors import ConfigError, PlanError
from fp8pad.padded import AxisActions, PaddedTensor, Segments
from fp8pad.planning.absorb.absorption import Absorption, absorb, merged
from fp8pad.planning.absorb.matching import find_governed
from fp8pad.planning.families import index_families, sections_of
from fp8pad.planning.layers import recognise
from fp8pad.planning.left_alone import left_alone
from fp8pad.planning.quantization import find_quantization
from fp8pad.record import ConfigEdit, Policy
from fp8pad.tensors import TensorHeader

CHANNEL = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"type": "float", "num_bits": 8, "strategy": "channel"}}},
}
BLOCK = {"quant_method": "fp8", "weight_block_size": [128, 128]}
TENSOR = {"quant_method": "fp8"}

ABSORB = Policy(absorb=True)
EXPERTS = Policy(absorb=True, absorb_experts=True)

Tensors = dict[str, tuple[str, tuple[int, ...]]]


def channel(module: str, num_n: int, num_k: int, *, bias: bool = False) -> Tensors:
    """Return an FP8 Linear with a scale per channel."""
    return linear(module, num_n, num_k) | ({f"{module}.bias": ("BF16", (num_n,))} if bias else {})


def block(module: str, num_n: int, num_k: int) -> Tensors:
    """Return an FP8 Linear with a scale per block of 128 x 128."""
    grid = (-(-num_n // 128), -(-num_k // 128))
    return {f"{module}.weight": ("F8_E4M3", (num_n, num_k)), f"{module}.weight_scale_inv": ("F32", grid)}


def plan_layer(config: Mapping[str, Any], tensors: Tensors, policy: Policy = ABSORB) -> Absorption:
    """Absorb as the planner does, from headers and config alone."""
    headers = {name: TensorHeader(name, dtype, shape, 0) for name, (dtype, shape) in tensors.items()}
    quantization = find_quantization({"config.json": config})
    sections = sections_of(config)
    governed = find_governed(sections, headers)
    recognised, _ = recognise(headers, quantization, config, governed.modules)
    linears = tuple(left_alone(recognised, (), quantization, ()))
    absorption = absorb(governed, sections, linears, policy)
    # Notes about LoRA adapters have a test of their own.
    return replace(absorption, notes=tuple(note for note in absorption.notes if not note.startswith("LoRA")))


def llama(quantization: Mapping[str, Any] = CHANNEL, **sizes: Any) -> dict[str, Any]:
    """Return a Llama config with an inner size of 213 by default."""
    return {"model_type": "llama", "intermediate_size": 213, "quantization_config": quantization, **sizes}


MLP = "model.layers.0.mlp"


def test_every_tensor_of_the_key_grows() -> None:
    """FP8, scales, biases and unquantized layers grow together, to the next multiple of 16."""
    tensors = gated(MLP, 213, 136) | {
        f"{MLP}.gate_proj.bias": ("BF16", (213,)),
        f"{MLP}.down_proj.bias": ("BF16", (136,)),
        "model.layers.1.mlp.gate_proj.weight": ("BF16", (213, 136)),
        "model.layers.1.mlp.up_proj.weight": ("BF16", (213, 136)),
        "model.layers.1.mlp.down_proj.weight": ("BF16", (136, 213)),
        "model.layers.0.self_attn.o_proj.weight": ("BF16", (136, 213)),
    }
    found = plan_layer(llama(), tensors)
    rows, columns = AxisActions("absorb", "aligned"), AxisActions("aligned", "absorb")
    assert found.tensors == {
        f"{MLP}.gate_proj.weight": PaddedTensor((213, 136), (224, 136), 0, rows),
        f"{MLP}.gate_proj.weight_scale": PaddedTensor((213, 1), (224, 1), 1, rows),
        f"{MLP}.gate_proj.bias": PaddedTensor((213,), (224,), 0, rows),
        f"{MLP}.up_proj.weight": PaddedTensor((213, 136), (224, 136), 0, rows),
        f"{MLP}.up_proj.weight_scale": PaddedTensor((213, 1), (224, 1), 1, rows),
        f"{MLP}.down_proj.weight": PaddedTensor((136, 213), (136, 224), 0, columns),
        "model.layers.1.mlp.gate_proj.weight": PaddedTensor((213, 136), (224, 136), 0, rows),
        "model.layers.1.mlp.up_proj.weight": PaddedTensor((213, 136), (224, 136), 0, rows),
        "model.layers.1.mlp.down_proj.weight": PaddedTensor((136, 213), (136, 224), 0, columns),
    }
    assert found.edits == (ConfigEdit("config.json", "intermediate_size", 213, 224),)
    assert (found.refused, found.unabsorbed) == ({}, {})
    assert found.notes[-1] == (
        "intermediate_size also sizes 3 weights that are not FP8, such as model.layers.1.mlp.gate_proj.weight: a "
        "GPU may sum their products in another order, which can change the last digits of an output"
    )


def test_nothing_is_absorbed_unasked() -> None:
    """Without --absorb, the layers of the same checkpoint are only padded."""
    found = plan_layer(llama(), gated(MLP, 213, 136), Policy())
    assert (found.tensors, found.edits, found.refused, found.unabsorbed, found.notes) == ({}, (), {}, {}, ())


@pytest.mark.parametrize(
    ("old", "quantization", "policy", "new"),
    [
        (3420, CHANNEL, ABSORB, 3424),
        (3420, CHANNEL, replace(ABSORB, tensor_parallel_size=8), 3456),
        (10944, CHANNEL, replace(ABSORB, tensor_parallel_size=8), 11008),
        (10944, CHANNEL, replace(ABSORB, alignment=128, tensor_parallel_size=8), 11264),
        (10944, BLOCK, replace(ABSORB, tensor_parallel_size=8), 11264),
        (29568, BLOCK, replace(ABSORB, tensor_parallel_size=2), 29696),
        (29568, BLOCK, replace(ABSORB, tensor_parallel_size=8), 29696),
        (1536, BLOCK, replace(ABSORB, tensor_parallel_size=8), 2048),
        (13653, CHANNEL, replace(ABSORB, tensor_parallel_size=2), 13664),
        (13653, TENSOR, replace(ABSORB, alignment=64), 13696),
        (9728, BLOCK, ABSORB, 9728),
    ],
)
def test_how_far(old: int, quantization: Mapping[str, Any], policy: Policy, new: int) -> None:
    """The multiple is the alignment, or the block, times the tensor-parallel size."""
    make = {id(CHANNEL): channel, id(BLOCK): block, id(TENSOR): tensor_scaled}[id(quantization)]
    found = plan_layer(llama(quantization, intermediate_size=old), gated(MLP, old, 256, make), policy)
    assert [edit.new for edit in found.edits] == ([] if new == old else [new])
    assert bool(found.tensors) == (new != old)


def tensor_scaled(module: str, num_n: int, num_k: int) -> Tensors:
    """Return an FP8 Linear with one scale, and one for its input."""
    return {
        f"{module}.weight": ("F8_E4M3", (num_n, num_k)),
        f"{module}.weight_scale": ("F32", ()),
        f"{module}.input_scale": ("F32", ()),
    }


def test_scales_of_whole_tensors_stay() -> None:
    """Weight and input scales with one element do not change."""
    found = plan_layer(llama(TENSOR), gated(MLP, 213, 136, tensor_scaled))
    assert sorted(found.tensors) == [f"{MLP}.{part}_proj.weight" for part in ("down", "gate", "up")]


def test_blocks_grow_by_whole_blocks_of_ones() -> None:
    """29568 is 231 blocks; 29696 is 232, so each grid gets one row, or one column."""
    found = plan_layer(
        llama(BLOCK, intermediate_size=29568), gated(MLP, 29568, 256, block), replace(ABSORB, tensor_parallel_size=8)
    )
    assert found.tensors[f"{MLP}.up_proj.weight_scale_inv"] == PaddedTensor(
        (231, 2), (232, 2), 1, AxisActions("absorb", "aligned")
    )
    assert found.tensors[f"{MLP}.down_proj.weight_scale_inv"] == PaddedTensor(
        (2, 231), (2, 232), 1, AxisActions("aligned", "absorb")
    )


def test_a_partial_block_has_room() -> None:
    """213 and 256 rows are both two blocks: the weights grow, the grids do not."""
    found = plan_layer(llama(BLOCK), gated(MLP, 213, 136, block))
    assert sorted(found.tensors) == [f"{MLP}.{part}_proj.weight" for part in ("down", "gate", "up")]


def test_grids_of_four_sizes() -> None:
    """ModelOpt's 4-D grids [R, 1, C, 1] grow in R for gate and up and in C for down."""
    config = llama({"quant_method": "modelopt", "quant_algo": "FP8_PB_WO"}, intermediate_size=384)
    tensors = gated(MLP, 384, 256, block)
    tensors = {
        name.replace("_inv", ""): (dtype, (shape[0], 1, shape[1], 1) if "scale" in name else shape)
        for name, (dtype, shape) in tensors.items()
    }
    found = plan_layer(config, tensors, replace(ABSORB, tensor_parallel_size=2))
    assert found.tensors[f"{MLP}.up_proj.weight_scale"].padded_shape == (4, 1, 2, 1)
    assert found.tensors[f"{MLP}.down_proj.weight_scale"].padded_shape == (2, 1, 4, 1)


def test_fused_gate_and_up_are_padded_each_at_its_tail() -> None:
    """Phi-3 stores 2 x 213 rows in one tensor: two segments, in the weight and in its scale."""
    config = {"model_type": "phi3", "intermediate_size": 213, "quantization_config": CHANNEL}
    found = plan_layer(config, channel(f"{MLP}.gate_up_proj", 426, 160) | channel(f"{MLP}.down_proj", 160, 213))
    segments = Segments((213, 213), (224, 224))
    rows = AxisActions("absorb", "aligned")
    assert found.tensors[f"{MLP}.gate_up_proj.weight"] == PaddedTensor((426, 160), (448, 160), 0, rows, segments)
    assert found.tensors[f"{MLP}.gate_up_proj.weight_scale"] == PaddedTensor((426, 1), (448, 1), 1, rows, segments)


def test_a_block_that_straddles_gate_and_up_stops_the_key() -> None:
    """With 2 x 213 rows in one tensor, the second block of 128 holds rows of both; 2 x 256 rows would do."""
    config = {"model_type": "phi3", "intermediate_size": 213, "quantization_config": BLOCK}
    refused = plan_layer(config, block(f"{MLP}.gate_up_proj", 426, 128) | block(f"{MLP}.down_proj", 128, 213))
    assert refused.tensors == {}
    assert refused.notes == (
        (
            f"intermediate_size is not absorbed: a block of 128 rows straddles gate and up in {MLP}.gate_up_proj:"
            " 213 is not a multiple of 128"
        ),
    )
    config["intermediate_size"] = 384
    found = plan_layer(
        config,
        block(f"{MLP}.gate_up_proj", 768, 128) | block(f"{MLP}.down_proj", 128, 384),
        replace(ABSORB, tensor_parallel_size=2),
    )
    assert found.tensors[f"{MLP}.gate_up_proj.weight_scale_inv"].segments == Segments((3, 3), (4, 4))


MOE = "model.layers.1.mlp"


def deepseek(shared: int = 2, **sizes: Any) -> dict[str, Any]:
    """Return a DeepSeek config: a dense layer of 213, experts of 74, shared experts of `shared` x 74."""
    return {
        "model_type": "deepseek_v3", "intermediate_size": 213, "moe_intermediate_size": 74, "n_shared_experts": shared,
        "num_experts_per_tok": 1, "quantization_config": CHANNEL, **sizes,
    }  # fmt: skip


def deepseek_tensors(shared: int = 2) -> Tensors:
    """Return a dense layer, and one with two routed experts and the shared experts."""
    return {
        **gated(MLP, 213, 128),
        **gated(f"{MOE}.shared_experts", 74 * shared, 128),
        **gated(f"{MOE}.experts.0", 74, 128),
        **gated(f"{MOE}.experts.1", 74, 128),
        f"{MOE}.gate.weight": ("BF16", (74, 128)),
    }


def test_shared_experts_are_not_absorbed_without_the_routed_ones() -> None:
    """One key sizes both, so it waits for --absorb-experts; the dense layer's key does not."""
    found = plan_layer(deepseek(), deepseek_tensors())
    reason = "it sizes the routed experts too, which are absorbed only with --absorb-experts"
    assert [edit.key for edit in found.edits] == ["intermediate_size"]
    assert found.refused[f"{MOE}.shared_experts.up_proj"] == f"moe_intermediate_size is not absorbed: {reason}"


def test_one_key_with_a_multiplier() -> None:
    """With --absorb-experts 74 becomes 80, and the shared experts 160; the router with 74 rows does not change."""
    found = plan_layer(deepseek(), deepseek_tensors(), EXPERTS)
    assert ConfigEdit("config.json", "moe_intermediate_size", 74, 80) in found.edits
    assert found.tensors[f"{MOE}.shared_experts.gate_proj.weight"].padded_shape == (160, 128)
    assert found.tensors[f"{MOE}.experts.1.down_proj.weight"].padded_shape == (128, 80)
    assert f"{MOE}.gate.weight" not in found.tensors


@pytest.mark.parametrize("shared", [None, 0, "two"])
def test_a_multiplier_that_is_not_a_number_stops_the_key(shared: object) -> None:
    """Without a usable n_shared_experts the size of the shared experts is unknown."""
    config = deepseek() | {"n_shared_experts": shared}
    found = plan_layer(config, deepseek_tensors(), EXPERTS)
    assert [edit.key for edit in found.edits] == ["intermediate_size"]
    assert f"n_shared_experts is not a number: {shared!r}" in found.notes[-1]


@pytest.mark.parametrize(
    ("model_type", "layout", "segments"),
    [
        ("granitemoe", ((4, 426, 64), (4, 64, 213)), Segments((213, 213), (224, 224))),
        ("qwen3_vl_moe_text", ((4, 64, 426), (4, 213, 64)), Segments((213, 213), (224, 224), axis=-1)),
    ],
)
def test_stacked_experts(model_type: str, layout: tuple[tuple[int, ...], ...], segments: Segments) -> None:
    """Experts in one 3-D tensor grow along the middle or last axis, depending on the layout, with their scales."""
    names = {
        "granitemoe": ("model.layers.0.block_sparse_moe.input_linear", "model.layers.0.block_sparse_moe.output_linear"),
        "qwen3_vl_moe_text": ("model.layers.0.mlp.experts.gate_up_proj", "model.layers.0.mlp.experts.down_proj"),
    }[model_type]
    key = "intermediate_size" if model_type == "granitemoe" else "moe_intermediate_size"
    suffix = ".weight" if model_type == "granitemoe" else ""
    attention = "model.layers.0.self_attn.q_proj"
    tensors = {f"{name}{suffix}": ("BF16", shape) for name, shape in zip(names, layout, strict=True)}
    if model_type != "granitemoe":
        first, second = layout
        tensors = {
            names[0]: ("F8_E4M3", first),
            f"{names[0]}_scale": ("F32", (4, 1, first[2])),
            names[1]: ("F8_E4M3", second),
            f"{names[1]}_scale": ("F32", (4, 1, second[2])),
        }
    config = {"model_type": model_type, key: 213, "quantization_config": CHANNEL}
    found = plan_layer(config, tensors | channel(attention, 64, 64), EXPERTS)
    if model_type == "granitemoe":
        assert found == Absorption()  # no FP8 weight needs it
        return
    assert found.tensors[names[0]].padded_shape == (4, 64, 448)
    assert found.tensors[names[0]].segments == segments
    assert found.tensors[names[0]].axes == AxisActions("aligned", "absorb")
    assert found.tensors[names[1]].padded_shape == (4, 224, 64)
    assert found.tensors[names[1]].axes == AxisActions("absorb", "aligned")
    assert found.tensors[f"{names[0]}_scale"].padded_shape == (4, 1, 448)
    assert f"{names[1]}_scale" not in found.tensors


@pytest.mark.parametrize("is_transposed", [False, True])
def test_stacked_experts_with_block_scales(is_transposed: bool) -> None:
    """Grids per expert grow by whole blocks, in either layout of the stack: 3 blocks of gate and of up become 4."""
    experts = "model.layers.0.mlp.experts"
    shapes: list[tuple[int, ...]] = [(4, 768, 256), (4, 6, 2), (4, 256, 384), (4, 2, 3)]
    grown: list[tuple[int, ...]] = [(4, 1024, 256), (4, 8, 2), (4, 256, 512), (4, 2, 4)]
    if is_transposed:
        shapes = [(shape[0], shape[2], shape[1]) for shape in shapes]
        grown = [(shape[0], shape[2], shape[1]) for shape in grown]
    names = [f"{experts}.{part}_proj{scale}" for part in ("gate_up", "down") for scale in ("", "_scale_inv")]
    dtypes = ["F8_E4M3", "F32"] * 2
    config = {"model_type": "qwen3_vl_moe_text", "moe_intermediate_size": 384, "quantization_config": BLOCK}
    tensors = dict(zip(names, zip(dtypes, shapes, strict=True), strict=True))
    found = plan_layer(config, tensors, replace(EXPERTS, tensor_parallel_size=2))
    assert {name: tensor.padded_shape for name, tensor in found.tensors.items()} == dict(zip(names, grown, strict=True))
    axis = -1 if is_transposed else None
    assert found.tensors[names[0]].segments == Segments((384, 384), (512, 512), axis)
    assert found.tensors[names[1]].segments == Segments((3, 3), (4, 4), axis)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"intermediate_size": [213, 212]}, "its value is a list, not of one size for each layer"),
        ({"intermediate_size": []}, "its value is a list, not of one size for each layer"),
        ({"intermediate_size": [213] * 5000}, "its value is a list, not of one size for each layer"),
        ({"intermediate_size": "213"}, "its value is not a size: '213'"),
        ({"intermediate_size": True}, "its value is not a size: True"),
        ({"hidden_act": "expcos"}, "the activation 'expcos' is not known to be finite at 0"),
    ],
)
def test_a_key_that_cannot_be_edited(change: dict[str, Any], reason: str) -> None:
    """A list, a value that is not a size, and an unknown activation each stop the key with their reason."""
    found = plan_layer(llama(**change), gated(MLP, 213, 136))
    assert (found.tensors, found.edits) == ({}, ())
    assert found.notes == (f"intermediate_size is not absorbed: {reason}",)
    assert (found.refused[f"{MLP}.down_proj"], found.unabsorbed) == (found.notes[0], {})


@pytest.mark.parametrize("change", [{}, {"intermediate_size": None}])
def test_a_size_that_is_left_to_a_default(change: dict[str, Any]) -> None:
    """A key that is absent or null is set to the size of the tensors, rounded up, and the plan says so."""
    config = {key: value for key, value in llama().items() if key != "intermediate_size"} | change
    found = plan_layer(config, gated(MLP, 213, 136))
    assert found.edits == (ConfigEdit("config.json", "intermediate_size", 213, 224),)
    assert found.notes[0] == "intermediate_size is not in config.json, so that it has its default, 213; it is added"


def test_a_default_that_the_tensors_do_not_agree_on() -> None:
    """Two layers of different sizes cannot both have the default."""
    config = {"model_type": "llama", "quantization_config": CHANNEL}
    found = plan_layer(config, gated(MLP, 213, 136) | gated("model.layers.1.mlp", 100, 136))
    assert found.notes == (
        "intermediate_size is not absorbed: the config does not have the key, and the tensors have more than one size",
    )


def test_a_multiplier_that_is_left_to_a_default() -> None:
    """Without n_shared_experts, the sizes of the tensors show that there are two shared experts."""
    config = {key: value for key, value in deepseek().items() if key != "n_shared_experts"}
    found = plan_layer(config, deepseek_tensors(), EXPERTS)
    assert found.tensors[f"{MOE}.shared_experts.gate_proj.weight"].padded_shape == (160, 128)


@pytest.mark.parametrize("sizes", [{}, {"shared_size": None}, {"shared_size": 150}])
def test_a_key_that_stands_in_for_another(sizes: dict[str, Any]) -> None:
    """If the config has no value for the first key, the second is the size of the shared expert too."""
    config = {"model_type": "toy", "inner": 74, "quantization_config": CHANNEL, **sizes}
    shared = sizes.get("shared_size") or 74
    sections = sections_of(config, index_families({"toy.toml": STAND_IN}))
    tensors = channel("layers.0.up", 74, 64) | channel("layers.0.down", 64, 74)
    tensors |= channel("layers.0.shared.up", shared, 64) | channel("layers.0.shared.down", 64, shared)
    headers = {name: TensorHeader(name, dtype, shape, 0) for name, (dtype, shape) in tensors.items()}
    found = {size.key: {governed.module for governed in size.axes} for size in find_governed(sections, headers).sizes}
    one, other = {"layers.0.up", "layers.0.down"}, {"layers.0.shared.up", "layers.0.shared.down"}
    assert found == ({"inner": one, "shared_size": other} if shared == 150 else {"inner": one | other})


STAND_IN = """
model_types = ["toy"]
[[mlp]]
size_key = "inner"
up = "layers.{layer}.up"
down = "layers.{layer}.down"
activation = "relu"
[[mlp]]
size_key = "shared_size"
other_keys = ["inner"]
up = "layers.{layer}.shared.up"
down = "layers.{layer}.shared.down"
activation = "relu"
"""


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (
            {f"{MLP}.inner_norm.weight": ("BF16", (213,))},
            f"{MLP}.inner_norm.weight [213] also has that size, but is not described by the family file",
        ),
        (
            {"mtp.layers.0.mlp.up_proj.weight": ("BF16", (213, 136))},
            "mtp.layers.0.mlp.up_proj.weight [213, 136] also has that size, but is not described by the family file",
        ),
        (
            {f"{MLP}.up_proj.lora_B.default.weight": ("BF16", (213, 8))},
            f"{MLP}.up_proj.lora_B.default.weight belongs to a LoRA adapter, which is not merged",
        ),
        (
            {f"{MLP}.down_proj.pre_quant_scale": ("BF16", (213,))},
            f"{MLP}.down_proj.pre_quant_scale [213] is not a tensor that fp8pad knows how to pad",
        ),
        (
            {f"{MLP}.up_proj.weight_zero_point": ("F8_E4M3", (1,))},
            f"{MLP}.up_proj.weight_zero_point is a zero point: zeros that are added would not count as 0",
        ),
        (
            {"model.layers.1.mlp.gate_proj.weight": ("BF16", (213, 136))},
            "model.layers.1.mlp has no up weight: it may be tied to another",
        ),
        (
            {
                "model.layers.1.mlp.gate_proj.weight": ("I8", (213, 136)),
                "model.layers.1.mlp.up_proj.weight": ("I8", (213, 136)),
                "model.layers.1.mlp.down_proj.weight": ("I8", (136, 213)),
            },
            "model.layers.1.mlp.gate_proj.weight is I8 [213, 136], a layout that fp8pad does not pad",
        ),
        (
            {
                "model.layers.1.mlp.gate_proj.weight_packed": ("U8", (213, 68)),
                "model.layers.1.mlp.up_proj.weight_packed": ("U8", (213, 68)),
                "model.layers.1.mlp.down_proj.weight_packed": ("U8", (136, 107)),
            },
            "model.layers.1.mlp.gate_proj.weight_packed has no weight: a layout that fp8pad does not pad",
        ),
    ],
)
def test_all_or_nothing(tensors: Tensors, reason: str) -> None:
    """One tensor that cannot grow, or that no family file describes, stops the whole key."""
    found = plan_layer(llama(), gated(MLP, 213, 136) | tensors)
    assert (found.tensors, found.edits) == ({}, ())
    assert found.notes == (f"intermediate_size is not absorbed: {reason}",)


def test_a_zero_point_of_inputs_does_not_stop_absorbing() -> None:
    """Added weights are 0, whatever the zero point of what they multiply."""
    found = plan_layer(llama(), gated(MLP, 213, 136) | {f"{MLP}.down_proj.input_zero_point": ("F8_E4M3", (1,))})
    assert f"{MLP}.down_proj.weight" in found.tensors


def test_nothing_grows_in_a_model_that_rotates_activations() -> None:
    """A shared rotation is stored once, with another layer of its size, so no tensor of the MLP may show it."""
    rotation = {"apply": [{"location": "input", "targets": ["re:.*down_proj$"]}]}
    config = llama(CHANNEL | {"transform_config": {"config_groups": {"R4": rotation}}})
    found = plan_layer(config, gated(MLP, 213, 136))
    assert (found.tensors, found.notes) == (
        {},
        ("intermediate_size is not absorbed: rotations in the model may have its size",),
    )


def test_scales_that_cannot_hold_one_stop_the_key() -> None:
    """64-bit scales are not filled."""
    tensors = {
        name: ("F64" if "scale" in name else dtype, shape)
        for name, (dtype, shape) in gated(MLP, 213, 136, block).items()
    }
    found = plan_layer(llama(BLOCK), tensors)
    assert found.tensors == {}
    assert "is not understood: scales of dtype F64" in found.notes[0]


def test_a_size_by_chance_elsewhere_is_no_obstacle() -> None:
    """Attention does not count as governed because its hidden size equals the inner size."""
    tensors = gated(MLP, 213, 213) | channel("model.layers.0.self_attn.o_proj", 213, 213)
    assert plan_layer(llama(), tensors).edits


@pytest.mark.parametrize("policy", [ABSORB, EXPERTS])
def test_an_unknown_model_type_is_not_guessed(policy: Policy) -> None:
    """Names like Llama's are not enough without a family file."""
    found = plan_layer(llama() | {"model_type": "blob"}, gated(MLP, 213, 136), policy)
    assert found.tensors == {}
    assert found.refused[f"{MLP}.up_proj"] == "no file in planning/families describes the model type blob"


def test_modules_that_a_family_rules_out() -> None:
    """Qwen2-VL's vision MLP has no size key of its own, and the plan says so."""
    config = {
        "model_type": "qwen2_vl", "text_config": {}, "vision_config": {"mlp_ratio": 4}, "quantization_config": CHANNEL
    }  # fmt: skip
    module = "visual.blocks.0.mlp.fc1"
    assert plan_layer(config, channel(module, 340, 85)).refused[module].startswith("its inner size is embed_dim")


def test_a_size_that_two_sections_repeat() -> None:
    """If text_config and the top level both have the size, both are edited; if they differ, neither is."""
    text = {"model_type": "qwen2_5_vl_text", "intermediate_size": 213}
    config = {"model_type": "qwen2_5_vl", "intermediate_size": 213, "text_config": text, "quantization_config": CHANNEL}
    assert plan_layer(config, gated(MLP, 213, 136)).edits == (
        ConfigEdit("config.json", "text_config.intermediate_size", 213, 224),
        ConfigEdit("config.json", "intermediate_size", 213, 224),
    )
    config["intermediate_size"] = 300
    assert plan_layer(config, gated(MLP, 213, 136)).notes == (
        "text_config.intermediate_size is not absorbed: config.json has another value for it, 300",
    )


def test_a_config_that_disagrees_with_the_tensors() -> None:
    """An integer that is not the tensors' size is an error that names the key, the tensor and both sizes."""
    with pytest.raises(ConfigError) as error:
        plan_layer(llama(intermediate_size=212), gated(MLP, 213, 136))
    assert str(error.value) == (
        f"config.json: intermediate_size asks for 212 rows of {MLP}.gate_proj.weight, got [213, 136]"
    )

    plain = plan_layer(llama(intermediate_size=212), gated(MLP, 213, 136), Policy())
    assert plain.notes == (f"{error.value}; both are left unchanged",)


@pytest.mark.parametrize("policy", [Policy(absorb=True, absorb_experts=True), Policy()])
def test_a_bias_of_another_length(policy: Policy) -> None:
    """A bias that does not fit its weight is an error, whether the weight is absorbed or not."""
    with pytest.raises(PlanError, match=r"gate_proj\.bias: expected 213 at index 0, got \[212\]"):
        plan_layer(llama(), gated(MLP, 213, 136) | {f"{MLP}.gate_proj.bias": ("BF16", (212,))}, policy)


@pytest.mark.parametrize("policy", [Policy(absorb=True, absorb_experts=True), Policy()])
def test_a_bias_of_another_length_in_a_stack(policy: Policy) -> None:
    """A bias that does not fit its weight is an error in a stack of experts too."""
    experts = "model.layers.0.mlp.experts"
    tensors = {
        f"{experts}.gate_up_proj": ("F8_E4M3", (4, 64, 426)),
        f"{experts}.gate_up_proj_scale": ("F32", (4, 1, 426)),
        f"{experts}.gate_up_proj_bias": ("BF16", (4, 425)),
        f"{experts}.down_proj": ("F8_E4M3", (4, 213, 64)),
        f"{experts}.down_proj_scale": ("F32", (4, 1, 64)),
    }
    config = {"model_type": "qwen3_vl_moe_text", "moe_intermediate_size": 213, "quantization_config": CHANNEL}
    with pytest.raises(PlanError, match=r"gate_up_proj_bias: expected 426 at index 1, got \[4, 425\]"):
        plan_layer(config, tensors, policy)


TWO_KEYS = """
model_types = ["toy"]
[[mlp]]
size_key = "a"
up = "layers.{layer}.one"
down = "layers.{layer}.down"
activation = "relu"
[[mlp]]
size_key = "b"
up = "layers.{layer}.two"
down = "layers.{layer}.down"
activation = "relu"
"""


def test_two_keys_that_govern_one_axis() -> None:
    """A family file that lets two keys govern one axis is an error that names both."""
    sections = sections_of({"model_type": "toy"}, index_families({"toy.toml": TWO_KEYS}))
    tensors = {"layers.0.down.weight": TensorHeader("layers.0.down.weight", "F8_E4M3", (32, 213), 0)}
    with pytest.raises(PlanError, match=r"^layers\.0\.down\.weight: both a and b govern its axis K$"):
        find_governed(sections, tensors)


def test_mixed_schemes_share_one_multiple() -> None:
    """A per-channel and a per-block layer under one key use a multiple that fits both."""
    quantization = {
        "quant_method": "compressed-tensors",
        "config_groups": {
            "a": {"weights": {"type": "float", "num_bits": 8, "strategy": "channel"}},
            "b": {"weights": {"type": "float", "num_bits": 8, "strategy": "block", "block_structure": [128, 128]}},
        },
    }
    tensors = gated(MLP, 200, 256) | gated("model.layers.1.mlp", 200, 256, block)
    (edit,) = plan_layer(llama(quantization, intermediate_size=200), tensors).edits
    assert edit.new == 256


def test_one_axis_absorbed_the_other_padded() -> None:
    """Two growths of one tensor along different axes are merged into one."""
    absorbed = PaddedTensor((136, 213), (136, 224), 0, AxisActions("aligned", "absorb"))
    padded = PaddedTensor((136, 213), (144, 213), 0, AxisActions("pad", "aligned"))
    both = PaddedTensor((136, 213), (144, 224), 0, AxisActions("pad", "absorb"))
    assert merged(absorbed, padded) == merged(padded, absorbed) == both


def hunyuan(**sizes: Any) -> dict[str, Any]:
    """Return a Hunyuan 3 config, which has two keys for the size of an expert."""
    return {"model_type": "hy_v3", "moe_intermediate_size": 74, "expert_hidden_dim": 74, "num_shared_experts": 1} | {
        "quantization_config": CHANNEL, **sizes
    }  # fmt: skip


def test_a_size_that_another_key_repeats() -> None:
    """Both keys are edited; if they differ, nothing is absorbed."""
    tensors = gated(f"{MOE}.experts.0", 74, 64) | gated(f"{MOE}.shared_mlp", 74, 64)
    assert plan_layer(hunyuan(), tensors, EXPERTS).edits == (
        ConfigEdit("config.json", "moe_intermediate_size", 74, 80),
        ConfigEdit("config.json", "expert_hidden_dim", 74, 80),
    )
    found = plan_layer(hunyuan(expert_hidden_dim=90), tensors, EXPERTS)
    assert found.edits == ()
    assert found.notes == (
        "moe_intermediate_size is not absorbed: expert_hidden_dim is 90, where moe_intermediate_size is 74",
    )


@pytest.mark.parametrize("repeated", [213, [213, 213], 214, [213, 214]])
def test_a_size_that_the_engine_takes_from_another_key(repeated: object) -> None:
    """vLLM takes the size of Hunyuan's experts from moe_intermediate_size if set, a list where it is published."""
    config = llama(model_type="hunyuan_v1_moe", intermediate_size=213, moe_intermediate_size=repeated)
    mlp = "model.layers.0.mlp.experts.0"
    tensors = channel(f"{mlp}.gate_proj", 213, 64) | channel(f"{mlp}.up_proj", 213, 64)
    found = plan_layer(config, tensors | channel(f"{mlp}.down_proj", 64, 213), EXPERTS)
    edits = {edit.key: edit.new for edit in found.edits}
    places = {
        213: ["moe_intermediate_size"],
        (213, 213): ["moe_intermediate_size.0", "moe_intermediate_size.1"],
    }.get(tuple(repeated) if isinstance(repeated, list) else repeated)
    assert edits == (dict.fromkeys(["intermediate_size", *places], 224) if places else {})
    if places is None:
        reason = f"moe_intermediate_size is {repeated!r}, where intermediate_size is 213"
        assert found.notes == (f"intermediate_size is not absorbed: {reason}",)


def gemma4(**vision: Any) -> dict[str, Any]:
    """Return a Gemma 4 config."""
    return {
        "model_type": "gemma4",
        "text_config": {"model_type": "gemma4_text", "intermediate_size": 213},
        "vision_config": {"model_type": "gemma4_vision", "intermediate_size": 100, **vision},
        "quantization_config": CHANNEL,
    }


def test_layers_of_twice_the_width() -> None:
    """With 213 -> 224, Gemma 4's double-wide layers grow from 426 to 448; a layer of another width is refused."""
    text = "model.language_model.layers"
    wide = gated(f"{text}.0.mlp", 213, 64) | gated(f"{text}.1.mlp", 426, 64)
    found = plan_layer(gemma4(), wide)
    assert found.tensors[f"{text}.1.mlp.up_proj.weight"].padded_shape == (448, 64)
    assert [edit.new for edit in found.edits] == [224]
    found = plan_layer(gemma4(), wide | gated(f"{text}.2.mlp", 300, 64))
    assert (found.edits, len(found.notes)) == ((), 1)
    assert "is not a multiple of it" in found.notes[0]


def test_a_key_that_forbids_absorbing() -> None:
    """Gemma 4's vision MLPs are absorbed unless their Linears are clipped."""
    mlp = "model.vision_tower.encoder.layers.0.mlp"
    tensors = channel(f"{mlp}.gate_proj.linear", 100, 64) | channel(f"{mlp}.up_proj.linear", 100, 64)
    tensors |= channel(f"{mlp}.down_proj.linear", 64, 100)
    assert [edit.new for edit in plan_layer(gemma4(), tensors).edits] == [112]
    refused = plan_layer(gemma4(use_clipped_linears=True), tensors)
    assert refused.edits == ()
    assert refused.notes[0].endswith("is not absorbed: vision_config.use_clipped_linears is set")


def test_gate_and_up_row_by_row() -> None:
    """gpt-oss interleaves them: two rows per neuron are added at the tail, as in biases and scales; no segments."""
    experts = "model.layers.0.mlp.experts"
    tensors: Tensors = {
        f"{experts}.gate_up_proj": ("F8_E4M3", (4, 64, 400)),
        f"{experts}.gate_up_proj_scale": ("F32", (4, 1, 400)),
        f"{experts}.gate_up_proj_bias": ("BF16", (4, 400)),
        f"{experts}.down_proj": ("F8_E4M3", (4, 200, 64)),
        f"{experts}.down_proj_scale": ("F32", (4, 1, 64)),
        f"{experts}.down_proj_bias": ("BF16", (4, 64)),
    }
    config = {"model_type": "gpt_oss", "intermediate_size": 200, "quantization_config": CHANNEL}
    found = plan_layer(config, tensors, EXPERTS)
    assert {name.rpartition(".")[2]: tensor.padded_shape for name, tensor in found.tensors.items()} == {
        "gate_up_proj": (4, 64, 416),
        "gate_up_proj_scale": (4, 1, 416),
        "gate_up_proj_bias": (4, 416),
        "down_proj": (4, 208, 64),
    }
    assert not any(tensor.segments for tensor in found.tensors.values())
