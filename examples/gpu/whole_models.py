"""Whole models on this GPU: do stock vLLM, the runtime and an absorbed checkpoint give equal answers, and how fast?

    python examples/gpu/whole_models.py -o docs/benchmarks/whole-models-h100.json --modes eager compiled

Writes synthetic checkpoints of real sizes, converts them twice, serves all forms of all models at the same time, each
in a process of its own, and runs them in turn. Exit status 1 if an eager answer differs in a token or in any bit of a
logprob; compiled answers are compared too, and their differences are reported. Needs fp8pad and vLLM in one
environment.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from agreement import compare
from checkpoints import make_checkpoints, needs_plugin, parse, served_by
from engine import Engine, EngineError, options_for, prompt_ids
from synthetic import MODELS

# Batches that every engine runs: seed, prompts in the batch, tokens per prompt.
SHORT_BATCHES = [
    (seed, batch, length) for seed in (1, 2, 3) for batch, length in ((1, 7), (1, 512), (5, 33), (16, 130))
]
BATCHES = (*SHORT_BATCHES, (1, 1, 2048), (1, 2, 4000))
TTFT_TOKENS = (512, 2048, 8000)
TPOT_BATCHES = (1, 32)
TPOT_STEPS = 32
ENCODER_IMAGES = ((1, 448), (1, 1036), (4, 1036))
PROFILED_TOKENS = 8000
EAGER = "stock, eager"

Engines = Mapping[str, Engine]


@contextmanager
def served(paths: Mapping[str, Mapping[str, Path]], options: Mapping[str, Any]) -> Iterator[dict[str, dict[str, Any]]]:
    """Start an engine for each form of each model, all at once, and yield the engines with their layer counts.

    Only the runtime's engine may load plugins. An absorbed form that is padded too is left out; a form that vLLM
    refuses has the reason instead of an engine. For compiled engines, an eager one of the original is added, to show
    how much compiling changes by itself.
    """
    forms = [
        (name, kind, path)
        for name, paths_of_model in paths.items()
        for kind, path in paths_of_model.items()
        if kind == "runtime" or not needs_plugin(path)
    ]
    if not options["engine"]["enforce_eager"]:
        forms += [(name, EAGER, paths_of_model["stock"]) for name, paths_of_model in paths.items()]
    engines = {(name, kind): Engine(stock=kind != "runtime", **options["ranks"]) for name, kind, _ in forms}
    try:
        for name, kind, path in forms:
            arguments = {**options["engine"], **options_for(path)} | ({"enforce_eager": True} if kind == EAGER else {})
            engines[name, kind].send("start", model=str(path), **arguments)
        started: dict[str, dict[str, Any]] = {name: {} for name in paths}
        for (name, kind), engine in engines.items():
            try:
                started[name][kind] = engine, engine.receive()
            except EngineError as error:
                started[name][kind] = None, {"refused": str(error)}
        yield started
    finally:
        for engine in engines.values():
            engine.close()


def measure(engines: Engines, samples: int, *, images: bool) -> list[dict[str, Any]]:
    """Time every engine in turn, `samples` times, at each prompt length and batch size."""
    rows = []
    for length in TTFT_TOKENS:
        timings = _in_turn(engines, samples, "seconds", max_tokens=1, prompts=[prompt_ids(length, 1)])
        rows.append({"figure": "ttft_ms", "num_tokens": length, **_summaries(timings)})
    for batch in TPOT_BATCHES:
        timings = _step_times(engines, samples, batch)
        rows.append({"figure": "tpot_ms", "batch": batch, **_summaries(timings)})
    for number, size in ENCODER_IMAGES if images else ():
        timings = _in_turn(engines, samples, "encoder_seconds", images=number, size=size)
        rows.append({"figure": "encoder_ms", "num_images": number, "pixels": size, **_summaries(timings)})
    return rows


def _step_times(engines: Engines, samples: int, batch: int) -> dict[str, list[float]]:
    """Return the time per token after the first: that of a whole answer, less the median of one-token answers."""
    prompts = [prompt_ids(16, number) for number in range(batch)]
    first = _in_turn(engines, samples, "seconds", max_tokens=1, prompts=prompts)
    whole = _in_turn(engines, samples, "seconds", max_tokens=1 + TPOT_STEPS, prompts=prompts)
    return {kind: [(value - median(first[kind])) / TPOT_STEPS for value in values] for kind, values in whole.items()}


def _in_turn(engines: Engines, samples: int, request: str, **arguments: Any) -> dict[str, list[float]]:
    """Run a request on each engine in turn, twice to warm up, then `samples` times, and return the seconds of each."""
    for engine in engines.values():
        for _ in range(2):
            engine.run(request, **arguments)
    taken: dict[str, list[float]] = {kind: [] for kind in engines}
    for _ in range(samples):
        for kind, engine in engines.items():
            taken[kind].append(engine.run(request, **arguments))
    return taken


def _summaries(seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    return {"timings": {kind: _summary_ms(values) for kind, values in seconds.items()}}


def _summary_ms(seconds: list[float]) -> dict[str, float]:
    lower, middle, upper = (round(1000 * value, 4) for value in quantiles(seconds, n=4, method="inclusive"))
    return {"median": middle, "lower": lower, "upper": upper, "num_samples": len(seconds)}


def profile(engines: Engines) -> dict[str, Any]:
    """Return the GPU time of one long prompt by kernel, for each engine."""
    arguments = {"prompts": [prompt_ids(PROFILED_TOKENS, 1)], "max_tokens": 1, "times": 3}
    return {kind: engine.run("kernel_us", **arguments) for kind, engine in engines.items()}


def main() -> int:
    """Serve, compare and measure all models, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models",
        nargs="+",
        default=("llama-13653", "llama-hidden-4104", "qwen2_5_vl-3420"),
        help=f"checkpoints, or names of synthetic ones: {', '.join(MODELS)}",
    )
    parser.add_argument("--modes", nargs="+", choices=("eager", "compiled"), default=("eager",))
    parser.add_argument("--samples", type=int, default=21, help="how often each figure is taken; 0: compare only")
    parser.add_argument("--profile", action="store_true", help="list the kernels of a long prompt too")
    arguments = parse(parser)
    from fp8pad.bench.report import Machine

    def made(name: str) -> dict[str, Path]:
        return make_checkpoints(name, arguments.folder, tiny=arguments.tiny, num_ranks=arguments.tensor_parallel_size)

    with ThreadPoolExecutor() as pool:
        paths = dict(zip(arguments.models, pool.map(made, arguments.models), strict=True))
    document: dict[str, Any] = {"format_version": 1, "machine": asdict(Machine.here()), "runs": []}
    for mode in arguments.modes:
        with served(paths, _options(mode, arguments)) as models:
            for name, engines in models.items():
                document["runs"].append(_one_run(name, mode, engines, arguments))
                arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    return int(not all(_is_equal(run) for run in document["runs"] if run["mode"] == "eager"))


def _options(mode: str, arguments: argparse.Namespace) -> dict[str, Any]:
    sizes = {
        "tensor_parallel_size": arguments.tensor_parallel_size,
        "pipeline_parallel_size": arguments.pipeline_parallel_size,
    }
    num_ranks = arguments.tensor_parallel_size * arguments.pipeline_parallel_size
    return {
        "ranks": {"num_ranks": num_ranks, "share_gpu": arguments.share_gpu},
        "engine": {"enforce_eager": mode == "eager", **sizes},
    }


def _one_run(name: str, mode: str, started: Mapping[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    start = time.monotonic()
    engines = {kind: engine for kind, (engine, _) in started.items() if engine}
    images = "vl" in name
    run: dict[str, Any] = {
        "model": Path(name).name,
        "mode": mode,
        **served_by(arguments),
        "layers": {kind: layers for kind, (_, layers) in started.items()},
    }
    run["agreement"] = compare(engines, BATCHES, images=images)
    _tell(f"{name}, {mode}: {run['layers']}: {run['agreement']}")
    engines.pop(EAGER, None)
    run["figures"] = measure(engines, arguments.samples, images=images) if arguments.samples else []
    for row in run["figures"]:
        _tell(str(row))
    if arguments.profile:
        run["kernel_us"] = profile(engines)
    _tell(f"{name}, {mode}: done after {time.monotonic() - start:.0f} s")
    return run


def _is_equal(run: Mapping[str, Any]) -> bool:
    """Return whether all answers equal stock's; not required if stock is refused: neurons may be on other ranks."""
    if "refused" in run["layers"]["stock"]:
        return True
    return all(agreement["num_identical"] == agreement["num_answers"] for agreement in run["agreement"].values())


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
