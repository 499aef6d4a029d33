"""The runtime's arithmetic: which part of a tensor from disk is padding, and how large a layer is on one rank."""

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fp8pad.errors import UnsupportedLayerError
from fp8pad.geometry import round_up
from fp8pad.quantization_config import ModuleRecord
from fp8pad.runtime.parts import WEIGHT, LayerParts, find_layer, leading_sizes
from fp8pad.runtime.sizes import Rank, RankSizes, Span
from fp8pad.scales import PerBlock, PerChannel

GATE = ModuleRecord((213, 136), (224, 144), (16, 16))
UP = ModuleRecord((215, 136), (224, 144), (16, 16))
DOWN = ModuleRecord((136, 213), (144, 224), (16, 16))
GATE_BLOCK = ModuleRecord((213, 136), (256, 256), (128, 128))
UP_BLOCK = ModuleRecord((215, 136), (256, 256), (128, 128))
BLOCK = (128, 128)
ONE = Rank()


def test_which_leading_sizes_a_parameter_has() -> None:
    """A weight has its own sizes, a channel scale has its rows, a block scale has a grid that covers it."""
    assert leading_sizes(WEIGHT, (213, 136)) == (213, 136)
    assert leading_sizes(PerChannel(), (213, 136)) == (213,)
    assert leading_sizes(PerBlock(*BLOCK), (213, 136)) == (2, 2)


def test_a_single_module_is_found_by_its_shape() -> None:
    """The shape on disk gives the logical shape of a weight, and of scales with and without a column axis."""
    layer = LayerParts("model.mlp.down_proj", (DOWN,))
    assert layer.logical_shape((144, 224), WEIGHT, None) == (136, 213)
    assert layer.logical_shape((144, 1), PerChannel(), None) == (136,)
    assert layer.logical_shape((144,), PerChannel(), None) == (136,)


def test_a_tensor_without_padding_is_itself() -> None:
    """A trainer sends tensors of logical sizes, which are not cut."""
    assert LayerParts("down_proj", (DOWN,)).logical_shape((136, 213), WEIGHT, None) == (136, 213)


def test_the_shard_id_decides_between_parts_of_one_padded_shape() -> None:
    """Parts of 213 and 215 rows are both 224 on disk: the id is a position, or a letter in a fused QKV."""
    assert LayerParts("gate_up_proj", (GATE, UP)).logical_shape((224, 144), WEIGHT, 1) == (215, 136)
    assert LayerParts("qkv_proj", (UP, GATE, GATE)).logical_shape((224, 144), WEIGHT, "k") == (213, 136)


def test_parts_that_are_fused_are_aligned_together() -> None:
    """Blocks of 96 by 96, alone and padded to 64 too: the layer has the least multiple of all."""
    gate = ModuleRecord((213, 136), (288, 192), (96, 96))
    assert LayerParts("gate_up_proj", (gate, gate)).alignment == (96, 96)
    up = ModuleRecord((215, 136), (256, 192), (64, 64))
    assert LayerParts("gate_up_proj", (gate, up, None)).alignment == (192, 192)


@pytest.mark.parametrize("shard_id", [None, (0, 1), 2, "index_q"])
def test_a_shard_id_that_names_no_part_is_refused_where_it_must_decide(shard_id: object) -> None:
    """Guessing between two sizes would load the wrong rows."""
    with pytest.raises(UnsupportedLayerError, match=r"gate_up_proj.*\[224, 144\]"):
        LayerParts("gate_up_proj", (GATE, UP)).logical_shape((224, 144), WEIGHT, shard_id)  # type: ignore[arg-type]


def test_a_tuple_of_shards_is_found_by_its_shape() -> None:
    """Some models load several matrices from one tensor, with a tuple of ids that are not positions."""
    layer = LayerParts("in_proj_qkvz", (ModuleRecord((40, 136), (48, 144), (16, 16)), GATE))
    assert layer.logical_shape((48, 144), WEIGHT, (0, 1, 2)) == (40, 136)


def test_a_padded_tensor_without_a_size_is_refused() -> None:
    """A shape that is not in the record is an error that names the layer, and is never cut silently."""
    with pytest.raises(UnsupportedLayerError, match="down_proj: a tensor of shape \\[160, 224\\]"):
        LayerParts("model.down_proj", (DOWN,)).logical_shape((160, 224), WEIGHT, None)


def test_a_part_that_the_record_leaves_out_is_taken_as_it_is() -> None:
    """An unknown module that is fused with a padded one has no padding."""
    assert LayerParts("qkv_proj", (GATE, None, GATE)).logical_shape((64, 136), WEIGHT, "k") == (64, 136)


def test_a_layer_is_found_by_its_own_name_or_by_its_parts() -> None:
    """A module fused on disk, as in Phi-3, has the layer's name; otherwise the fused parts are given, or known."""
    fused = {"gate_up_proj": ["gate_proj", "up_proj"], "qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    modules = {"model.mlp.gate_proj": GATE, "model.mlp.up_proj": UP, "phi.mlp.gate_up_proj": DOWN, "q_proj": GATE}
    assert find_layer(modules, "model.mlp.gate_up_proj", fused) == LayerParts("model.mlp.gate_up_proj", (GATE, UP))
    assert find_layer(modules, "phi.mlp.gate_up_proj", fused) == LayerParts("phi.mlp.gate_up_proj", (DOWN,))
    assert find_layer(modules, "qkv_proj", fused) == LayerParts("qkv_proj", (GATE, None, None))
    assert find_layer(modules, "model.mlp.down_proj", fused) is None
    assert find_layer(modules, "model.mlp.gate_up_proj", {}) == LayerParts("model.mlp.gate_up_proj", (GATE, UP))


def test_the_alignment_of_a_layer_suits_every_part() -> None:
    """Parts of one conversion usually share an alignment; if not, the largest fits all."""
    wider = ModuleRecord((136, 213), (192, 256), (64, 128))
    assert LayerParts("x", (GATE, None, wider)).alignment == (64, 128)


def padded(n: int, k: int, alignment: int = 128, inner: Literal["n", "k"] | None = None) -> ModuleRecord:
    """Return the record of a module that is padded to multiples of `alignment`."""
    return ModuleRecord((n, k), (round_up(n, alignment), round_up(k, alignment)), (alignment, alignment), inner)


def test_the_last_partition_takes_the_tail_of_n() -> None:
    """Two matrices of 213 rows and 136 columns become 213 and 219 rows of 144 columns."""
    sizes = RankSizes.of([213, 213], 136, LayerParts("qkv", (GATE, GATE)), (1, 1), ONE)
    assert sizes == RankSizes((213, 213), (Span(0, 426, 432),), Span(0, 136, 144))
    assert sizes.padded_partitions == (213, 219)
    assert (sizes.logical_shape, sizes.padded_shape, sizes.is_padded) == ((426, 136), (432, 144), True)


def test_matrices_that_are_aligned_together_need_no_tail() -> None:
    """Two matrices of 8 rows are 16 together, whatever their padding on disk."""
    parts = LayerParts("x", (padded(8, 144, 16), padded(8, 144, 16)))
    assert not RankSizes.of([8, 8], 144, parts, (1, 1), ONE).is_padded


def test_each_matrix_of_a_block_scaled_layer_has_a_tail_of_its_own() -> None:
    """The scale of row r is in row r // 128, so 213 and 215 rows become 256 each."""
    sizes = RankSizes.of([213, 215], 136, LayerParts("gate_up_proj", (GATE_BLOCK, UP_BLOCK)), BLOCK, ONE)
    assert sizes == RankSizes((213, 215), (Span(0, 213, 256), Span(0, 215, 256)), Span(0, 136, 256), True)
    assert sizes.padded_partitions == (256, 256)
    assert sizes.slices == (slice(0, 213), slice(256, 471))


def test_only_the_last_matrix_needs_a_tail_where_the_others_are_whole_blocks() -> None:
    """DeepSeek-V3's fused projection: 1536 and 576 rows, so that the output is the leading 2112 of 2176."""
    parts = LayerParts("fused_qkv_a_proj", (padded(1536, 7168), padded(576, 7168)))
    sizes = RankSizes.of([1536, 576], 7168, parts, BLOCK, ONE)
    assert sizes == RankSizes((1536, 576), (Span(0, 2112, 2176),), Span(0, 7168, 7168))
    assert sizes.padded_partitions == (1536, 640)


@pytest.mark.parametrize(("partitions", "is_placed"), [([256, 170], False), ([213, 213], True)])
def test_what_the_engine_splits_on_whole_blocks_needs_no_place_of_its_own(
    partitions: list[int], is_placed: bool
) -> None:
    """426 rows are one piece on disk either way; vLLM's loaders would split a block at row 213, but not at 256."""
    sizes = RankSizes.of(partitions, 128, LayerParts("gate_up_proj", (padded(426, 128),)), BLOCK, ONE)
    assert (sizes.rows, sizes.is_placed) == ((Span(0, 426, 512),), is_placed)


def test_a_matrix_that_is_fused_on_disk_stays_in_one_piece() -> None:
    """Its blocks straddle the engine's two matrices; only its end has a tail, inside an MLP too."""
    for inner in (None, "n"):
        record = LayerParts("gate_up_proj", (padded(426, 160, 128, inner),))
        sizes = RankSizes.of([213, 213], 160, record, BLOCK, ONE)
        assert (sizes.rows, sizes.padded_partitions) == ((Span(0, 426, 512),), (512,))


def test_a_share_of_whole_blocks_is_padded_like_any_other() -> None:
    """Half of 512 rows begins at a block; its 136 columns are padded to 256."""
    sizes = RankSizes.of([256], 136, LayerParts("gate_proj", (padded(512, 136),)), BLOCK, Rank(1, 2))
    assert sizes == RankSizes((256,), (Span(0, 256, 256),), Span(0, 136, 256))


@pytest.mark.parametrize(
    ("partitions", "k", "message"),
    [
        ([14784], 8192, r"\[14784\] rows begins inside a scale block of 128"),
        ([29568], 4000, "4000 columns .* of 128"),
    ],
)
def test_a_share_that_begins_inside_a_block_is_refused_with_what_helps(
    partitions: list[int], k: int, message: str
) -> None:
    """29568 rows on two ranks are 115.5 blocks each; outside an MLP, padding at load cannot fix the scales."""
    record = LayerParts("model.up_proj", (padded(29568, 8192),))
    with pytest.raises(UnsupportedLayerError, match=rf"model.up_proj: .*{message}.*fp8pad convert --absorb -tp 2"):
        RankSizes.of(partitions, k, record, BLOCK, Rank(1, 2))


def test_inside_an_mlp_each_matrix_has_its_own_tail() -> None:
    """Per channel, 212 rows of gate and of up on two ranks: twice 106, each in 112; down's columns are the same."""
    gate_up = LayerParts("m.gate_up_proj", (padded(212, 136, 16, "n"), padded(212, 136, 16, "n")))
    down = LayerParts("m.down_proj", (padded(136, 212, 16, "k"),))
    for number in (0, 1):
        share = Span(106 * number, 106, 112)
        above = RankSizes.of([106, 106], 136, gate_up, (1, 1), Rank(number, 2))
        assert above == RankSizes((106, 106), (share, share), Span(0, 136, 144), True)
        assert above.padded_partitions == (112, 112)
        assert above.slices == (slice(0, 106), slice(112, 218))
        below = RankSizes.of([136], 106, down, (1, 1), Rank(number, 2))
        assert below == RankSizes((136,), (Span(0, 136, 144),), share, True)


def test_fused_on_disk_the_two_matrices_are_taken_apart() -> None:
    """One module of 424 rows is split into gate and up, 212 rows each."""
    record = LayerParts("m.gate_up_proj", (padded(424, 136, 16, "n"),))
    sizes = RankSizes.of([212, 212], 136, record, (1, 1), ONE)
    assert sizes.rows == (Span(0, 212, 224),) * 2


@pytest.mark.parametrize(
    ("inner", "num_ranks", "spans"),
    [
        (29568, 2, {0: Span(0, 14784, 14848, 0), 1: Span(14784, 14784, 14848, 64)}),
        (512, 8, {0: Span(0, 64, 128, 0), 1: Span(64, 64, 128, 64), 7: Span(448, 64, 128, 64)}),
        (10944, 8, {0: Span(0, 1368, 1536, 0), 1: Span(1368, 1368, 1536, 88), 7: Span(9576, 1368, 1536, 104)}),
        (1280, 8, {1: Span(160, 160, 256, 32), 3: Span(480, 160, 256, 96)}),
        (1300, 1, {0: Span(0, 1300, 1408, 0)}),
    ],
)
def test_inside_an_mlp_a_share_may_begin_inside_a_block(inner: int, num_ranks: int, spans: dict[int, Span]) -> None:
    """It has the same offset in its first block as on disk; every rank has the same number of blocks."""
    gate_up = LayerParts("m.gate_up_proj", (padded(inner, 8192, 128, "n"),) * 2)
    down = LayerParts("m.down_proj", (padded(8192, inner, 128, "k"),))
    share = inner // num_ranks
    for number, span in spans.items():
        rank = Rank(number, num_ranks)
        assert RankSizes.of([share, share], 8192, gate_up, BLOCK, rank).rows == (span, span)
        assert RankSizes.of([8192], share, down, BLOCK, rank).columns == span
        assert span.head == span.start % 128


def test_where_a_share_is_whole_blocks_the_engine_loads_it() -> None:
    """1536 over 4 ranks is three blocks each: nothing is padded, and nothing is placed separately."""
    record = LayerParts("m.gate_up_proj", (padded(1536, 2048, 128, "n"),) * 2)
    sizes = RankSizes.of([384, 384], 2048, record, BLOCK, Rank(3, 4))
    assert (sizes.is_padded, sizes.is_placed) == (False, False)


def test_an_inner_axis_that_the_ranks_do_not_share_evenly_is_padded_as_any_other() -> None:
    """It is replicated on both ranks, or has a part without a record."""
    parts: tuple[ModuleRecord | None, ...] = (padded(212, 136, 16, "n"), padded(212, 136, 16, "n"))
    for known in (parts, (parts[0], None)):
        record = LayerParts("m.gate_up_proj", known)
        assert RankSizes.of([212, 212], 136, record, (1, 1), Rank(0, 2)).is_placed is False


@given(
    inner=st.integers(1, 2000),
    num_ranks=st.sampled_from([1, 2, 4, 8]),
    block=st.sampled_from([1, 16, 32, 128]),
)
def test_shares_cover_a_matrix_once_and_keep_their_blocks(inner: int, num_ranks: int, block: int) -> None:
    """Every row is on one rank, at the same offset in its block as on disk; all ranks have as many whole blocks."""
    spans = [Span.share(inner, 16, block, Rank(number, num_ranks)) for number in range(num_ranks)]
    assert [row for span in spans for row in range(span.start, span.start + span.size)] == list(
        range(inner * num_ranks)
    )
    (padded_size,) = {span.padded_size for span in spans}
    assert padded_size % 16 == padded_size % block == 0
    for span in spans:
        assert span.head == span.start % block
        assert span.head + span.size <= padded_size
        blocks = span.source(block)
        assert blocks.start * block <= span.start < (blocks.start + 1) * block
        assert (blocks.stop - 1) * block < span.start + span.size <= blocks.stop * block
        assert (blocks.stop - blocks.start) * block <= padded_size


def test_parts_of_one_size_are_told_apart_by_their_shard() -> None:
    """If each part has its own place, only the shard id distinguishes parts of one shape."""
    layer = LayerParts("gate_up_proj", (GATE, GATE))
    assert [layer.position((224, 144), WEIGHT, shard_id) for shard_id in (0, 1)] == [0, 1]
    with pytest.raises(UnsupportedLayerError):
        layer.position((224, 144), WEIGHT, None)
