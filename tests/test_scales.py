"""What one scale belongs to, and the shapes in which tools store scales."""

from itertools import combinations
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from fp8pad.scales import Granularity, Order, PerBlock, PerChannel, PerTensor, resized_scale, stored_scale_shapes

SIZES = st.integers(2, 300)
BLOCKS = st.builds(PerBlock, st.integers(1, 130), st.integers(1, 130))


@given(
    granularity=st.one_of(st.sampled_from([PerTensor(), PerChannel()]), BLOCKS),
    order=st.sampled_from(get_args(Order)),
    matrix=st.tuples(SIZES, SIZES),
    larger=st.tuples(SIZES, SIZES),
    stack=st.sampled_from([(), (1,), (2,), (8,)]),
)
def test_a_scale_keeps_its_layout_if_its_weight_is_resized(
    granularity: Granularity, order: Order, matrix: tuple[int, int], larger: tuple[int, int], stack: tuple[int, ...]
) -> None:
    """Only its shape tells in which of the stored layouts a scale is: layouts of equal shapes must stay equal.

    Except for stacks of matrices of one row, whose scales per channel could be rows or columns.
    """
    weight, resized = (*stack, *matrix), (*stack, *larger)
    stored, after = (stored_scale_shapes(granularity, shape, order) for shape in (weight, resized))
    assert [resized_scale(granularity, shape, weight, resized, order) for shape in stored] == list(after)
    assert all(
        after[one] == after[other] for one, other in combinations(range(len(stored)), 2) if stored[one] == stored[other]
    )
