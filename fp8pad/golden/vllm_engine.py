"""vLLM as the engine, whichever build, GPU or CPU, is installed. Only the worker process imports vLLM, when needed."""

from typing import Any

from fp8pad.golden.document import Answer, Environment
from fp8pad.golden.request import Request, cpu_name, likeliest_first


def environment() -> Environment:
    """Describe vLLM and the device that it will run on, without starting it."""
    import torch
    import vllm
    from vllm.platforms import current_platform

    device = cpu_name() if current_platform.is_cpu() else current_platform.get_device_name()
    return Environment(vllm.__version__, torch.__version__, device)


def answer(request: Request) -> tuple[str, tuple[Answer, ...]]:
    """Start one engine and return its dtype and its greedy answers to all prompts, which it gets as one batch.

    Prefix caching is off, so that no answer depends on another's; the end-of-text token does not end an answer.
    """
    from vllm import LLM, SamplingParams

    settings = request.settings
    llm = LLM(
        model=request.model,
        dtype=settings.dtype,
        enforce_eager=settings.mode == "eager",
        seed=settings.seed,
        tensor_parallel_size=settings.tensor_parallel_size,
        max_model_len=settings.max_model_len,
        max_logprobs=settings.top_k,
        enable_prefix_caching=False,
        skip_tokenizer_init=True,
        trust_remote_code=request.trust_remote_code,
    )
    sampling = SamplingParams(
        temperature=0, max_tokens=settings.max_tokens, logprobs=settings.top_k, ignore_eos=True, detokenize=False
    )
    outputs = llm.generate([{"prompt_token_ids": list(prompt)} for prompt in request.prompts], sampling)
    dtype = str(llm.llm_engine.vllm_config.model_config.dtype).removeprefix("torch.")
    return dtype, tuple(_answer(output) for output in outputs)


def _answer(output: Any) -> Answer:
    completion = output.outputs[0]
    steps = ({token_id: entry.logprob for token_id, entry in step.items()} for step in completion.logprobs)
    return Answer(
        tuple(output.prompt_token_ids),
        tuple(int(token_id) for token_id in completion.token_ids),
        tuple(likeliest_first(step) for step in steps),
    )
