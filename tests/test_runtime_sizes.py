"""The runtime's arithmetic: what of a tensor from disk is padding, and how large a layer is on one rank."""

import pytest

from fp8pad.errors import UnsupportedLayerError
from fp8pad.record import ModuleRecord
from fp8pad.runtime.sizes import CHANNEL_SCALE, WEIGHT, LayerRecord, RankSizes, Tile, find_layer

GATE = ModuleRecord((213, 136), (224, 144), (16, 16))
UP = ModuleRecord((215, 136), (224, 144), (16, 16))
DOWN = ModuleRecord((136, 213), (144, 224), (16, 16))
BLOCK = Tile(128, 128)


def test_a_tile_says_which_leading_sizes_a_parameter_has() -> None:
    """A weight has the weight's sizes, a channel scale its rows, a block scale a grid that covers it."""
    assert WEIGHT.shape((213, 136)) == (213, 136)
    assert CHANNEL_SCALE.shape((213, 136)) == (213,)
    assert BLOCK.shape((213, 136)) == (2, 2)


def test_a_single_module_is_found_by_its_shape() -> None:
    """The shape on disk gives the logical shape, of a weight and of scales with and without a column axis."""
    layer = LayerRecord("model.mlp.down_proj", (DOWN,))
    assert layer.logical_shape((144, 224), WEIGHT, None) == (136, 213)
    assert layer.logical_shape((144, 1), CHANNEL_SCALE, None) == (136,)
    assert layer.logical_shape((144,), CHANNEL_SCALE, None) == (136,)


def test_a_tensor_without_padding_is_itself() -> None:
    """A trainer sends tensors of logical sizes; nothing is cut from them."""
    assert LayerRecord("down_proj", (DOWN,)).logical_shape((136, 213), WEIGHT, None) == (136, 213)


def test_the_shard_id_decides_between_parts_of_one_padded_shape() -> None:
    """Parts of 213 and 215 rows are both 224 on disk: by position, or by letter in a fused QKV."""
    assert LayerRecord("gate_up_proj", (GATE, UP)).logical_shape((224, 144), WEIGHT, 1) == (215, 136)
    assert LayerRecord("qkv_proj", (UP, GATE, GATE)).logical_shape((224, 144), WEIGHT, "k") == (213, 136)


@pytest.mark.parametrize("shard_id", [None, (0, 1), 2, "index_q"])
def test_a_shard_id_that_names_no_part_is_refused_where_it_must_decide(shard_id: object) -> None:
    """Guessing between two sizes would load the wrong rows."""
    with pytest.raises(UnsupportedLayerError, match=r"gate_up_proj.*\[224, 144\]"):
        LayerRecord("gate_up_proj", (GATE, UP)).logical_shape((224, 144), WEIGHT, shard_id)  # type: ignore[arg-type]


def test_a_tuple_of_shards_is_found_by_its_shape() -> None:
    """Some models load several matrices from one tensor, with a tuple of ids that are no positions."""
    layer = LayerRecord("in_proj_qkvz", (ModuleRecord((40, 136), (48, 144), (16, 16)), GATE))
    assert layer.logical_shape((48, 144), WEIGHT, (0, 1, 2)) == (40, 136)


def test_a_padded_tensor_without_a_size_is_refused() -> None:
    """A shape that the record does not know is an error that names the layer, never a silent narrowing."""
    with pytest.raises(UnsupportedLayerError, match="down_proj: a tensor of shape \\[160, 224\\]"):
        LayerRecord("model.down_proj", (DOWN,)).logical_shape((160, 224), WEIGHT, None)


def test_a_part_that_the_record_leaves_out_is_taken_as_it_is() -> None:
    """Fused with a padded module, an unknown one has no padding."""
    assert LayerRecord("qkv_proj", (GATE, None, GATE)).logical_shape((64, 136), WEIGHT, "k") == (64, 136)


def test_a_layer_is_found_by_its_own_name_or_by_its_parts() -> None:
    """Fused on disk, as in Phi-3, a module has the layer's own name; else the engine says what it fuses."""
    fused = {"gate_up_proj": ["gate_proj", "up_proj"], "qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    modules = {"model.mlp.gate_proj": GATE, "model.mlp.up_proj": UP, "phi.mlp.gate_up_proj": DOWN, "q_proj": GATE}
    assert find_layer(modules, "model.mlp.gate_up_proj", fused) == LayerRecord("model.mlp.gate_up_proj", (GATE, UP))
    assert find_layer(modules, "phi.mlp.gate_up_proj", fused) == LayerRecord("phi.mlp.gate_up_proj", (DOWN,))
    assert find_layer(modules, "qkv_proj", fused) == LayerRecord("qkv_proj", (GATE, None, None))
    assert find_layer(modules, "model.mlp.down_proj", fused) is None


def test_the_alignment_of_a_layer_suits_every_part() -> None:
    """Parts converted at one alignment have it in common; the largest suits all."""
    wider = ModuleRecord((136, 213), (192, 256), (64, 128))
    assert LayerRecord("x", (GATE, None, wider)).alignment == (64, 128)


def test_the_last_partition_takes_the_tail_of_n() -> None:
    """Two matrices of 213 rows and 136 columns become 213 and 219 rows of 144 columns."""
    sizes = RankSizes.of([213, 213], 136, (16, 16))
    assert sizes == RankSizes((213, 213), 136, 432, 144)
    assert sizes.padded_partitions == (213, 219)
    assert (sizes.logical_shape, sizes.padded_shape, sizes.is_padded) == ((426, 136), (432, 144), True)


def test_matrices_that_are_aligned_together_need_no_tail() -> None:
    """Two matrices of 8 rows are 16 together, whatever padding each had on disk."""
    assert not RankSizes.of([8, 8], 144, (16, 16)).is_padded
