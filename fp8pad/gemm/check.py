"""Choosing layers, multiplying them, reporting."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fp8pad.checkpoint.checkpoint import CONFIG_FILE, read_checkpoint, read_record, read_unconverted
from fp8pad.checkpoint.progress import Progress
from fp8pad.errors import CheckpointError
from fp8pad.gemm.layers import Form, LayerPair
from fp8pad.gemm.products import MAX_EXACT_K, Arithmetic, best_arithmetic
from fp8pad.planning.layers import Fp8Linear, recognise
from fp8pad.planning.quantization import find_quantization


@dataclass(frozen=True, slots=True)
class GemmOptions:
    """Which weights are multiplied, with what: `num_layers` None is all of them; `num_tokens` is M."""

    num_layers: int | None = 16
    num_tokens: int = 16
    seed: int = 0


@dataclass(frozen=True, slots=True)
class GemmResult:
    """One weight, and the first thing that differs; None if nothing does."""

    name: str
    logical_shape: tuple[int, ...]
    padded_shape: tuple[int, ...]
    mismatch: str | None


@dataclass(frozen=True, slots=True)
class GemmReport:
    """What was multiplied, of `num_padded` padded FP8 weights in all, and in which arithmetic."""

    arithmetic: str
    num_padded: int
    results: tuple[GemmResult, ...]

    @property
    def ok(self) -> bool:
        """Whether every product is equal."""
        return not any(result.mismatch for result in self.results)

    def to_json(self) -> dict[str, Any]:
        """Return what `verify --gemm --json` adds, under `gemm`."""
        return {"ok": self.ok, **asdict(self)}


def verify_gemm(
    model_dir: Path, out_dir: Path, options: GemmOptions, progress: Progress, arithmetic: Arithmetic | None = None
) -> GemmReport:
    """Multiply padded FP8 weights of `out_dir`, and those of `model_dir` that they were made from, and compare.

    `arithmetic` None is the best that this machine has. A layer at a time, rows in pieces: memory does not grow with
    the checkpoint. Raises `CheckpointError` if either folder cannot be read as a checkpoint, `RecordError` if
    fp8pad.json is missing or malformed.
    """
    source, converted = read_unconverted(model_dir), read_checkpoint(out_dir)
    record = read_record(converted)
    tensors = {tensor.name: tensor for shard in source.shards for tensor in shard.tensors}
    linears, _ = recognise(tensors, find_quantization(source.configs), source.configs[CONFIG_FILE])
    padded = record.tensors if record else {}
    candidates = [linear for linear in linears if linear.weight.name in padded]
    chosen = sample(candidates, options.num_layers, options.seed)
    arithmetic = arithmetic or best_arithmetic(frozenset(linear.weight.dtype for linear in chosen))
    before, after = Form.of(source), Form.of(converted)
    results = []
    progress.start("multiplying", sum(linear.weight.num_bytes for linear in chosen))
    for linear in chosen:
        _check_width(linear)
        shapes = padded[linear.weight.name]
        pair = LayerPair(linear, before, after, padded)
        mismatch = pair.first_mismatch(arithmetic, options.num_tokens, options.seed)
        results.append(GemmResult(linear.weight.name, shapes.logical_shape, shapes.padded_shape, mismatch))
        progress.advance(linear.weight.num_bytes)
    return GemmReport(arithmetic.name, len(candidates), tuple(results))


def sample(linears: Sequence[Fp8Linear], num_layers: int | None, seed: int) -> list[Fp8Linear]:
    """Choose layers, seeded: one of each shape first, then any; all of them where `num_layers` is None."""
    shuffled = random.Random(seed).sample(linears, len(linears))  # noqa: S311 - a sample is no secret
    firsts = {linear.weight.shape: linear.name for linear in reversed(shuffled)}.values()
    chosen = sorted(shuffled, key=lambda linear: linear.name not in firsts)[:num_layers]
    return sorted(chosen, key=lambda linear: linear.name)


def _check_width(linear: Fp8Linear) -> None:
    num_k = linear.weight.shape[-1]
    if num_k > MAX_EXACT_K:
        raise CheckpointError(f"{linear.weight.name}: {num_k} columns are more than the {MAX_EXACT_K} of exact sums")
