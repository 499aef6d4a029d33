"""A vLLM engine in a process of its own that reads requests from standard input: a line of JSON in, one out.

`Engine` sends the requests. Run as a script, this file answers them. Engines for several checkpoints share one GPU, and
only one works at a time, so that measurements of them can be interleaved.
"""

import gc
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from needed import torch

# Options of every engine. KV_CACHE_BYTES has room for one prompt of maximum length of the largest model here.
MAX_MODEL_LEN = 9216
KV_CACHE_BYTES = 1536 << 20
OPTIONS: dict[str, Any] = {
    "max_model_len": MAX_MODEL_LEN,
    "max_num_batched_tokens": MAX_MODEL_LEN,
    "max_num_seqs": 64,
    "gpu_memory_utilization": 0.05,  # must be free at the start: several engines share the GPU
    "kv_cache_memory_bytes": KV_CACHE_BYTES,
    "enable_prefix_caching": False,
    "skip_tokenizer_init": True,
    "disable_log_stats": True,
    "seed": 0,
}
# The tokens for an image in a prompt, as in synthetic.SPECIAL_TOKENS: start, image, end.
IMAGE_TOKENS = (3, 6, 4)


class EngineError(Exception):
    """An engine's error, or that it ended."""


class Engine:
    """A process that serves one checkpoint after another. `stock` disables all plugins, including fp8pad's.

    Each rank is a process. With `share_gpu` the ranks share the available GPUs: NCCL, told that they are on different
    hosts, sends everything through the loopback device. That is slow, but computes the same as ranks on separate GPUs.
    """

    def __init__(self, *, stock: bool, num_ranks: int = 1, share_gpu: bool = False) -> None:
        environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING"}
        if stock:
            environment["VLLM_PLUGINS"] = ""
        if num_ranks > 1:
            environment |= {"WORLD_SIZE": str(num_ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        self._processes = [
            subprocess.Popen(
                [sys.executable, __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment | (_rank_environment(rank, share_gpu) if num_ranks > 1 else {}),
            )
            for rank in range(num_ranks)
        ]

    def run(self, request: str, **arguments: Any) -> Any:
        """Send a request and return its answer; raises `EngineError` if there is none."""
        self.send(request, **arguments)
        return self.receive()

    def send(self, request: str, **arguments: Any) -> None:
        """Send a request to every rank; receive its answer before sending the next."""
        line = json.dumps({"request": request, **arguments}) + "\n"
        try:
            for process in self._processes:
                _pipe(process.stdin).write(line)
                _pipe(process.stdin).flush()
        except BrokenPipeError as error:
            raise EngineError(f"the engine ended with status {process.wait()}") from error

    def receive(self) -> Any:
        """Wait for every rank and return the first one's answer to the request that was sent."""
        first, *_ = [_answer(process) for process in self._processes]
        return first

    def close(self) -> None:
        """Kill the engine's processes."""
        for process in self._processes:
            process.kill()
            process.wait()


def run_all(engines: Mapping[str, Engine], request: str, **arguments: Any) -> dict[str, Any]:
    """Run a request on all engines at once; not for measurements."""
    for engine in engines.values():
        engine.send(request, **arguments)
    return {kind: engine.receive() for kind, engine in engines.items()}


def _rank_environment(rank: int, share_gpu: bool) -> dict[str, str]:
    local_rank = rank % max(1, torch.cuda.device_count()) if share_gpu else rank
    environment = {"RANK": str(rank), "LOCAL_RANK": str(local_rank)}
    if share_gpu:
        environment |= {"NCCL_HOSTID": f"rank-{rank}", "NCCL_SOCKET_IFNAME": "lo", "NCCL_IB_DISABLE": "1"}
        environment |= {"VLLM_ALLREDUCE_USE_SYMM_MEM": "0", "VLLM_HOST_IP": "127.0.0.1"}
    return environment


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _pipe(stream: Any) -> Any:
    if stream is None:
        raise EngineError("the engine has no pipe")
    return stream


def _answer(process: "subprocess.Popen[str]") -> Any:
    """Return the next answer of a process; everything else that it prints goes to standard error."""
    for line in _pipe(process.stdout):
        if line.startswith('{"answer":'):
            return json.loads(line)["answer"]
        if line.startswith('{"error":'):
            raise EngineError(json.loads(line)["error"])
        print(line, end="", file=sys.stderr)
    raise EngineError(f"the engine ended with status {process.wait()}")


def prompt_ids(num_tokens: int, seed: int) -> list[int]:
    """Return pseudorandom token ids that depend on no library; no two seeds share a prefix worth caching."""
    state = (seed * 1_000_003 + num_tokens) % 2_147_483_647 or 1
    ids = []
    for _ in range(num_tokens):
        state = state * 48_271 % 2_147_483_647
        ids.append(state % 240 + 10)
    return ids


class Server:
    """Answers each request with the method of the same name."""

    def __init__(self) -> None:
        import vllm  # noqa: F401 (this takes long, and an engine may get its first request late)

        self.llm: Any = None

    def start(self, model: str, **options: Any) -> dict[str, Any]:
        """Serve `model` instead of the previous one, and return how many layers fp8pad pads.

        These numbers prove that a measurement of the runtime is one.
        """
        from vllm import LLM

        from fp8pad.runtime.layer import kernel_of

        self.llm = None
        gc.collect()
        if "RANK" in os.environ:
            options |= {"distributed_executor_backend": "external_launcher", "disable_custom_all_reduce": True}
        self.llm = LLM(model, **{**OPTIONS, **options})
        layers = [layer for layer in self._model().modules() if hasattr(layer, "quant_method")]
        methods = [layer.quant_method for layer in layers]
        kernels = [kernel_of(layer.quant_method, layer) for layer in layers]
        padded = [method for method in methods if hasattr(method, "pads_where_quantized") and method.sizes.is_padded]
        return {
            "padded_layers": len(padded),
            "padded_where_quantized": sum(method.pads_where_quantized and not method.takes_tails for method in padded),
            "kept_inside_mlps": sum(method.keeps_tails or method.takes_tails for method in padded),
            "kernels": dict(Counter(type(kernel).__name__ for kernel in kernels if kernel is not None)),
        }

    def answers(
        self, prompts: list[list[int]], max_tokens: int, images: int = 0, size: int = 448, seed: int = 0
    ) -> list[dict[str, Any]]:
        """Return greedy tokens and the top five with exact logprobs, for one batch of prompts."""
        requests = [_request(ids, images, size, seed + number) for number, ids in enumerate(prompts)]
        outputs = self._generate(requests, max_tokens, logprobs=5)
        return [
            {
                "tokens": list(output.outputs[0].token_ids),
                "logprobs": [
                    sorted((token, entry.logprob.hex()) for token, entry in step.items())
                    for step in output.outputs[0].logprobs
                ],
            }
            for output in outputs
        ]

    def seconds(self, prompts: list[list[int]], max_tokens: int) -> float:
        """Return the time of one batch from request to last token, in seconds."""
        start = time.perf_counter()
        self._generate([{"prompt_token_ids": ids} for ids in prompts], max_tokens)
        return time.perf_counter() - start

    def kernel_us(self, prompts: list[list[int]], max_tokens: int, times: int) -> dict[str, float]:
        """Return the GPU time of one batch by kernel, the mean of `times` runs, from the PyTorch profiler."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(times):
                self.seconds(prompts, max_tokens)
        totals: Counter[str] = Counter()
        for event in profile.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                totals[event.name[:120]] += event.device_time / times
        return {name: round(us, 2) for name, us in totals.most_common()}

    def encoder_seconds(self, images: int, size: int) -> float:
        """Return the time of the vision tower for `images` squares of `size` pixels, in seconds."""
        from vllm.forward_context import set_forward_context

        patches = size // 14
        grid = torch.tensor([[1, patches, patches]] * images)
        model = self._model()
        device = next(model.parameters()).device
        pixels = torch.randn(images * patches**2, 1176, device=device, dtype=torch.bfloat16)
        synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        with torch.inference_mode(), set_forward_context(None, self.llm.llm_engine.vllm_config):
            synchronize()
            start = time.perf_counter()
            model.embed_multimodal(pixel_values=pixels, image_grid_thw=grid)
            synchronize()
        return time.perf_counter() - start

    def _generate(self, requests: list[dict[str, Any]], max_tokens: int, logprobs: int | None = None) -> list[Any]:
        from vllm import SamplingParams

        parameters = SamplingParams(
            temperature=0, max_tokens=max_tokens, ignore_eos=True, logprobs=logprobs, detokenize=False
        )
        outputs: list[Any] = self.llm.generate(requests, parameters, use_tqdm=False)
        return outputs

    def _model(self) -> Any:
        return self.llm.llm_engine.model_executor.driver_worker.worker.model_runner.model


def _request(ids: list[int], images: int, size: int, seed: int) -> dict[str, Any]:
    """Return a prompt, with `images` squares of noise before its text if there are any."""
    if not images:
        return {"prompt_token_ids": ids}
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(seed)
    pictures = [Image.fromarray(noise.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(images)]
    return {"prompt_token_ids": [*IMAGE_TOKENS] * images + ids, "multi_modal_data": {"image": pictures}}


def options_for(model: Path) -> dict[str, Any]:
    """Return what a checkpoint needs in addition to `OPTIONS`, such as a processor for a vision tower."""
    config = json.loads((model / "config.json").read_text())
    options: dict[str, Any] = {}
    if config.get("quantization_config", {}).get("quant_method") == "fbgemm_fp8":
        options["allow_deprecated_quantization"] = True
    if "linear_attention" in config.get("layer_types", ()):
        options["gdn_prefill_backend"] = "triton"  # on every machine, with or without FlashInfer
    if "vision_config" in config:
        options |= {"skip_tokenizer_init": False, "limit_mm_per_prompt": {"image": 4, "video": 0}}
    return options


def main() -> None:
    """Answer until the input ends."""
    server = Server()
    for line in sys.stdin:
        arguments = json.loads(line)
        try:
            result = {"answer": getattr(server, arguments.pop("request"))(**arguments)}
        except Exception as error:  # whatever it is, send it to the other side
            result = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
