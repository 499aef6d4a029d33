"""Integer arithmetic on sizes and shapes; nothing here knows what a tensor is."""

from collections.abc import Sequence


def round_up(size: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is at least `size`."""
    return -(-size // multiple) * multiple


def num_blocks(size: int, block: int) -> int:
    """Return the number of blocks of `block` elements that cover `size` elements; the last one may be partial."""
    return -(-size // block)


def is_aligned(shape: Sequence[int], alignment: Sequence[int]) -> bool:
    """Return whether each size of `shape` is a multiple of its entry in `alignment`."""
    return all(size % multiple == 0 for size, multiple in zip(shape, alignment, strict=True))


def padded_shape(logical_shape: Sequence[int], alignment: Sequence[int]) -> tuple[int, ...]:
    """Round each size of `logical_shape` up to a multiple of its entry in `alignment`."""
    return tuple(round_up(size, multiple) for size, multiple in zip(logical_shape, alignment, strict=True))


def as_matrices(shape: Sequence[int]) -> tuple[int, int, int]:
    """View a tensor of `shape` as `(num_matrices, N, K)`; a vector is one matrix of a single column.

    `[R, 1, C, 1]` is a grid of block scales as NVIDIA ModelOpt writes it. Raises `ValueError` for any other shape.
    """
    match tuple(shape):
        case ():
            return 1, 1, 1
        case (n,):
            return 1, n, 1
        case (n, k):
            return 1, n, k
        case (num_matrices, n, k):
            return num_matrices, n, k
        case (n, 1, k, 1):
            return 1, n, k
    raise ValueError(f"a shape of {len(shape)} sizes is not a stack of matrices: {list(shape)}")
