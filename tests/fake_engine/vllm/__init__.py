"""The part of vLLM's interface that a golden run uses, over a model that multiplies token ids.

The environment selects its faults: FAKE_SHIFT is added to a logprob, FAKE_FAULT names a way to fail.
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

__version__ = os.environ.get("FAKE_VERSION", "0.32.0")
VOCAB_SIZE = 258


@dataclass
class SamplingParams:
    """The requested sampling."""

    temperature: float
    max_tokens: int
    logprobs: int
    ignore_eos: bool
    detokenize: bool


class LLM:
    """Answers with tokens that depend only on the prompt."""

    def __init__(self, model: str, **options: Any) -> None:
        print(f"Loading {model} with {sorted(options)}")
        for descriptor in (1, 2):  # like C code, and child processes of the engine
            os.write(descriptor, b"stray: written\n")
            subprocess.run(["sh", "-c", f"echo stray: echoed >&{descriptor}"], check=True)
        with suppress(OSError), Path("/dev/tty").open("w") as terminal:
            terminal.write("stray: on the terminal\n")
        fault = os.environ.get("FAKE_FAULT")
        if fault == "raise":
            print("SomeError: the cause, far above")
            print("noise\n" * 40)
            raise RuntimeError("no kernel\n  for this [layer]")
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        self.fault = fault
        dtype = options["dtype"].replace("auto", "bfloat16")
        self.llm_engine = SimpleNamespace(
            vllm_config=SimpleNamespace(model_config=SimpleNamespace(dtype=f"torch.{dtype}"))
        )

    def generate(self, prompts: Sequence[Mapping[str, list[int]]], sampling: SamplingParams) -> list[Any]:
        """Answer each prompt."""
        answers = [self._answer(prompt["prompt_token_ids"], sampling) for prompt in prompts]
        return answers[:-1] if self.fault == "lose" else answers

    def _answer(self, prompt: list[int], sampling: SamplingParams) -> Any:
        tokens, steps = list(prompt), []
        for _ in range(sampling.max_tokens):
            token = sum((place + 1) * token for place, token in enumerate(tokens)) % VOCAB_SIZE
            ranked = [(token + rank) % VOCAB_SIZE for rank in range(sampling.logprobs)]
            steps.append({token_id: SimpleNamespace(logprob=-0.5 - rank) for rank, token_id in enumerate(ranked)})
            tokens.append(token)
        steps[1][tokens[len(prompt) + 1]].logprob += float(os.environ.get("FAKE_SHIFT", "0"))
        if self.fault == "nan":
            steps[0][tokens[len(prompt)]].logprob = float("nan")
        completion = SimpleNamespace(token_ids=tokens[len(prompt) :], logprobs=steps)
        return SimpleNamespace(prompt_token_ids=prompt, outputs=[completion])
