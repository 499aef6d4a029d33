"""A padded tensor: its shapes before and after, what was done to each axis, and the matrices that lie in it."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from fp8pad.geometry import as_matrices
from fp8pad.reading import PositiveSize, Size

Axis = Literal["n", "k"]  # of a weight `[N, K]`
Disposition = Literal["aligned", "pad", "absorb", "skip"]
Shape = tuple[Size, ...]
FullShape = tuple[PositiveSize, ...]  # of a tensor that has elements: an empty one is never padded, whatever its sizes

# Gate, up and down, or Q, K and V, of each of 1,024 experts are 3,072 segments. Each costs work in every row.
MAX_SEGMENTS = 4096


@dataclass(frozen=True, slots=True)
class AxisActions:
    """What is done to each axis of a weight, or of a tensor that follows it."""

    n: Disposition
    k: Disposition

    @classmethod
    def where_larger(cls, done: Disposition, old: Shape, new: Shape) -> "AxisActions":
        """Return `done` for each axis of a matrix that is larger in `new` than in `old`, else "aligned"."""
        sizes = zip(as_matrices(old)[1:], as_matrices(new)[1:], strict=True)
        return cls(*(done if size != new_size else "aligned" for size, new_size in sizes))

    def and_then(self, other: "AxisActions") -> "AxisActions":
        """Return both actions combined: for each axis that is "aligned" here, that of `other`."""
        pairs = zip(self.both, other.both, strict=True)
        return AxisActions(*(second if first == "aligned" else first for first, second in pairs))

    @property
    def is_padded(self) -> bool:
        """Whether an axis is larger on disk than the config asks for."""
        return "pad" in self.both

    @property
    def is_absorbed(self) -> bool:
        """Whether the config asks for a larger axis."""
        return "absorb" in self.both

    @property
    def both(self) -> tuple[Disposition, Disposition]:
        """What is done to N and to K."""
        return self.n, self.k


@dataclass(frozen=True, slots=True)
class Segments:
    """Several matrices in one tensor along one axis, each padded at its own tail.

    `axis` counts from the end of the tensor's shape; None is the N axis (see `geometry.as_matrices`).
    """

    logical: FullShape
    padded: FullShape
    axis: int | None = None

    def __post_init__(self) -> None:
        """Raise `ValueError` for what is no padding."""
        check_larger(self.logical, self.padded)
        if len(self.logical) > MAX_SEGMENTS:
            raise ValueError(f"expected at most {MAX_SEGMENTS}, got {len(self.logical)}")

    @property
    def matrix_axis(self) -> int:
        """The axis in `geometry.as_matrices`: 1 is N, 2 is K."""
        return 1 if self.axis is None else 3 + self.axis

    @property
    def runs(self) -> Iterator[tuple[int, int, int]]:
        """Where each matrix begins along the axis, before and after padding, and its logical size."""
        begins = accumulate(self.logical, initial=0), accumulate(self.padded, initial=0)
        return zip(*begins, self.logical, strict=False)


@dataclass(frozen=True, slots=True)
class PaddedTensor:
    """One tensor that is larger on disk than in the source: at its tail, or at the tail of each of its segments.

    `fill` is the value of the added elements: 0 for weights and biases, 1 for scales (in the scale's own dtype).
    """

    logical_shape: FullShape
    padded_shape: FullShape
    fill: Literal[0, 1]
    axes: AxisActions
    segments: Segments | None = None

    def __post_init__(self) -> None:
        """Raise `ValueError` for what is no padding."""
        check_larger(self.logical_shape, self.padded_shape)
        if self.segments:
            axis, shapes = self.segments.matrix_axis, map(as_matrices, (self.logical_shape, self.padded_shape))
            sums = sum(self.segments.logical), sum(self.segments.padded)
            if axis not in (1, 2) or sums != tuple(shape[axis] for shape in shapes):
                raise ValueError(f"segments: do not add up to {list(self.logical_shape)}")


def check_larger(logical: Shape, padded: Shape) -> None:
    """Raise `ValueError` if a `padded` shape is smaller than the `logical` one, or has other axes."""
    if len(logical) != len(padded) or any(small > large for small, large in zip(logical, padded, strict=True)):
        raise ValueError(f"{list(logical)} does not fit into its padded {list(padded)}")
