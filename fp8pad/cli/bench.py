"""`fp8pad bench`: time the runtime's layer on this GPU against vLLM's own."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fp8pad.errors import EngineError, PlanError

if TYPE_CHECKING:
    from fp8pad.bench.shapes import LayerShape

ModelArgument = Annotated[
    Path | None, typer.Argument(metavar="MODEL", help="Time this checkpoint's unaligned layers, not the usual ones.")
]
TokensOption = Annotated[
    list[int] | None, typer.Option("--tokens", "-m", metavar="M", min=1, help="Tokens of a call; can be repeated.")
]
ReplaysOption = Annotated[int, typer.Option("--replays", metavar="N", min=2, help="Replays of each CUDA graph.")]
TensorParallelSizeOption = Annotated[
    int,
    typer.Option("--tensor-parallel-size", "-tp", metavar="N", min=1, help="Time what one of N ranks of MODEL does."),
]
ChartOption = Annotated[
    Path | None, typer.Option("--chart", metavar="FILE", help="Draw it too (.svg, .png, .pdf); needs matplotlib.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")]


def bench(
    model: ModelArgument = None,
    *,
    tokens: TokensOption = None,
    tensor_parallel_size: TensorParallelSizeOption = 1,
    replays: ReplaysOption = 21,
    chart: ChartOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time FP8 layers on this GPU: aligned, with vLLM's own padding, with fp8pad's, and absorbed."""
    try:
        from fp8pad.bench.run import bench as run_bench

        if chart:
            from fp8pad.bench.chart import draw_layers
    except ImportError as error:
        raise EngineError(
            f"fp8pad bench: {error}; install fp8pad[vllm] beside a GPU, and fp8pad[chart] for --chart"
        ) from error
    from fp8pad.bench.shapes import REAL_SHAPES, TOKEN_COUNTS
    from fp8pad.render.bench import show_bench, tell_case

    shapes = _shapes(model, tensor_parallel_size) if model else REAL_SHAPES
    report = run_bench(shapes, tokens or TOKEN_COUNTS, tell_case, replays)
    show_bench(report, as_json)
    if chart:
        draw_layers(report, chart)


def _shapes(model: Path, tensor_parallel_size: int) -> "tuple[LayerShape, ...]":
    """Return the unaligned shapes of a checkpoint's FP8 layers, as a rank holds them, each once.

    Raises `PlanError` if there is none.
    """
    from fp8pad.bench.shapes import LayerShape
    from fp8pad.checkpoint.checkpoint import CONFIG_FILE, read_unconverted
    from fp8pad.planning import plan_checkpoint
    from fp8pad.planning.families import sections_of
    from fp8pad.planning.tensor_parallel import rank_shape
    from fp8pad.record import Policy

    source = read_unconverted(model)
    sections = sections_of(source.configs[CONFIG_FILE])
    shapes: dict[tuple[int, int], LayerShape] = {}
    for layer in plan_checkpoint(source.shards, source.configs, Policy()).layers:
        num_n, num_k = rank_shape(layer, tensor_parallel_size, sections)
        if num_n and num_k:
            shapes.setdefault((num_n, num_k), LayerShape(layer.name, num_n, num_k))
    unaligned = tuple(shape for shape in shapes.values() if not shape.is_aligned)
    if not unaligned:
        raise PlanError(
            f"{model}: every FP8 layer is aligned at TP {tensor_parallel_size}: there is nothing to compare"
        )
    return unaligned
