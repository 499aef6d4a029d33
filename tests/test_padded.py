"""A padded tensor: what was done to its axes, where its matrices begin, and what is no padding."""

from collections.abc import Callable

import pytest

from fp8pad.padded import AxisActions, PaddedTensor, Segments
from fp8pad.reading import to_json

PADDED = AxisActions("pad", "aligned")


def test_actions_are_where_a_shape_grew() -> None:
    """A vector is one matrix of one column; of two actions, the first that does anything counts."""
    padded = AxisActions.where_larger("pad", (21, 24), (32, 24))
    assert padded == AxisActions("pad", "aligned")
    assert AxisActions.where_larger("absorb", (4, 8, 21), (4, 8, 32)) == AxisActions("aligned", "absorb")
    assert AxisActions.where_larger("pad", (21,), (32,)) == padded
    assert AxisActions("absorb", "aligned").and_then(AxisActions("pad", "pad")).both == ("absorb", "pad")


def test_segments_count_their_axis_from_the_end() -> None:
    """None means the N axis, which segments nearly always divide."""
    assert [Segments((), (), axis).matrix_axis for axis in (None, -2, -1)] == [1, 1, 2]
    assert "axis" not in to_json(Segments((3,), (4,)))


def test_each_segment_begins_where_the_one_before_ends() -> None:
    """Before and after padding, with its logical size."""
    assert list(Segments((3, 5), (4, 8)).runs) == [(0, 0, 3), (3, 4, 5)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PaddedTensor((2, 3), (2, 2), 0, PADDED), r"^\[2, 3\] does not fit into its padded \[2, 2\]$"),
        (lambda: PaddedTensor((2,), (2, 2), 0, PADDED), r"^\[2\] does not fit into its padded \[2, 2\]$"),
        (lambda: Segments((3, 5), (4, 4)), r"^\[3, 5\] does not fit into its padded \[4, 4\]$"),
        (lambda: Segments((1,) * 4097, (1,) * 4097), "^expected at most 4096, got 4097$"),
        (lambda: PaddedTensor((9, 3), (12, 3), 0, PADDED, Segments((3, 5), (4, 8))), "do not add up"),
        (lambda: PaddedTensor((8, 3), (11, 3), 0, PADDED, Segments((3, 5), (4, 8))), "do not add up"),
        (lambda: PaddedTensor((8, 3), (12, 3), 0, PADDED, Segments((3, 5), (4, 8), -1)), "do not add up"),
        (lambda: PaddedTensor((8, 3), (12, 3), 0, PADDED, Segments((3, 5), (4, 8), -3)), "do not add up"),
    ],
)
def test_what_is_no_padding_is_refused(make: Callable[[], object], message: str) -> None:
    """It cannot be made, so nobody has to check it again."""
    with pytest.raises(ValueError, match=message):
        make()
