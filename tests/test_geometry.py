"""Integer arithmetic on sizes, with literal numbers and for all small ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fp8pad.geometry import as_matrices, is_aligned, num_blocks, padded_shape, round_up

SIZES, MULTIPLES = st.integers(0, 10**12), st.integers(1, 4096)


@pytest.mark.parametrize(
    ("size", "multiple", "rounded"), [(3420, 16, 3424), (3424, 16, 3424), (13653, 16, 13664), (29568, 256, 29696)]
)
def test_sizes_of_real_models_round_up(size: int, multiple: int, rounded: int) -> None:
    """The sizes of real models that fp8pad was made for."""
    assert round_up(size, multiple) == rounded


@given(SIZES, MULTIPLES)
def test_rounding_up_gives_the_least_multiple_that_is_large_enough(size: int, multiple: int) -> None:
    """Rounded sizes are multiples, and less than one multiple too large."""
    rounded = round_up(size, multiple)
    assert rounded % multiple == 0
    assert 0 <= rounded - size < multiple


@given(SIZES, MULTIPLES)
def test_blocks_cover_a_size_the_last_one_perhaps_in_part(size: int, block: int) -> None:
    """One block fewer would not be enough."""
    assert (num_blocks(size, block) - 1) * block < size <= num_blocks(size, block) * block


@given(st.lists(SIZES, max_size=4), st.data())
def test_padded_shapes_are_aligned(shape: list[int], data: st.DataObject) -> None:
    """Padding aligns every axis, and changes nothing that was aligned."""
    alignment = data.draw(st.lists(MULTIPLES, min_size=len(shape), max_size=len(shape)))
    padded = padded_shape(shape, alignment)
    assert is_aligned(padded, alignment)
    assert padded_shape(padded, alignment) == padded


@pytest.mark.parametrize(
    ("shape", "matrices"),
    [
        ((), (1, 1, 1)),
        ((5,), (1, 5, 1)),
        ((5, 7), (1, 5, 7)),
        ((3, 5, 7), (3, 5, 7)),
        ((5, 1, 7, 1), (1, 5, 7)),
    ],
)
def test_tensors_are_viewed_as_stacks_of_matrices(shape: tuple[int, ...], matrices: tuple[int, int, int]) -> None:
    """Scalars, vectors, weights, stacked experts and ModelOpt's grids of block scales."""
    assert as_matrices(shape) == matrices


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 1, 1, 1)])
def test_other_shapes_are_no_matrices(shape: tuple[int, ...]) -> None:
    """A convolution's weight is refused, not flattened."""
    with pytest.raises(ValueError, match="not a stack of matrices"):
        as_matrices(shape)
