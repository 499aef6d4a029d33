"""Run a model in vLLM and keep its answers; as a script, in a separate process, with JSON in and out."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

STANDINS = Path(__file__).parent / "standins"

# Engines run one after another in this process, where each starts in seconds.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
ENGINE_OPTIONS: Mapping[str, Any] = {
    "enforce_eager": True,
    "max_model_len": 256,
    "dtype": "bfloat16",
    "skip_tokenizer_init": True,
    "disable_log_stats": True,
    # Engines of several tests share a GPU; on a CPU, VLLM_CPU_KVCACHE_SPACE has the same effect.
    "gpu_memory_utilization": 0.05,
    "kv_cache_memory_bytes": 1 << 30,
}

# Lengths around and beyond the sizes at which kernels switch; ids that every tiny vocabulary has.
PROMPTS = tuple({"prompt_token_ids": [(7 * i + n) % 400 + 8 for i in range(n)]} for n in (1, 5, 16, 33))

Prompts = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Answer:
    """A model's answer to one prompt: greedy tokens, their logprobs and those of the prompt's tokens."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt_logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Served:
    """The result of one engine: its answers, the layers that fp8pad padded, its KV cache's dtype.

    `kept_layers` are the padded ones whose padding is kept inside an MLP.
    """

    answers: tuple[Answer, ...]
    padded_layers: tuple[str, ...]
    kv_cache_dtype: str
    kept_layers: tuple[str, ...] = ()


def serve(model: Path, prompts: Prompts = PROMPTS, **options: Any) -> Served:
    """Start an engine on `model` in this process, run `prompts`, and shut it down.

    A prompt with `image_size`, `[height, width]`, comes with an image of random pixels, the same each time.
    """
    from vllm import LLM

    llm = LLM(str(model), **{**ENGINE_OPTIONS, **options})
    try:
        padded, kept = llm.apply_model(padded_layers)[0], llm.apply_model(kept_layers)[0]
        return Served(answers_of(llm, prompts), padded, _kv_cache_dtype(llm), kept)
    finally:
        del llm
        gc.collect()


def serve_apart(
    model: Path, prompts: Prompts = PROMPTS, environment: Mapping[str, str] | None = None, **options: Any
) -> Served:
    """Do as `serve` does in a separate process, as several ranks need; raise its last lines if it fails."""
    command = [sys.executable, __file__, str(model), json.dumps({"prompts": prompts, **options})]
    env = {**os.environ, **(environment or {})}
    run = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600, check=False)
    if run.returncode:
        raise RuntimeError(run.stderr)
    result = json.loads(run.stdout.splitlines()[-1])
    answers = (Answer(*(tuple(values) for values in answer.values())) for answer in result["answers"])
    padded, kept = tuple(result["padded_layers"]), tuple(result["kept_layers"])
    return Served(tuple(answers), padded, result["kv_cache_dtype"], kept)


def answers_of(
    llm: Any, prompts: Prompts = PROMPTS, *, prompt_logprobs: int | None = 0, **options: Any
) -> tuple[Answer, ...]:
    """Return an engine's answers to `prompts`, eight greedy tokens each."""
    from vllm import SamplingParams

    params = SamplingParams(temperature=0, max_tokens=8, logprobs=0, prompt_logprobs=prompt_logprobs, detokenize=False)
    outputs = llm.generate([_with_image(prompt) for prompt in prompts], params, use_tqdm=False, **options)
    return tuple(
        Answer(
            tokens=tuple(output.outputs[0].token_ids),
            logprobs=_chosen(output.outputs[0].logprobs),
            prompt_logprobs=_chosen((output.prompt_logprobs or [])[1:]),
        )
        for output in outputs
    )


def _with_image(prompt: Mapping[str, Any]) -> dict[str, Any]:
    if "image_size" not in prompt:
        return dict(prompt)
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (*prompt["image_size"], 3), dtype=np.uint8)
    token_ids = list(prompt["prompt_token_ids"])
    return {"prompt_token_ids": token_ids, "multi_modal_data": {"image": Image.fromarray(pixels)}}


def _chosen(steps: Any) -> tuple[float, ...]:
    return tuple(next(iter(step.values())).logprob for step in steps)


def padded_layers(model: Any) -> tuple[str, ...]:
    """Return the names of the layers that fp8pad pads in `model`, the torch module of one rank."""
    from fp8pad.runtime.linear import PaddedLinearMethod

    methods = ((name, getattr(layer, "quant_method", None)) for name, layer in model.named_modules())
    return tuple(name for name, method in methods if isinstance(method, PaddedLinearMethod) and method.sizes.is_padded)


def kept_layers(model: Any) -> tuple[str, ...]:
    """Return the names of the layers in `model` whose padding is kept inside an MLP."""
    methods = ((name, getattr(layer, "quant_method", None)) for name, layer in model.named_modules())
    return tuple(
        name
        for name, method in methods
        if getattr(method, "keeps_tails", False) or getattr(method, "takes_tails", False)
    )


def _kv_cache_dtype(llm: Any) -> str:
    return str(llm.llm_engine.vllm_config.cache_config.cache_dtype)


if __name__ == "__main__":
    print(json.dumps(asdict(serve(Path(sys.argv[1]), **json.loads(sys.argv[2])))))
