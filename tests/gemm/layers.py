"""One layer in two forms, original and padded: `activations @ weight.T * scale + bias` of both, compared.

The runtime gives the padded columns zeros; here they get the largest activation, so that the weight's own zeros must
have the effect. `gemm.products` explains why the sums are equal; scales and bias are applied element by element, in the
same order for both forms.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from zlib import crc32

import numpy as np

from fp8pad.checkpoint.checkpoint import Checkpoint
from fp8pad.geometry import as_matrices
from fp8pad.padded import PaddedTensor
from fp8pad.planning.linear import Fp8Linear
from fp8pad.scales import PerBlock
from fp8pad.tensors import TensorHeader
from gemm.float8 import Bytes, Floats, scale_values
from gemm.products import (
    MAX_ACTIVATION,
    Arithmetic,
    Operands,
    Positions,
    on_disk,
    output,
    padded_in_memory,
)


@dataclass(frozen=True, slots=True)
class Form:
    """A checkpoint, by tensor: its file, the byte at which it begins, and its header."""

    root: Path
    tensors: Mapping[str, tuple[str, int, TensorHeader]]

    @classmethod
    def of(cls, source: Checkpoint) -> "Form":
        """Return the positions of a checkpoint's tensors."""
        tensors = {
            tensor.name: (shard.file, shard.data_start + tensor.begin, tensor)
            for shard in source.shards
            for tensor in shard.tensors
        }
        return cls(source.root, tensors)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor, or None if there is no such tensor."""
        return self.tensors[name][2].shape if name in self.tensors else None

    def values(self, name: str) -> Floats:
        """Read a scale or a bias, flat."""
        file, begin, tensor = self.tensors[name]
        data: Bytes = np.fromfile(self.root / file, np.uint8, tensor.num_bytes, offset=begin)
        return scale_values(tensor.dtype, data)

    def operands(self, linear: Fp8Linear, rows: Positions | None = None) -> list[Operands]:
        """Return the operands of a layer: one, or one for each of the experts that its weight stacks.

        If the bias has only logical elements, `rows` says to which rows of the weight they belong.
        """
        file, begin, tensor = self.tensors[linear.weight.name]
        num_matrices, num_n, num_k = as_matrices(tensor.shape)
        begins = (begin + index * num_n * num_k for index in range(num_matrices))
        matrices = [on_disk(self.root / file, at, tensor.dtype, num_n, num_k) for at in begins]
        block_k = linear.granularity.k if isinstance(linear.granularity, PerBlock) else num_k
        bias = self._bias(linear, num_n, rows)
        return [Operands(matrix, self._scales(linear, num_n, num_k), block_k, bias) for matrix in matrices]

    def _scales(self, linear: Fp8Linear, num_n: int, num_k: int) -> Floats:
        """Return the scale of each row in each block of columns, `[N, num_blocks]`.

        Scales of an unknown layout are 1 here, since they are compared only as bytes.
        """
        if linear.scale is None or linear.granularity is None:
            return np.ones((num_n, 1))
        values = self.values(linear.scale.name)
        if isinstance(linear.granularity, PerBlock):
            grid = values.reshape(linear.granularity.scale_shape((num_n, num_k)))
            return grid[np.arange(num_n) // linear.granularity.n]
        return np.broadcast_to(values.reshape(-1, 1), (num_n, 1))

    def _bias(self, linear: Fp8Linear, num_n: int, rows: Positions | None) -> Floats:
        bias = np.zeros(num_n)
        name = f"{linear.name}.bias"
        if name in self.tensors:
            values = self.values(name)
            bias[slice(None) if len(values) == num_n or rows is None else rows] = values
        return bias


@dataclass(frozen=True, slots=True)
class LayerPair:
    """One layer in both forms; `padded` is the record of every padded tensor in fp8pad.json."""

    linear: Fp8Linear
    before: Form
    after: Form
    padded: Mapping[str, PaddedTensor]

    def first_mismatch(self, arithmetic: Arithmetic, num_tokens: int, seed: int) -> str | None:
        """Multiply both with `num_tokens` rows of activations; return the first difference, or None."""
        if mismatch := self._wrong_shape():
            return mismatch
        with np.errstate(invalid="ignore", over="ignore"):  # a weight or a scale may be infinite or NaN
            return self._first_difference(arithmetic, num_tokens, seed)

    def _first_difference(self, arithmetic: Arithmetic, num_tokens: int, seed: int) -> str | None:
        name = self.linear.weight.name
        rows, columns = positions(self.padded[name], 1), positions(self.padded[name], 2)
        activations = seeded_activations(num_tokens, len(columns), crc32(name.encode()) ^ seed)
        forms = zip(self.before.operands(self.linear), self.after.operands(self.linear, rows), strict=True)
        for logical, padded in forms:
            spread = np.full((num_tokens, padded.weight.num_k), float(MAX_ACTIVATION))
            spread[:, columns] = activations
            if arithmetic.takes_any_shape:
                expected = np.zeros((num_tokens, padded.weight.num_n))
                expected[:, rows] = output(logical, activations, arithmetic)
            else:
                expected = output(padded_in_memory(logical, padded, rows, columns), spread, arithmetic)
            if mismatch := _first_difference(expected, output(padded, spread, arithmetic), rows):
                return mismatch
        return None

    def _wrong_shape(self) -> str | None:
        """Return where the headers differ from fp8pad.json, because then nothing can be multiplied."""
        scale = self.linear.scale
        for name in (self.linear.weight.name, scale.name if scale else "", f"{self.linear.name}.bias"):
            if (shape := self.before.shape(name)) is None:
                continue
            record = self.padded.get(name)
            expected = (record.logical_shape, record.padded_shape) if record else (shape, shape)
            if (found := (shape, self.after.shape(name))) != expected:
                return f"{name}: expected shapes {_listed(*expected)} before and after, got {_listed(*found)}"
        return None


def positions(tensor: PaddedTensor, axis: int) -> Positions:
    """Return the positions in the padded tensor of the logical indices of a matrix axis, 1 for N and 2 for K."""
    size = as_matrices(tensor.logical_shape)[axis]
    segments = tensor.segments
    if segments is None or segments.matrix_axis != axis:
        return np.arange(size)
    begins = accumulate(segments.padded, initial=0)
    pieces = (np.arange(num) + begin for num, begin in zip(segments.logical, begins, strict=False))
    return np.concatenate(list(pieces))


def seeded_activations(num_tokens: int, num_k: int, seed: int) -> Floats:
    """Return integers in `[-MAX_ACTIVATION, MAX_ACTIVATION]`, `[M, K]`; E4M3 represents all of them exactly."""
    choose = np.random.default_rng(seed)
    return choose.integers(-MAX_ACTIVATION, MAX_ACTIVATION, (num_tokens, num_k), endpoint=True).astype(np.float64)


def _first_difference(expected: Floats, got: Floats, rows: Positions) -> str | None:
    """Return the first output that differs, by token and row; NaN equals NaN."""
    differs = (expected != got) & ~(np.isnan(expected) & np.isnan(got))
    if not differs.any():
        return None
    token, row = (int(index) for index in np.argwhere(differs)[0])
    logical = int(np.searchsorted(rows, row))
    is_logical = logical < len(rows) and rows[logical] == row
    place = f"row {logical}" if is_logical else f"padded row {row}"
    return f"token {token}, {place}: expected {float(expected[token, row])!r}, got {float(got[token, row])!r}"


def _listed(*shapes: tuple[int, ...] | None) -> str:
    return " and ".join("none" if shape is None else str(list(shape)) for shape in shapes)
