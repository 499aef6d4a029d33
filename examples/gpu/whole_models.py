"""Whole models on this GPU: do stock vLLM, the shim and an absorbed checkpoint answer alike, and how fast?

    python examples/gpu/whole_models.py -o docs/benchmarks/whole-models-h100.json --modes eager compiled

Writes synthetic checkpoints of real sizes, converts them twice, serves all three side by side, each in a process of its
own, and asks them in turn. Exit status 1 if an eager answer differs in a token or in any bit of a logprob; compiled
answers are compared too, and by how much they differ is reported. Needs fp8pad installed beside vLLM.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from engine import Engine, prompt_ids
from synthetic import MODELS

# Batches asked of every engine: seeds, prompts in the batch, tokens in each.
QUESTIONS = [(seed, batch, length) for seed in (1, 2, 3) for batch, length in ((1, 7), (1, 512), (5, 33), (16, 130))]
LONG_QUESTIONS = [(1, 1, 2048), (1, 2, 4000)]
ANSWER_TOKENS = 16
TTFT_TOKENS = (512, 2048, 8000)
TPOT_BATCHES = (1, 32)
TPOT_STEPS = 16
ENCODER_IMAGES = ((1, 448), (1, 1036), (4, 1036))

Engines = Mapping[str, Engine]


def make_checkpoints(name: str, folder: Path, *, tiny: bool) -> dict[str, Path]:
    """Write the original, the padded and, where absorbing settles everything, the absorbed checkpoint."""
    paths = {kind: folder / f"{name}-{kind}" for kind in ("stock", "shim", "absorbed")}
    if not paths["stock"].exists():
        script = Path(__file__).with_name("synthetic.py")
        _run(str(script), name, str(paths["stock"]), *(["--tiny"] if tiny else []))
    for kind, options in (("shim", []), ("absorbed", ["--absorb"])):
        _run("-m", "fp8pad", "convert", str(paths["stock"]), str(paths[kind]), "--overwrite", *options)
    config = json.loads((paths["absorbed"] / "config.json").read_text())
    if config["quantization_config"]["quant_method"] == "fp8pad":
        del paths["absorbed"]
    return paths


def _run(*arguments: str) -> None:
    # What it prints belongs to the log: standard output is for the results.
    subprocess.run([sys.executable, *arguments], check=True, stdout=sys.stderr)


@contextmanager
def served(paths: Mapping[str, Path], *, eager: bool, tensor_parallel_size: int) -> Iterator[dict[str, Engine]]:
    """Start an engine for each checkpoint, all at once; only the shim's may load plugins."""
    options: dict[str, Any] = {"eager": eager, "tensor_parallel_size": tensor_parallel_size}
    engines = {kind: Engine(path, stock=kind != "shim", **options) for kind, path in paths.items()}
    try:
        yield engines
    finally:
        for engine in engines.values():
            engine.close()


def compare(engines: Engines, *, images: bool) -> dict[str, Any]:
    """Ask every question of each engine and compare the answers with those of stock vLLM."""
    questions = [*QUESTIONS, *LONG_QUESTIONS]
    result: dict[str, Any] = {kind: _Agreement() for kind in engines if kind != "stock"}
    for seed, batch, length in questions:
        prompts = [prompt_ids(length, 100 * seed + number) for number in range(batch)]
        asked: dict[str, Any] = {"prompts": prompts, "max_tokens": ANSWER_TOKENS, "seed": seed}
        if images:
            asked |= {"images": 1 + seed % 2, "size": 448 if length < 2000 else 1036}
        answers = ask_all(engines, "answers", **asked)
        for kind, agreement in result.items():
            agreement.add(answers["stock"], answers[kind])
    return {kind: agreement.to_json() for kind, agreement in result.items()}


def ask_all(engines: Engines, question: str, **asked: Any) -> dict[str, Any]:
    """Ask all engines at once; not for measurements."""
    for engine in engines.values():
        engine.send(question, **asked)
    return {kind: engine.receive() for kind, engine in engines.items()}


class _Agreement:
    """Counts how far one engine's answers are those of another."""

    def __init__(self) -> None:
        self.num_answers = self.num_tokens = self.num_identical = self.num_same_tokens = 0
        self.largest_difference = 0.0

    def add(self, expected: list[dict[str, Any]], got: list[dict[str, Any]]) -> None:
        for one, other in zip(expected, got, strict=True):
            self.num_answers += 1
            self.num_tokens += len(one["tokens"])
            self.num_identical += one == other
            self.num_same_tokens += one["tokens"] == other["tokens"]
            self.largest_difference = max(self.largest_difference, _largest_difference(one, other))

    def to_json(self) -> dict[str, Any]:
        return vars(self)


def _largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return the largest difference of a logprob that both give, up to the first token that is not the same."""
    largest = 0.0
    for step, (token, other_token) in enumerate(zip(one["tokens"], other["tokens"], strict=True)):
        ours, theirs = (dict(map(tuple, answer["logprobs"][step])) for answer in (one, other))
        differences = (abs(float.fromhex(ours[t]) - float.fromhex(theirs[t])) for t in ours.keys() & theirs.keys())
        largest = max(largest, *differences)
        if token != other_token:
            break
    return largest


def measure(engines: Engines, samples: int, *, images: bool) -> list[dict[str, Any]]:
    """Time every engine in turn, `samples` times, at each length of prompt and each batch."""
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
    """Return the time per token after the first: of a whole answer, less the median of one that ends there."""
    prompts = [prompt_ids(16, number) for number in range(batch)]
    first = _in_turn(engines, samples, "seconds", max_tokens=1, prompts=prompts)
    whole = _in_turn(engines, samples, "seconds", max_tokens=1 + TPOT_STEPS, prompts=prompts)
    return {kind: [(value - median(first[kind])) / TPOT_STEPS for value in values] for kind, values in whole.items()}


def _in_turn(engines: Engines, samples: int, question: str, **asked: Any) -> dict[str, list[float]]:
    """Ask each engine in turn, `samples` times after two for nothing, and return the seconds that each took."""
    for engine in engines.values():
        for _ in range(2):
            engine.ask(question, **asked)
    taken: dict[str, list[float]] = {kind: [] for kind in engines}
    for _ in range(samples):
        for kind, engine in engines.items():
            taken[kind].append(engine.ask(question, **asked))
    return taken


def _summaries(seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    return {"timings": {kind: _summary_ms(values) for kind, values in seconds.items()}}


def _summary_ms(seconds: list[float]) -> dict[str, float]:
    lower, middle, upper = (round(1000 * value, 4) for value in quantiles(seconds, n=4, method="inclusive"))
    return {"median": middle, "lower": lower, "upper": upper, "num_samples": len(seconds)}


def main() -> int:
    """Parse, serve, compare, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--modes", nargs="+", choices=("eager", "compiled"), default=("eager",))
    parser.add_argument("--tensor-parallel-size", "-tp", type=int, default=1, help="how many GPUs serve each model")
    parser.add_argument("--samples", type=int, default=21, help="how often each figure is taken; 0: compare only")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/fp8pad-models"), help="where checkpoints are kept")  # noqa: S108
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try this on a CPU")
    arguments = parser.parse_args()
    from fp8pad.bench.report import Machine

    document: dict[str, Any] = {"format_version": 1, "machine": asdict(Machine.here()), "runs": []}
    with ThreadPoolExecutor() as pool:
        made = pool.map(lambda name: make_checkpoints(name, arguments.folder, tiny=arguments.tiny), arguments.models)
        checkpoints = dict(zip(arguments.models, made, strict=True))
    for name, paths in checkpoints.items():
        for mode in arguments.modes:
            document["runs"].append(_one_run(name, mode, paths, arguments))
            arguments.output.write_text(json.dumps(document, indent=1) + "\n")
        for path in paths.values():
            shutil.rmtree(path)
    return int(not all(_is_equal(run) for run in document["runs"] if run["mode"] == "eager"))


def _one_run(name: str, mode: str, paths: Mapping[str, Path], arguments: argparse.Namespace) -> dict[str, Any]:
    start, images = time.monotonic(), "vl" in name
    ranks = arguments.tensor_parallel_size
    with served(paths, eager=mode == "eager", tensor_parallel_size=ranks) as engines:
        layers = ask_all(engines, "ready")
        _tell(f"{name}, {mode}: ready after {time.monotonic() - start:.0f} s, {layers['shim']}")
        run = {"model": name, "mode": mode, "tensor_parallel_size": ranks, "shim": layers["shim"]}
        run["agreement"] = compare(engines, images=images)
        _tell(f"{name}, {mode}: {run['agreement']}")
        run["figures"] = measure(engines, arguments.samples, images=images) if arguments.samples else []
    for row in run["figures"]:
        _tell(str(row))
    _tell(f"{name}, {mode}: done after {time.monotonic() - start:.0f} s")
    return run


def _is_equal(run: Mapping[str, Any]) -> bool:
    return all(agreement["num_identical"] == agreement["num_answers"] for agreement in run["agreement"].values())


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
