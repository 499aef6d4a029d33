"""One vLLM engine in a process of its own, asked through its standard input: a line of JSON in, a line of JSON out.

`Engine` is the side that asks. Run as a script, this file is the side that answers. Engines of several checkpoints live
side by side on one GPU, and only one works at a time, so that measurements of them can be interleaved.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MAX_MODEL_LEN = 9216


class Engine:
    """A checkpoint being served. `stock` leaves out every plugin, fp8pad's too."""

    def __init__(self, model: Path, *, eager: bool, stock: bool, tensor_parallel_size: int = 1) -> None:
        environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING"}
        if stock:
            environment["VLLM_PLUGINS"] = ""
        command = [sys.executable, __file__, str(model), str(int(eager)), str(tensor_parallel_size)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, question: str, **arguments: Any) -> Any:
        """Send a question and wait for its answer; `RuntimeError` if the engine has died."""
        self.send(question, **arguments)
        return self.receive()

    def send(self, question: str, **arguments: Any) -> None:
        """Send a question; its answer is to be received before the next."""
        if self._process.stdin is None:
            raise RuntimeError("the engine cannot be asked")
        self._process.stdin.write(json.dumps({"question": question, **arguments}) + "\n")
        self._process.stdin.flush()

    def receive(self) -> Any:
        """Wait for the answer to the question that was sent; what else the engine prints goes to standard error."""
        for line in self._process.stdout or ():
            if line.startswith('{"answer":'):
                return json.loads(line)["answer"]
            print(line, end="", file=sys.stderr)
        raise RuntimeError(f"the engine ended with status {self._process.wait()}: {self._process.args}")

    def close(self) -> None:
        """End the engine."""
        self._process.kill()
        self._process.wait()


def prompt_ids(num_tokens: int, seed: int) -> list[int]:
    """Return token ids without a library's random numbers; no two seeds share a prefix worth caching."""
    state = (seed * 1_000_003 + num_tokens) % 2_147_483_647 or 1
    ids = []
    for _ in range(num_tokens):
        state = state * 48_271 % 2_147_483_647
        ids.append(state % 240 + 10)
    return ids


class Server:
    """Answers each question by a method of its name."""

    def __init__(self, model: str, eager: bool, tensor_parallel_size: int) -> None:
        from vllm import LLM

        self.llm = LLM(
            model,
            enforce_eager=eager,
            tensor_parallel_size=tensor_parallel_size,
            max_model_len=MAX_MODEL_LEN,
            max_num_batched_tokens=MAX_MODEL_LEN,
            max_num_seqs=64,
            gpu_memory_utilization=0.3,  # what must be free at the start; three engines share the GPU
            enable_prefix_caching=False,
            kv_cache_memory_bytes=int(os.environ.get("KV_CACHE_BYTES", str(6 << 30))),
            limit_mm_per_prompt={"image": 4, "video": 0} if "vl" in Path(model).name else None,
            skip_tokenizer_init="vl" not in Path(model).name,
            disable_log_stats=True,
            seed=0,
        )

    def ready(self) -> dict[str, Any]:
        """Say how many layers fp8pad pads; by this a measurement of the shim is known to be one."""
        if self._worker() is None:  # the ranks are other processes
            return {}
        methods = [getattr(layer, "quant_method", None) for layer in self._model().modules()]
        padded = [method for method in methods if hasattr(method, "pads_where_quantized")]
        return {
            "padded_layers": sum(method.sizes.is_padded for method in padded),
            "padded_where_quantized": sum(method.pads_where_quantized for method in padded),
        }

    def answers(
        self, prompts: list[list[int]], max_tokens: int, images: int = 0, size: int = 448, seed: int = 0
    ) -> list[dict[str, Any]]:
        """Return greedy tokens and their five likeliest, with logprobs as they are, for one batch of prompts."""
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
        """Return how long one batch takes from request to last token."""
        start = time.perf_counter()
        self._generate([{"prompt_token_ids": ids} for ids in prompts], max_tokens)
        return time.perf_counter() - start

    def encoder_seconds(self, images: int, size: int) -> float:
        """Return how long the vision tower takes for `images` squares of `size` pixels."""
        import torch
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

    def _worker(self) -> Any:
        return getattr(self.llm.llm_engine.model_executor, "driver_worker", None)

    def _model(self) -> Any:
        return self._worker().worker.model_runner.model


def _request(ids: list[int], images: int, size: int, seed: int) -> dict[str, Any]:
    """Return a prompt, with `images` squares of noise before its text if there are to be any."""
    if not images:
        return {"prompt_token_ids": ids}
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(seed)
    pictures = [Image.fromarray(noise.integers(0, 256, (size, size, 3), dtype=np.uint8)) for _ in range(images)]
    start, pad, end = 3, 6, 4  # as synthetic.SPECIAL_TOKENS has them
    return {"prompt_token_ids": [start, pad, end] * images + ids, "multi_modal_data": {"image": pictures}}


def main() -> None:
    """Answer until the input ends."""
    model, eager, tensor_parallel_size = sys.argv[1:]
    server = Server(model, bool(int(eager)), int(tensor_parallel_size))
    for line in sys.stdin:
        arguments = json.loads(line)
        answer = getattr(server, arguments.pop("question"))(**arguments)
        print(json.dumps({"answer": answer}), flush=True)


if __name__ == "__main__":
    main()
