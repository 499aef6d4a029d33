"""Run the benchmark: every layer at every number of tokens, all candidates in turn."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch

from fp8pad.bench.candidates import CANDIDATES, DTYPE, Forward, make_forward, vllm_operators
from fp8pad.bench.report import Case, Machine, Report
from fp8pad.bench.shapes import LayerShape
from fp8pad.bench.timing import Call, rotation, time_in_turn
from fp8pad.errors import EngineError

MOST_SETS = 64


def bench(
    shapes: Sequence[LayerShape], token_counts: Sequence[int], tell: Callable[[Case], None], num_replays: int
) -> Report:
    """Time `shapes` at each of `token_counts`; `tell` is called with each finished case.

    Raises `EngineError` if there is no CUDA device, or vLLM's CUTLASS kernel does not support it.
    """
    _check_device()
    cases: list[Case] = []
    with torch.inference_mode(), vllm_operators():
        for shape in shapes:
            for case in _cases(shape, token_counts, num_replays):
                tell(case)
                cases.append(case)
    return Report(Machine.here(), str(DTYPE).removeprefix("torch."), tuple(cases))


def _check_device() -> None:
    if not torch.cuda.is_available():
        raise EngineError("fp8pad bench: expected a CUDA device, found none")
    from vllm.model_executor.kernels.linear.scaled_mm.cutlass import CutlassFP8ScaledMMLinearKernel

    supported, reason = CutlassFP8ScaledMMLinearKernel.is_supported()
    if not supported:
        raise EngineError(f"fp8pad bench: {torch.cuda.get_device_name()}: {reason}")


def _cases(shape: LayerShape, token_counts: Sequence[int], num_replays: int) -> Iterator[Case]:
    num_layers = _num_sets(shape, min(token_counts))
    layers = {name: [make_forward(name, shape) for _ in range(num_layers)] for name in CANDIDATES}
    for num_tokens in token_counts:
        num_sets = _num_sets(shape, num_tokens)
        calls = {name: _calls(forwards[:num_sets], num_tokens) for name, forwards in layers.items()}
        yield Case(shape, num_tokens, time_in_turn(calls, num_replays))


def _calls(forwards: Sequence[tuple[Forward, int]], num_tokens: int) -> list[Call]:
    return [partial(forward, torch.randn(num_tokens, k, device="cuda", dtype=DTYPE)) for forward, k in forwards]


def _num_sets(shape: LayerShape, num_tokens: int) -> int:
    bytes_of_one = shape.n * shape.k + num_tokens * (shape.n + shape.k) * DTYPE.itemsize
    return rotation(bytes_of_one, torch.cuda.get_device_properties(0).L2_cache_size, MOST_SETS)
