"""Time GPU work by replaying CUDA graphs, candidates in turn, over more data than the L2 cache can hold."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from fp8pad.bench.report import Timing

Call = Callable[[], Any]


def time_in_turn(candidates: Mapping[str, Sequence[Call]], num_replays: int) -> dict[str, Timing]:
    """Time each candidate's calls, one after another in a CUDA graph, and divide by their number.

    The graphs are replayed in turn, so that clock changes affect all candidates equally. A candidate's calls should
    differ in their data and together use more memory than the cache has; `num_replays` is at least 2.
    """
    graphs = {name: _captured(calls) for name, calls in candidates.items()}
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for graph in graphs.values():
        graph.replay()
    for _ in range(num_replays):
        for name, graph in graphs.items():
            samples[name].append(_elapsed_us(graph.replay) / len(candidates[name]))
    return {name: Timing.of(of_candidate) for name, of_candidate in samples.items()}


def _captured(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def _elapsed_us(run: Call) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1000.0


def rotation(bytes_of_one: int, cache_bytes: int, most: int) -> int:
    """Return the number of data sets to cycle through, `most` at most, so that none is in the cache when used again."""
    return min(max(-(-4 * cache_bytes // bytes_of_one), 1), most)
