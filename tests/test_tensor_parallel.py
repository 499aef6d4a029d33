"""What a tensor-parallel size leaves unaligned, with the sizes of real models as literal numbers."""

from dataclasses import replace
from math import gcd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fp8pad.errors import UnsupportedLayerError
from fp8pad.geometry import round_up
from fp8pad.padded import AxisActions
from fp8pad.planning import plan_checkpoint
from fp8pad.planning.absorb.matching import find_governed
from fp8pad.planning.engines import find_engine
from fp8pad.planning.families import index_families, sections_of
from fp8pad.planning.linear import LayerPlan
from fp8pad.planning.sharding import RankPart
from fp8pad.planning.tensor_parallel import shardings
from fp8pad.planning.verdict import Judge
from fp8pad.quantization_config import ModuleRecord
from fp8pad.record import Json, Policy
from fp8pad.runtime.parts import FUSED_MODULES, LayerParts
from fp8pad.runtime.sizes import Rank, RankSizes
from fp8pad.scales import PerBlock, PerChannel
from fp8pad.tensors import ShardHeader, TensorHeader

B = (128, 128)
NO_CONFIG: Json = {}
TOY = """
model_types = ["toy"]
prefixes = ["model."]
[[mlp]]
size_key = "inner"
gate_up = "layers.{layer}.ff.in"
down = "layers.{layer}.ff.out"
activation = "silu"
"""


def layer(
    name: str,
    shape: tuple[int, int],
    alignment: tuple[int, int] = (16, 16),
    block: tuple[int, int] | None = None,
    config: Json = NO_CONFIG,
) -> LayerPlan:
    """Return a layer of a model with this config; it is aligned at TP 1, or treated as such."""
    scales = PerBlock(*block) if block else PerChannel()
    axes = AxisActions("aligned", "aligned")
    sharding = shardings({name: shape}, sections_of(config))[name]
    return LayerPlan(scales, shape, shape, alignment, axes, "aligned", shape, sharding)


def rank_shape(plan: LayerPlan, num_ranks: int) -> tuple[int | None, int | None]:
    """Return the N and K of a rank's part."""
    part = plan.part(num_ranks)
    return part.num_n, part.num_k


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
    """Row-parallel and replicated modules are known by name, all others are column-parallel."""
    assert layer(module, (256, 256)).sharding.axis == parallelism


def test_only_the_split_axis_shrinks() -> None:
    """10944 on 8 ranks leaves 1368 rows of gate and 1368 columns of down; 1368 is not a multiple of 16."""
    gate, down = layer("m.gate_proj", (10944, 2048)), layer("m.down_proj", (2048, 10944))
    assert rank_shape(gate, 8) == (1368, 2048)
    assert rank_shape(down, 8) == (2048, 1368)
    fits = ["aligned", "aligned", "aligned", "unaligned"]
    assert [[each.fit_at(size) for size in (1, 2, 4, 8)] for each in (gate, down)] == [fits, fits]


def test_key_value_heads_are_copied_rather_than_split() -> None:
    """Two heads of 128 stay 128 rows on each of eight ranks, a whole block; without a config they are only rows."""
    name, config = "model.layers.0.self_attn.k_proj", {"model_type": "llama", "num_key_value_heads": 2}
    key = layer(name, (256, 2048), B, B, config)
    assert rank_shape(key, 8) == (128, 2048)
    assert [key.fit_at(size) for size in (2, 8)] == ["aligned", "aligned"]
    assert layer(name, (256, 2048), B, B).fit_at(8) == "inside block"


def test_heads_are_never_split() -> None:
    """14 heads of 64 cannot be divided among four ranks, though 896 rows could; nor 3 key-value heads among eight."""
    config = {"model_type": "llama", "num_attention_heads": 14, "num_key_value_heads": 3}
    query = layer("model.layers.0.self_attn.q_proj", (896, 896), config=config)
    key = layer("model.layers.0.self_attn.k_proj", (192, 896), config=config)
    assert [query.fit_at(size) for size in (2, 4, 7)] == ["aligned", "indivisible", "aligned"]
    assert [rank_shape(key, size)[0] for size in (2, 3, 6, 8)] == [None, 64, 64, None]


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_key_value_heads": 2},
        {"num_kv_heads": 2},
        {"num_attention_groups": 2},  # Step 3.5
        {"n_head_kv": 2, "multi_query": True, "new_decoder_architecture": True},  # Falcon 40B
        {"multi_query_group_num": 2},
    ],
)
def test_key_value_heads_go_by_several_names(sizes: Json) -> None:
    """Eight ranks hold copies of two heads of 128, with the names in vLLM's CONFIG_FIELD_ALIASES."""
    config: Json = {"model_type": "llama", "num_attention_heads": 32, **sizes}
    assert rank_shape(layer("model.layers.0.self_attn.k_proj", (256, 2048), config=config), 8) == (128, 2048)


@pytest.mark.parametrize(
    ("config", "name", "num_n", "by_ranks"),
    [
        # MiMo-V2-Flash: 4 heads of 192 (128 for values), and 8 in layers with a sliding window; SGLang pull request
        # 21102 shows that 8 ranks hold 192 rows each of the latter's 1,536.
        ("mimo_v2_flash", "k_proj", 768, {2: 384, 4: 192, 8: 192}),
        ("mimo_v2_flash", "v_proj", 512, {4: 128, 8: 128}),
        ("mimo_v2_flash", "k_proj", 1536, {4: 384, 8: 192, 16: 192}),
        ("mimo_v2_flash", "v_proj", 1024, {8: 128, 16: 128}),
        # Gemma 4 26B-A4B: 8 heads of 256, and 2 of 512 in layers with full attention.
        ("gemma4_text", "k_proj", 2048, {4: 512, 8: 256, 16: 256}),
        ("gemma4_text", "k_proj", 1024, {2: 512, 4: 512, 8: 512}),
    ],
)
def test_layers_of_a_second_kind_have_their_own_number_of_key_value_heads(
    config: str, name: str, num_n: int, by_ranks: dict[int, int]
) -> None:
    """Which kind a layer is, its number of rows tells."""
    sizes: dict[str, Json] = {
        "mimo_v2_flash": {
            "num_attention_heads": 64, "num_key_value_heads": 4, "head_dim": 192, "v_head_dim": 128,
            "swa_num_key_value_heads": 8, "swa_head_dim": 192, "swa_v_head_dim": 128,
        },
        "gemma4_text": {
            "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256,
            "num_global_key_value_heads": 2, "global_head_dim": 512,
        },
    }  # fmt: skip
    plan = layer(f"model.layers.0.self_attn.{name}", (num_n, 4096), config={"model_type": config, **sizes[config]})
    assert {ranks: rank_shape(plan, ranks)[0] for ranks in by_ranks} == by_ranks


@pytest.mark.parametrize("key", ["head_dim", "v_head_dim", "swa_head_dim", "swa_v_head_dim", "global_head_dim"])
@pytest.mark.parametrize("size", [{}, [64]])
def test_a_size_of_heads_may_be_anything(key: str, size: object) -> None:
    """Then the numbers of heads decide alone."""
    config: Json = {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 4, key: size}
    assert rank_shape(layer("model.layers.0.self_attn.k_proj", (256, 512), config=config), 8) == (64, 512)


def test_key_value_heads_fused_with_the_queries_are_copied_too() -> None:
    """32 heads and 2 key-value heads in one tensor: eight ranks hold 4 + 1 + 1 heads; 5 heads cannot be split."""
    config: Json = {"model_type": "glm4", "num_attention_heads": 32, "num_key_value_heads": 2}
    fused = layer("model.layers.0.self_attn.qkv_proj", (36 * 128, 4096), config=config)
    assert rank_shape(fused, 8) == (6 * 128, 4096)
    assert rank_shape(fused, 2) == (18 * 128, 4096)
    config = {"model_type": "gpt_bigcode", "n_head": 5, "multi_query": True}
    assert rank_shape(layer("transformer.h.0.attn.c_attn", (7 * 32, 160), config=config), 2) == (None, 160)


def test_heads_are_those_of_the_part_that_holds_the_module() -> None:
    """A vision tower without key-value heads has as many as heads: it does not use the text model's."""
    config = {"model_type": "qwen2_5_vl", "num_key_value_heads": 2, "vision_config": {"num_heads": 16}}
    tower = layer("visual.blocks.0.attn.qkv", (3840, 1280), config=config)
    assert tower.part(8) == RankPart(8, 480, 1280, (160, 160, 160))
    assert rank_shape(layer("model.layers.0.self_attn.k_proj", (256, 2048), config=config), 8) == (128, 2048)


def test_unaligned_is_not_indivisible() -> None:
    """13653 is odd, so no even TP size divides it; 29568 is only unaligned with 128-blocks."""
    sizes = (2, 4, 8)
    assert [layer("m.fc1", (13653, 5120)).fit_at(size) for size in sizes] == ["indivisible"] * 3
    assert [layer("m.down_proj", (8192, 29568), (128, 128)).fit_at(size) for size in sizes] == ["unaligned"] * 3
    assert layer("m.o_proj", (8192, 8192), (128, 128)).fit_at(64) == "aligned"


def test_a_share_begins_at_a_block_or_inside_one() -> None:
    """384 / 2 is a block and a half, whatever the alignment; a share that is one block may still be unaligned."""
    block = (128, 128)
    assert layer("m.down_proj", (200, 384), block, block).fit_at(2) == "inside block"
    assert layer("m.down_proj", (200, 384), block, block).fit_at(3) != "inside block"
    assert layer("m.down_proj", (200, 256), (256, 256), block).fit_at(2) != "inside block"
    assert layer("m.down_proj", (200, 384), block).fit_at(2) != "inside block"
    assert layer("m.q_a_proj", (200, 384), block, block).fit_at(2) != "inside block"


def test_of_two_unaligned_shares_one_begins_inside_a_block() -> None:
    """Padding at load cannot fix that one."""
    assert layer("a.down_proj", (200, 384), B, B).fit_at(2) == "inside block"
    assert layer("b.down_proj", (200, 256), (256, 256), B).fit_at(2) == "unaligned"


def test_a_copied_key_or_value_lies_beside_split_queries() -> None:
    """One head of 64 on two ranks: the queries' 128 rows are a block, keys and values are half a block each."""
    config = {"model_type": "llama", "num_attention_heads": 4, "num_key_value_heads": 1}
    name = "model.layers.0.self_attn.k_proj"
    sizes = {"q_proj": 256, "k_proj": 64, "v_proj": 64}
    layers = [layer(f"model.layers.0.self_attn.{last}", (n, 256), B, B, config) for last, n in sizes.items()]
    assert [each.part(2).rows for each in layers] == [(128,), (64,), (64,)]
    assert [each.fit_at(2) for each in layers] == ["aligned", "inside block", "inside block"]
    assert layers[1].fit_at(1) == "aligned"
    assert layer(name, (64, 256), config=config).fit_at(2) == "aligned"
    assert layer(name, (128, 256), B, B, config).fit_at(2) == "aligned"


def test_a_layer_fused_on_disk_is_aligned_though_its_matrices_are_not() -> None:
    """128 + 64 + 64 and 192 + 192 are whole blocks together, but only without block scales does that suffice."""
    config = {"model_type": "phi3", "num_attention_heads": 4, "num_key_value_heads": 1}
    attention, mlp = "model.layers.0.self_attn.qkv_proj", "model.layers.0.mlp.gate_up_proj"
    layers = layer(attention, (384, 256), B, B, config), layer(mlp, (768, 256), B, B, config)
    assert [each.part(2).rows for each in layers] == [(128, 64, 64), (192, 192)]
    assert [[each.fit_at(size) for size in (1, 2)] for each in layers] == [["aligned", "inside block"]] * 2
    unscaled = layer(attention, (384, 256), config=config), layer(mlp, (768, 256), config=config)
    assert [each.fit_at(2) for each in unscaled] == ["aligned"] * 2


def test_only_layers_split_along_n_have_rows_of_their_own_on_a_rank() -> None:
    """Row-parallel and replicated layers have none, nor do sizes that cannot be divided, like gate's 213 rows."""
    assert [layer(f"m.{name}", (384, 200)).part(2).rows for name in ("down_proj", "q_a_proj")] == [(), ()]
    assert layer("m.fc1", (13653, 200)).part(2).rows == ()
    assert layer("m.gate_up_proj", (426, 200)).part(2) == RankPart(2, None, 200)
    assert layer("m.gate_up_proj", (426, 200)).fit_at(2) == "indivisible"


def test_a_vocabulary_is_padded_by_engines_before_it_is_split() -> None:
    """vLLM pads 259 tokens to 320, a multiple of 64, at any TP size; 64 / 8 = 8 rows are only unaligned."""
    names = ("lm_head", "model.embed_tokens", "head", "transformer.wte")
    assert [[layer(name, (259, 128)).fit_at(size) for size in (2, 4)] for name in names] == [["aligned"] * 2] * 4
    assert layer("lm_head", (259, 128)).part(4) == RankPart(4, 80, 128, (80,))
    assert layer("lm_head", (64, 128)).fit_at(8) == "unaligned"


def test_a_layer_whose_scales_are_not_understood_is_not_assessed() -> None:
    """Its sizes are not judged, divisible or not."""
    assert replace(layer("m.fc1", (13653, 5120)), granularity=None).fit_at(2) == "not assessed"


def test_the_family_knows_its_mlps_by_whatever_name() -> None:
    """Falcon's `dense_h_to_4h` and Whisper's fc2 by name; a toy's `out` only if a family file calls it down."""
    config = {"model_type": "toy", "inner": 384}
    known = index_families({"toy.toml": TOY})
    shapes = {"model.layers.7.ff.out": (256, 384), "model.layers.7.ff.in": (768, 256), "model.ff.out": (256, 384)}
    sections = sections_of(config, known)
    weights = {f"{name}.weight": TensorHeader(f"{name}.weight", "F8_E4M3", shape, 0) for name, shape in shapes.items()}
    found = shardings(shapes, sections, find_governed(sections, weights).modules)
    assert [each.axis for each in found.values()] == ["row", "column", "column"]
    assert found["model.layers.7.ff.in"].rank_rows(768, 2) == (192, 192)


def refuses(prefix: str, rows: tuple[int, ...], held: tuple[int, ...], block: tuple[int, int], num_ranks: int) -> bool:
    """Return whether the runtime refuses `held` rows of matrices that have `rows` on disk."""
    sizes = [(num_n, 256) for num_n in rows]
    padded = [(round_up(num_n, block[0]), 256) for num_n in rows]
    parts = tuple(ModuleRecord(size, room, block) for size, room in zip(sizes, padded, strict=True))
    try:
        RankSizes.of(held, 256, LayerParts(prefix, parts), block, Rank(0, num_ranks))
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
    """Queries, keys and values, fused on disk or not, are refused on a rank if the plan says so.

    The first two of `heads` are each rank's key-value heads and the queries per key-value head, if there are no copies.
    """
    keys_held, ratio, copied = heads
    queries = keys_held * ratio * num_ranks
    keys = keys_held * num_ranks if copied is None else gcd(num_ranks, copied)
    config = {"model_type": "llama", "num_attention_heads": queries, "num_key_value_heads": keys}
    block, attention = (side, 128), "model.layers.0.self_attn"
    held = tuple(count * head_dim for count in (queries // num_ranks, *[max(1, keys // num_ranks)] * 2))
    rows = queries * head_dim, keys * head_dim, keys * head_dim
    on_disk = {f"{attention}.{name}_proj": num_n for name, num_n in zip("qkv", rows, strict=True)}
    apart = [layer(name, (num_n, 256), block, block, config) for name, num_n in on_disk.items()]
    fused = layer(f"{attention}.qkv_proj", (sum(rows), 256), block, block, config)
    said = any(part.fit_at(num_ranks) == "inside block" for part in apart)
    assert said == refuses("qkv_proj", rows, held, block, num_ranks)
    said = fused.fit_at(num_ranks) == "inside block"
    assert said == refuses("qkv_proj", (sum(rows),), held, block, num_ranks)


@given(num_ranks=RANKS, share=st.integers(1, 300), side=SIDES)
def test_what_the_plan_says_of_an_mlp_the_runtime_does(num_ranks: int, share: int, side: int) -> None:
    """Gate and up, fused on disk or not, are refused on a rank if the plan says so."""
    inner, held, block = share * num_ranks, (share, share), (side, 128)
    gate = layer("model.layers.0.mlp.gate_proj", (inner, 256), block, block)
    fused = layer("model.layers.0.mlp.gate_up_proj", (2 * inner, 256), block, block)
    for each, rows in ((gate, (inner, inner)), (fused, (2 * inner,))):
        said = each.fit_at(num_ranks) == "inside block"
        assert said == refuses("gate_up_proj", rows, held, block, num_ranks)


def test_a_query_is_followed_by_a_key_only_where_there_is_one() -> None:
    """Latent attention has only queries, whose last block need not be full; grouped-query attention fuses them."""
    alone, fused = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"
    shapes = {alone: (200, 256), fused: (200, 256), "model.layers.1.self_attn.k_proj": (200, 256)}
    found = shardings(shapes, ())
    assert [(how.place, len(how.fused_with)) for how in found.values()] == [(0, 0), (0, 1), (1, 1)]
    assert [how.ends_inside_block(how.part((200, 256), 1), B) for how in found.values()] == [False, True, False]


@pytest.mark.parametrize("parts", FUSED_MODULES.values())
def test_what_the_runtime_finds_fused_the_plan_fuses(parts: tuple[str, ...]) -> None:
    """Each matrix is fused with all the others, in this order."""
    sizes = {f"x.{name}": 16 * (place + 1) for place, name in enumerate(parts)}
    found = shardings({name: (num_n, 256) for name, num_n in sizes.items()}, ())
    assert all(how.fused_n(sizes[name], 1) == sum(sizes.values()) for name, how in found.items())
    assert [how.place for how in found.values()] == list(range(len(parts)))


def test_a_transposed_weight_is_divided_as_the_linear_that_it_is() -> None:
    """GPT-2's `mlp.c_proj`, stored as `[K, N]`, is split along K, and 101 columns cannot be shared by two ranks."""
    found = []
    for model_type, module, shape in (("gpt2", "h.0.mlp.c_proj", (101, 64)), ("llama", "mlp.down_proj", (64, 101))):
        shapes = {f"{module}.weight": ("F8_E4M3", shape), f"{module}.weight_scale": ("F32", ())}
        tensors = [TensorHeader(name, dtype, shape, 0) for name, (dtype, shape) in shapes.items()]
        config = {"model_type": model_type, "quantization_config": {"quant_method": "fp8"}}
        plan = plan_checkpoint([ShardHeader("a", 0, 0, tuple(tensors))], {"config.json": config}, Policy())
        assert plan.layers[0].plan.logical_shape == (64, 101)
        found.append(Judge(plan, find_engine("vllm-0.33")).original(2).outcome)
    assert found == ["refuses", "refuses"]
