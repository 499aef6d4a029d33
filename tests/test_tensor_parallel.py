"""What a tensor-parallel size leaves unaligned, with the sizes of real models as literal numbers."""

from math import gcd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fp8pad.errors import UnsupportedLayerError
from fp8pad.geometry import round_up
from fp8pad.planning.families import sections_of
from fp8pad.planning.plan import LayerPlan
from fp8pad.planning.tensor_parallel import (
    begins_inside_block,
    parallelism_of,
    rank_rows,
    rank_shape,
    straddles_gate_and_up,
    tp_outlook,
    unaligned_at,
)
from fp8pad.record import AxisActions, ModuleRecord
from fp8pad.runtime.sizes import LayerParts, RankSizes
from fp8pad.scales import PerBlock, PerChannel

B = (128, 128)


def layer(
    name: str, shape: tuple[int, int], alignment: tuple[int, int] = (16, 16), block: tuple[int, int] | None = None
) -> LayerPlan:
    """A layer that is aligned at TP 1, or is taken to be."""
    scheme = PerBlock(*block) if block else PerChannel()
    return LayerPlan(name, scheme, shape, shape, alignment, AxisActions("aligned", "aligned"), "aligned", shape)


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
    sections = sections_of({"model_type": "llama", "num_key_value_heads": 2})
    key = layer("model.layers.0.self_attn.k_proj", (256, 2048), (128, 128))
    assert rank_shape(key, 8, sections) == (128, 2048)
    assert unaligned_at(key, 8, sections) == (False, False)
    assert unaligned_at(key, 8) == (True, False)


def test_key_value_heads_fused_with_the_queries_are_copied_too() -> None:
    """32 heads and 2 key-value heads in one tensor: eight ranks hold 4 + 1 + 1 heads each; 5 heads do not split."""
    sections = sections_of({"model_type": "glm4", "num_attention_heads": 32, "num_key_value_heads": 2})
    fused = layer("model.layers.0.self_attn.qkv_proj", (36 * 128, 4096))
    assert rank_shape(fused, 8, sections) == (6 * 128, 4096)
    assert rank_shape(fused, 2, sections) == (18 * 128, 4096)
    sections = sections_of({"model_type": "gpt_bigcode", "n_head": 5, "multi_query": True})
    assert rank_shape(layer("transformer.h.0.attn.c_attn", (7 * 32, 160)), 2, sections) == (None, 160)


def test_heads_are_those_of_the_part_that_holds_the_module() -> None:
    """A vision tower without key-value heads of its own does not borrow the text model's."""
    config = {"model_type": "qwen2_5_vl", "num_key_value_heads": 2, "vision_config": {"num_heads": 16}}
    sections = sections_of(config)
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


def test_a_copied_key_or_value_lies_beside_split_queries() -> None:
    """One head of 64 on two ranks: the queries' 128 rows are a block, the 64 of keys and of values are half of one."""
    sections = sections_of({"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 1})
    sizes = {"q_proj": 256, "k_proj": 64, "v_proj": 64}
    query, key, value = (layer(f"model.layers.0.self_attn.{name}", (n, 256), B, B) for name, n in sizes.items())
    assert [rank_rows(each, 2, sections) for each in (query, key, value)] == [(128,), (64,), (64,)]
    assert [begins_inside_block(each, 2, sections) for each in (query, key, value)] == [False, True, True]
    assert not begins_inside_block(key, 1, sections)
    assert not begins_inside_block(layer(key.name, (64, 256)), 2, sections)
    assert not begins_inside_block(layer(key.name, (128, 256), B, B), 2, sections)


def test_a_layer_fused_on_disk_is_aligned_though_its_matrices_are_not() -> None:
    """128 + 64 + 64 and 192 + 192 are whole blocks together, and clear all the same only where blocks do not matter."""
    sections = sections_of({"model_type": "phi3", "num_attention_heads": 4, "num_key_value_heads": 1})
    attention, mlp = "model.layers.0.self_attn.qkv_proj", "model.layers.0.mlp.gate_up_proj"
    layers = layer(attention, (384, 256), B, B), layer(mlp, (768, 256), B, B)
    assert [rank_rows(each, 2, sections) for each in layers] == [(128, 64, 64), (192, 192)]
    (outlook,) = tp_outlook(layers, sections, sizes=(2,))
    assert (outlook.unaligned, outlook.inside_block, outlook.is_clear) == ((), (attention, mlp), False)
    assert tp_outlook(layers, sections, sizes=(1,))[0].is_clear
    unscaled = layer(attention, (384, 256)), layer(mlp, (768, 256))
    assert tp_outlook(unscaled, sections, sizes=(2,))[0].is_clear


def test_only_layers_split_along_n_have_rows_of_their_own_on_a_rank() -> None:
    """Nothing is told of row-parallel and replicated layers, nor of what does not split; odd halves count as one."""
    assert [rank_rows(layer(f"m.{name}", (384, 200)), 2) for name in ("down_proj", "q_a_proj")] == [(), ()]
    assert rank_rows(layer("m.fc1", (13653, 200)), 2) == ()
    assert rank_rows(layer("m.gate_up_proj", (426, 200)), 2) == (213,)


def test_a_block_straddles_gate_and_up_where_half_a_layer_is_no_whole_blocks() -> None:
    """213 rows of gate end inside a block of up; 384 are three, and without blocks nothing straddles."""
    assert straddles_gate_and_up(layer("m.gate_up_proj", (426, 200), B, B))
    assert not straddles_gate_and_up(layer("m.gate_up_proj", (768, 200), B, B))
    assert not straddles_gate_and_up(layer("m.gate_up_proj", (426, 200)))
    assert not straddles_gate_and_up(layer("m.gate_proj", (213, 200), B, B))


def refuses(prefix: str, rows: tuple[int, ...], held: tuple[int, ...], block: tuple[int, int], num_ranks: int) -> bool:
    """Whether the runtime refuses `held` rows of matrices that have `rows` on disk."""
    sizes = [(num_n, 256) for num_n in rows]
    padded = [(round_up(num_n, block[0]), 256) for num_n in rows]
    parts = tuple(ModuleRecord(size, room, block) for size, room in zip(sizes, padded, strict=True))
    try:
        RankSizes.of_blocks(held, 256, LayerParts(prefix, parts), block, num_ranks)
    except UnsupportedLayerError:
        return True
    return False


SIDES, RANKS = st.sampled_from([16, 32, 64, 128]), st.sampled_from([1, 2, 3, 4, 6, 8])


@given(
    num_ranks=RANKS,
    heads=st.tuples(st.integers(1, 4), st.integers(1, 3), st.one_of(st.none(), st.integers(1, 8))),
    head_dim=st.sampled_from([16, 24, 32, 64, 80, 96, 128]),
    side=SIDES,
)
def test_what_the_plan_says_of_attention_the_runtime_does(
    num_ranks: int, heads: tuple[int, int, int | None], head_dim: int, side: int
) -> None:
    """Queries, keys and values, fused on disk or not, are refused on a rank where the plan says so.

    Of `heads` the first two are each rank's key-value heads and the queries of each, where ranks do not hold copies.
    """
    keys_held, ratio, copied = heads
    queries = keys_held * ratio * num_ranks
    keys = keys_held * num_ranks if copied is None else gcd(num_ranks, copied)
    config = {"model_type": "llama", "num_attention_heads": queries, "num_key_value_heads": keys}
    sections, block, attention = sections_of(config), (side, 128), "model.layers.0.self_attn"
    held = tuple(count * head_dim for count in (queries // num_ranks, *[max(1, keys // num_ranks)] * 2))
    rows = queries * head_dim, keys * head_dim, keys * head_dim
    on_disk = {f"{attention}.{name}_proj": num_n for name, num_n in zip("qkv", rows, strict=True)}
    apart = [layer(name, (num_n, 256), block, block) for name, num_n in on_disk.items()]
    fused = layer(f"{attention}.qkv_proj", (sum(rows), 256), block, block)
    said = any(begins_inside_block(part, num_ranks, sections) for part in apart)
    assert said == refuses("qkv_proj", rows, held, block, num_ranks)
    said = begins_inside_block(fused, num_ranks, sections)
    assert said == refuses("qkv_proj", (sum(rows),), held, block, num_ranks)


@given(num_ranks=RANKS, share=st.integers(1, 300), side=SIDES)
def test_what_the_plan_says_of_an_mlp_the_runtime_does(num_ranks: int, share: int, side: int) -> None:
    """Gate and up, fused on disk or not, are refused on a rank where the plan says so."""
    inner, held, block = share * num_ranks, (share, share), (side, 128)
    gate = layer("model.layers.0.mlp.gate_proj", (inner, 256), block, block)
    fused = layer("model.layers.0.mlp.gate_up_proj", (2 * inner, 256), block, block)
    assert begins_inside_block(gate, num_ranks) == refuses("gate_up_proj", (inner, inner), held, block, num_ranks)
    assert begins_inside_block(fused, num_ranks) == refuses("gate_up_proj", (2 * inner,), held, block, num_ranks)
