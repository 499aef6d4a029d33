"""The runtime's arithmetic: what of a tensor from disk is padding, and how large a layer is on one rank."""

import pytest

from fp8pad.errors import UnsupportedLayerError
from fp8pad.record import ModuleRecord
from fp8pad.runtime.sizes import CHANNEL_SCALE, WEIGHT, LayerParts, RankSizes, Tile, find_layer

GATE = ModuleRecord((213, 136), (224, 144), (16, 16))
UP = ModuleRecord((215, 136), (224, 144), (16, 16))
DOWN = ModuleRecord((136, 213), (144, 224), (16, 16))
GATE_BLOCK = ModuleRecord((213, 136), (256, 256), (128, 128))
UP_BLOCK = ModuleRecord((215, 136), (256, 256), (128, 128))
BLOCK = Tile(128, 128)


def test_a_tile_says_which_leading_sizes_a_parameter_has() -> None:
    """A weight has the weight's sizes, a channel scale its rows, a block scale a grid that covers it."""
    assert WEIGHT.shape((213, 136)) == (213, 136)
    assert CHANNEL_SCALE.shape((213, 136)) == (213,)
    assert BLOCK.shape((213, 136)) == (2, 2)


def test_a_single_module_is_found_by_its_shape() -> None:
    """The shape on disk gives the logical shape, of a weight and of scales with and without a column axis."""
    layer = LayerParts("model.mlp.down_proj", (DOWN,))
    assert layer.logical_shape((144, 224), WEIGHT, None) == (136, 213)
    assert layer.logical_shape((144, 1), CHANNEL_SCALE, None) == (136,)
    assert layer.logical_shape((144,), CHANNEL_SCALE, None) == (136,)


def test_a_tensor_without_padding_is_itself() -> None:
    """A trainer sends tensors of logical sizes; nothing is cut from them."""
    assert LayerParts("down_proj", (DOWN,)).logical_shape((136, 213), WEIGHT, None) == (136, 213)


def test_the_shard_id_decides_between_parts_of_one_padded_shape() -> None:
    """Parts of 213 and 215 rows are both 224 on disk: by position, or by letter in a fused QKV."""
    assert LayerParts("gate_up_proj", (GATE, UP)).logical_shape((224, 144), WEIGHT, 1) == (215, 136)
    assert LayerParts("qkv_proj", (UP, GATE, GATE)).logical_shape((224, 144), WEIGHT, "k") == (213, 136)


@pytest.mark.parametrize("shard_id", [None, (0, 1), 2, "index_q"])
def test_a_shard_id_that_names_no_part_is_refused_where_it_must_decide(shard_id: object) -> None:
    """Guessing between two sizes would load the wrong rows."""
    with pytest.raises(UnsupportedLayerError, match=r"gate_up_proj.*\[224, 144\]"):
        LayerParts("gate_up_proj", (GATE, UP)).logical_shape((224, 144), WEIGHT, shard_id)  # type: ignore[arg-type]


def test_a_tuple_of_shards_is_found_by_its_shape() -> None:
    """Some models load several matrices from one tensor, with a tuple of ids that are no positions."""
    layer = LayerParts("in_proj_qkvz", (ModuleRecord((40, 136), (48, 144), (16, 16)), GATE))
    assert layer.logical_shape((48, 144), WEIGHT, (0, 1, 2)) == (40, 136)


def test_a_padded_tensor_without_a_size_is_refused() -> None:
    """A shape that the record does not know is an error that names the layer, never a silent narrowing."""
    with pytest.raises(UnsupportedLayerError, match="down_proj: a tensor of shape \\[160, 224\\]"):
        LayerParts("model.down_proj", (DOWN,)).logical_shape((160, 224), WEIGHT, None)


def test_a_part_that_the_record_leaves_out_is_taken_as_it_is() -> None:
    """Fused with a padded module, an unknown one has no padding."""
    assert LayerParts("qkv_proj", (GATE, None, GATE)).logical_shape((64, 136), WEIGHT, "k") == (64, 136)


def test_a_layer_is_found_by_its_own_name_or_by_its_parts() -> None:
    """Fused on disk, as in Phi-3, a module has the layer's own name; else it is told, or known, what is fused."""
    fused = {"gate_up_proj": ["gate_proj", "up_proj"], "qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    modules = {"model.mlp.gate_proj": GATE, "model.mlp.up_proj": UP, "phi.mlp.gate_up_proj": DOWN, "q_proj": GATE}
    assert find_layer(modules, "model.mlp.gate_up_proj", fused) == LayerParts("model.mlp.gate_up_proj", (GATE, UP))
    assert find_layer(modules, "phi.mlp.gate_up_proj", fused) == LayerParts("phi.mlp.gate_up_proj", (DOWN,))
    assert find_layer(modules, "qkv_proj", fused) == LayerParts("qkv_proj", (GATE, None, None))
    assert find_layer(modules, "model.mlp.down_proj", fused) is None
    assert find_layer(modules, "model.mlp.gate_up_proj", {}) == LayerParts("model.mlp.gate_up_proj", (GATE, UP))


def test_the_alignment_of_a_layer_suits_every_part() -> None:
    """Parts converted at one alignment have it in common; the largest suits all."""
    wider = ModuleRecord((136, 213), (192, 256), (64, 128))
    assert LayerParts("x", (GATE, None, wider)).alignment == (64, 128)


def test_the_last_partition_takes_the_tail_of_n() -> None:
    """Two matrices of 213 rows and 136 columns become 213 and 219 rows of 144 columns."""
    sizes = RankSizes.of([213, 213], 136, (16, 16))
    assert sizes == RankSizes((213, 213), (426,), (432,), 136, 144, False)
    assert sizes.padded_partitions == (213, 219)
    assert (sizes.logical_shape, sizes.padded_shape, sizes.is_padded) == ((426, 136), (432, 144), True)


def test_matrices_that_are_aligned_together_need_no_tail() -> None:
    """Two matrices of 8 rows are 16 together, whatever padding each had on disk."""
    assert not RankSizes.of([8, 8], 144, (16, 16)).is_padded


def test_each_matrix_of_a_block_scaled_layer_has_a_tail_of_its_own() -> None:
    """The scale of row r is in row r // 128: 213 and 215 rows become two times 256."""
    record = LayerParts("gate_up_proj", (GATE_BLOCK, UP_BLOCK))
    sizes = RankSizes.of_blocks([213, 215], 136, record, (128, 128), 1)
    assert sizes == RankSizes((213, 215), (213, 215), (256, 256), 136, 256, True)
    assert sizes.padded_partitions == (256, 256)
    assert sizes.slices == (slice(0, 213), slice(256, 471))


def test_only_the_last_matrix_needs_a_tail_where_the_others_are_whole_blocks() -> None:
    """DeepSeek-V3's fused projection: 1536 and 576 rows, so that the output is the leading 2112 of 2176."""
    parts = ModuleRecord((1536, 7168), (1536, 7168), (128, 128)), ModuleRecord((576, 7168), (640, 7168), (128, 128))
    sizes = RankSizes.of_blocks([1536, 576], 7168, LayerParts("fused_qkv_a_proj", parts), (128, 128), 1)
    assert sizes == RankSizes((1536, 576), (2112,), (2176,), 7168, 7168, False)
    assert sizes.padded_partitions == (1536, 640)


@pytest.mark.parametrize(("partitions", "is_whole"), [([256, 170], False), ([213, 213], True)])
def test_what_the_engine_splits_on_whole_blocks_needs_no_place_of_its_own(
    partitions: list[int], is_whole: bool
) -> None:
    """Fused on disk, 426 rows in one piece either way; vLLM's loaders would tear a block at row 213, not at 256."""
    record = LayerParts("gate_up_proj", (ModuleRecord((426, 128), (512, 128), (128, 128)),))
    sizes = RankSizes.of_blocks(partitions, 128, record, (128, 128), 1)
    assert (sizes.segments, sizes.padded_segments, sizes.is_whole) == ((426,), (512,), is_whole)


def test_a_matrix_that_is_fused_on_disk_stays_in_one_piece() -> None:
    """Its blocks straddle what the engine takes for two matrices; only its end has a tail."""
    record = LayerParts("gate_up_proj", (ModuleRecord((426, 160), (512, 256), (128, 128)),))
    sizes = RankSizes.of_blocks([213, 213], 160, record, (128, 128), 1)
    assert (sizes.segments, sizes.padded_partitions) == ((426,), (512,))


def test_a_share_of_whole_blocks_is_padded_like_any_other() -> None:
    """Half of 512 rows begins at a block; its 136 columns are padded to 256."""
    record = LayerParts("gate_proj", (ModuleRecord((512, 136), (512, 256), (128, 128)),))
    sizes = RankSizes.of_blocks([256], 136, record, (128, 128), 2)
    assert sizes == RankSizes((256,), (256,), (256,), 136, 256, False)


@pytest.mark.parametrize(
    ("partitions", "k", "message"),
    [
        ([14784], 8192, r"\[14784\] rows would begin inside a scale block of 128"),
        ([29568], 4000, "4000 columns .* of 128"),
    ],
)
def test_a_share_that_begins_inside_a_block_is_refused_with_what_helps(
    partitions: list[int], k: int, message: str
) -> None:
    """29568 rows on two ranks are 115.5 blocks each: no padding at load gives a row the right scale."""
    record = LayerParts("model.up_proj", (ModuleRecord((29568, 8192), (29568, 8192), (128, 128)),))
    with pytest.raises(UnsupportedLayerError, match=rf"model.up_proj: .*{message}.*fp8pad convert --absorb -tp 2"):
        RankSizes.of_blocks(partitions, k, record, (128, 128), 2)


def test_parts_of_one_size_are_told_apart_by_their_shard() -> None:
    """Where each part has its own place, two of one shape are told apart by the shard id, or not at all."""
    layer = LayerParts("gate_up_proj", (GATE, GATE))
    assert [layer.position((224, 144), WEIGHT, shard_id) for shard_id in (0, 1)] == [0, 1]
    with pytest.raises(UnsupportedLayerError):
        layer.position((224, 144), WEIGHT, None)
