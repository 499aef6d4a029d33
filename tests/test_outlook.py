"""What a tensor-parallel size leaves unaligned, with the sizes of real models as literal numbers."""

import pytest

from fp8pad.planning.architectures import architecture_of
from fp8pad.planning.outlook import begins_inside_block, parallelism_of, rank_shape, tp_outlook, unaligned_at
from fp8pad.planning.plan import LayerPlan
from fp8pad.record import Axes


def layer(
    name: str, shape: tuple[int, int], alignment: tuple[int, int] = (16, 16), block: tuple[int, int] | None = None
) -> LayerPlan:
    """A layer that is aligned at TP 1, or is taken to be."""
    scheme = "block" if block else "channel"
    return LayerPlan(name, scheme, shape, shape, alignment, Axes("aligned", "aligned"), "aligned", shape, block)


@pytest.mark.parametrize(
    ("module", "parallelism"),
    [
        ("model.layers.0.mlp.gate_proj", "column"),
        ("model.layers.0.mlp.down_proj", "row"),
        ("model.layers.3.mlp.experts.7.w2", "row"),
        ("transformer.h.0.attn.c_proj", "row"),
        ("visual.merger.mlp.0", "column"),
        ("visual.merger.mlp.2", "row"),
        ("model.layers.0.self_attn.kv_a_proj_with_mqa", "replicated"),
        ("lm_head", "column"),
    ],
)
def test_parallelism_is_told_by_the_last_part_of_a_name(module: str, parallelism: str) -> None:
    """Row-parallel and replicated modules are known by name, the rest is column-parallel."""
    assert parallelism_of(module) == parallelism


def test_only_the_split_axis_shrinks() -> None:
    """10944 on 8 ranks leaves 1368 rows of gate and 1368 columns of down; 1368 is not a multiple of 16."""
    gate, down = layer("m.gate_proj", (10944, 2048)), layer("m.down_proj", (2048, 10944))
    assert rank_shape(gate, 8) == (1368, 2048)
    assert rank_shape(down, 8) == (2048, 1368)
    assert [unaligned_at(gate, size) for size in (1, 2, 4, 8)] == [(False, False)] * 3 + [(True, False)]
    assert [unaligned_at(down, size) for size in (1, 2, 4, 8)] == [(False, False)] * 3 + [(False, True)]


def test_key_value_heads_are_copied_rather_than_split() -> None:
    """Two heads of 128 on eight ranks stay 128 wide, so that a 128-block holds."""
    sections = architecture_of({"model_type": "llama", "num_key_value_heads": 2})
    key = layer("model.layers.0.self_attn.k_proj", (256, 2048), (128, 128))
    assert rank_shape(key, 8, sections) == (128, 2048)
    assert unaligned_at(key, 8, sections) == (False, False)
    assert unaligned_at(key, 8) == (True, False)


def test_key_value_heads_fused_with_the_queries_are_copied_too() -> None:
    """32 heads and 2 key-value heads in one tensor: eight ranks hold 4 + 1 + 1 heads each; 5 heads do not split."""
    sections = architecture_of({"model_type": "glm4", "num_attention_heads": 32, "num_key_value_heads": 2})
    fused = layer("model.layers.0.self_attn.qkv_proj", (36 * 128, 4096))
    assert rank_shape(fused, 8, sections) == (6 * 128, 4096)
    assert rank_shape(fused, 2, sections) == (18 * 128, 4096)
    sections = architecture_of({"model_type": "gpt_bigcode", "n_head": 5, "multi_query": True})
    assert rank_shape(layer("transformer.h.0.attn.c_attn", (7 * 32, 160)), 2, sections) == (None, 160)


def test_heads_are_those_of_the_part_that_holds_the_module() -> None:
    """A vision tower without key-value heads of its own does not borrow the text model's."""
    config = {"model_type": "qwen2_5_vl", "num_key_value_heads": 2, "vision_config": {"num_heads": 16}}
    sections = architecture_of(config)
    assert rank_shape(layer("visual.blocks.0.attn.qkv", (3840, 1280)), 8, sections) == (480, 1280)
    assert rank_shape(layer("model.layers.0.self_attn.k_proj", (256, 2048)), 8, sections) == (128, 2048)


def test_the_outlook_tells_unaligned_from_indivisible() -> None:
    """13653 is odd, so that no even size splits it; 29568 is merely unaligned with 128-blocks."""
    layers = (
        layer("m.fc1", (13653, 5120)),
        layer("m.down_proj", (8192, 29568), (128, 128)),
        layer("m.o_proj", (8192, 8192), (128, 128)),
    )
    outlook = tp_outlook(layers)
    assert [at.tensor_parallel_size for at in outlook] == [2, 4, 8]
    assert [at.indivisible for at in outlook] == [("m.fc1",)] * 3
    assert [at.unaligned for at in outlook] == [("m.down_proj",)] * 3
    assert not any(at.is_clear for at in outlook)
    assert tp_outlook(layers[2:], sizes=(64,))[0].is_clear
    assert outlook[2].options == "--absorb --tensor-parallel-size 8"


def test_a_share_begins_at_a_block_or_inside_one() -> None:
    """384 / 2 is a block and a half, whatever the alignment; a share that is one block may still be unaligned."""
    block = (128, 128)
    assert begins_inside_block(layer("m.down_proj", (200, 384), block, block), 2)
    assert not begins_inside_block(layer("m.down_proj", (200, 384), block, block), 3)
    assert not begins_inside_block(layer("m.down_proj", (200, 256), (256, 256), block), 2)
    assert not begins_inside_block(layer("m.down_proj", (200, 384), block), 2)
    assert not begins_inside_block(layer("m.q_a_proj", (200, 384), block, block), 2)


def test_the_outlook_tells_what_no_padding_at_load_helps() -> None:
    """Of two unaligned layers, only the one whose share begins inside a block is listed."""
    inside = layer("a.down_proj", (200, 384), (128, 128), (128, 128))
    padded = layer("b.down_proj", (200, 256), (256, 256), (128, 128))
    (outlook,) = tp_outlook((inside, padded), sizes=(2,))
    assert (outlook.unaligned, outlook.inside_block) == (("a.down_proj", "b.down_proj"), ("a.down_proj",))
