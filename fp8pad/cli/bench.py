"""`fp8pad bench`: time the runtime's layer on this GPU against vLLM's own."""

import os
from typing import TYPE_CHECKING

from fp8pad.cli import options
from fp8pad.errors import EngineError, PlanError

if TYPE_CHECKING:
    from fp8pad.bench.shapes import LayerShape


def bench(
    model: options.BenchModelArgument = None,
    *,
    tokens: options.TokensOption = None,
    tensor_parallel_size: options.BenchRanksOption = 1,
    replays: options.ReplaysOption = 21,
    as_json: options.JsonOption = False,
) -> None:
    """Time FP8 layers on this GPU.

    Aligned, padded by vLLM, padded by fp8pad, and absorbed.
    """
    try:
        from fp8pad.bench.run import bench as run_bench
    except ImportError as error:
        raise EngineError(f"fp8pad bench: {error}; it needs torch and vLLM with a GPU") from error
    from fp8pad.bench.shapes import REAL_SHAPES, TOKEN_COUNTS
    from fp8pad.render.bench import bench_screen, tell_case
    from fp8pad.render.terminal import show

    shapes = _shapes(model, tensor_parallel_size) if model else REAL_SHAPES
    report = run_bench(shapes, tokens or TOKEN_COUNTS, tell_case, replays)
    show(report, bench_screen, as_json)


def _shapes(model: str | os.PathLike[str], tensor_parallel_size: int) -> "tuple[LayerShape, ...]":
    """Return the unaligned shapes of a checkpoint's FP8 layers on one rank, each shape once.

    Raises `PlanError` if there are none.
    """
    from fp8pad.bench.shapes import LayerShape
    from fp8pad.library import plan

    shapes: dict[tuple[int, int], LayerShape] = {}
    for name, layer in plan(model).plan.layers:
        part = layer.part(tensor_parallel_size)
        if part.num_n and part.num_k:
            shapes.setdefault((part.num_n, part.num_k), LayerShape(name, part.num_n, part.num_k))
    unaligned = tuple(shape for shape in shapes.values() if not shape.is_aligned)
    if not unaligned:
        raise PlanError(
            f"{model}: every FP8 layer is aligned at TP {tensor_parallel_size}, so there is nothing to compare"
        )
    return unaligned
