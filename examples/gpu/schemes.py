"""Serve many FP8 checkpoints in three forms, original, padded and absorbed, and compare their answers bit by bit.

    python examples/gpu/schemes.py MODEL... -o docs/benchmarks/schemes-h200.json

A MODEL is a checkpoint, or the name of a synthetic one (see synthetic.py). The original and the absorbed form are
served without fp8pad's plugin. If vLLM refuses the original, the forms that it serves are compared with each other; if
it refuses it only on several ranks, with the original on one rank, where bitwise equality is not expected, and so is
the padded form on one rank, where it is expected. Exit status 1 if an eager answer differs where bitwise equality is
expected. Needs fp8pad installed next to vLLM.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from agreement import Agreement, request
from checkpoints import KINDS, make_checkpoints, needs_plugin, parse, served_by
from engine import Engine, EngineError, options_for

from fp8pad.checkpoint.read import read_unconverted
from fp8pad.planning import plan_checkpoint
from fp8pad.record import Policy

# Batches that every form runs: seed, prompts in the batch, tokens per prompt.
BATCHES = ((1, 1, 1), (2, 1, 7), (3, 5, 33), (4, 16, 100))
# Tiny checkpoints have short position embeddings; images of real sizes take hundreds of tokens each.
MAX_MODEL_LEN = 160
MAX_MODEL_LEN_WITH_IMAGES = 2048


# The suffix of a form that is served on one rank in addition to others on several.
ALONE = ", one rank"


class Servers:
    """Engines without plugins and with plugins, started when needed, each replaced after a failure."""

    def __init__(self, start_engine: Callable[[bool], Engine]) -> None:
        self._start_engine = start_engine
        self._engines: dict[bool, Engine] = {}

    def answers(self, model: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        """Serve a checkpoint and return its answers, or why it is refused."""
        stock = not needs_plugin(model)
        if stock not in self._engines:
            self._engines[stock] = self._start_engine(stock)
        engine = self._engines[stock]
        own_options = options_for(model)
        images = "limit_mm_per_prompt" in own_options
        if images:
            own_options["max_model_len"] = MAX_MODEL_LEN_WITH_IMAGES
        try:
            layers = engine.run("start", model=str(model), **{**options, **own_options})
            requests = [request(*batch, images=images) for batch in BATCHES]
            return {"layers": layers, "answers": [engine.run("answers", **arguments) for arguments in requests]}
        except EngineError as error:
            self._engines.pop(stock).close()
            return {"refused": str(error)}

    def close(self) -> None:
        """End the engines."""
        for engine in self._engines.values():
            engine.close()


def compared(forms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Compare the answers of each form with those of the first form that has any."""
    candidates = ("stock", f"stock{ALONE}", *KINDS)
    reference = next((kind for kind in candidates if "answers" in forms.get(kind, {})), None)
    result: dict[str, Any] = {}
    for kind, form in forms.items():
        result[kind] = {key: form[key] for key in ("layers", "refused") if key in form}
        if reference and kind != reference and "answers" in form:
            agreement = Agreement(reference)
            for expected, got in zip(forms[reference]["answers"], form["answers"], strict=True):
                agreement.add(expected, got)
            result[kind]["agreement"] = vars(agreement)
    return result


def compare_all(models: Sequence[str], arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the comparison of each model, in order, with `arguments.jobs` models at a time."""
    num_ranks = arguments.tensor_parallel_size * arguments.pipeline_parallel_size
    alone = {"enforce_eager": True, "max_model_len": MAX_MODEL_LEN, "kv_cache_memory_bytes": 256 << 20}
    sizes = {name: getattr(arguments, name) for name in ("tensor_parallel_size", "pipeline_parallel_size")}

    def start_engine(stock: bool) -> Engine:
        return Engine(stock=stock, num_ranks=num_ranks, share_gpu=arguments.share_gpu)

    with _servers(arguments.jobs, start_engine) as idle, ThreadPoolExecutor(arguments.jobs) as pool:

        def one(model: str) -> dict[str, Any]:
            paths = make_checkpoints(
                model, arguments.folder, tiny=arguments.tiny, num_ranks=arguments.tensor_parallel_size
            )
            servers = idle.get()
            try:
                forms = {}
                for kind in KINDS:
                    forms[kind] = servers.answers(paths[kind], alone | sizes)
                    print(model, kind, forms[kind].get("refused", "served"), file=sys.stderr, flush=True)
            finally:
                idle.put(servers)
            if num_ranks > 1 and "refused" in forms["stock"]:
                forms |= _answers_alone(paths, alone)
            return {"model": Path(model).name, **_scheme(paths["stock"]), "forms": compared(forms)}

        yield from pool.map(one, models)


def _answers_alone(paths: Mapping[str, Path], options: Mapping[str, Any]) -> dict[str, Any]:
    """Serve the original and the padded form on one rank each."""
    servers = Servers(lambda stock: Engine(stock=stock))
    try:
        return {f"{kind}{ALONE}": servers.answers(paths[kind], options) for kind in ("stock", "runtime")}
    finally:
        servers.close()


@contextmanager
def _servers(number: int, start_engine: Callable[[bool], Engine]) -> Iterator["SimpleQueue[Servers]"]:
    everyone = [Servers(start_engine) for _ in range(number)]
    idle: SimpleQueue[Servers] = SimpleQueue()
    for servers in everyone:
        idle.put(servers)
    try:
        yield idle
    finally:
        for servers in everyone:
            servers.close()


def _scheme(model: Path) -> dict[str, Any]:
    """Return how the original is quantized: method, granularity of scales, and whether activation scales are static."""
    source = read_unconverted(model)
    plan = plan_checkpoint(source.shards, source.configs, Policy())
    return {
        "architecture": source.configs["config.json"]["architectures"][0],
        "quant_method": plan.base["quant_method"] if plan.base else None,
        "scales": sorted({layer.plan.granularity.name for layer in plan.layers if layer.plan.granularity}),
        "static": any(tensor.name.endswith("input_scale") for shard in source.shards for tensor in shard.tensors),
    }


def main() -> int:
    """Compare all models and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--jobs", type=int, default=6, help="models at a time")
    arguments = parse(parser)
    from fp8pad.bench.report import Machine

    document: dict[str, Any] = {
        "format_version": 1,
        "machine": asdict(Machine.here()),
        **served_by(arguments),
        "models": [],
    }
    for row in compare_all(arguments.models, arguments):
        print(json.dumps(row), file=sys.stderr, flush=True)
        document["models"].append(row)
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    is_divided = arguments.tensor_parallel_size > 1
    return int(not all(_is_right(*form, is_divided) for row in document["models"] for form in row["forms"].items()))


def _is_right(kind: str, form: Mapping[str, Any], is_divided: bool) -> bool:
    """Return whether a form's answers are right, if they have to be equal at all.

    Those of several ranks need not equal those of one bitwise, nor those of an absorbed form, if the model `is_divided`
    among ranks: its neurons are on other ranks.
    """
    agreement = form.get("agreement")
    if is_divided and kind == "absorbed":
        return True
    if agreement is None or agreement["compared_with"].endswith(ALONE) > kind.endswith(ALONE):
        return True
    return bool(agreement["num_identical"] == agreement["num_answers"])


if __name__ == "__main__":
    sys.exit(main())
