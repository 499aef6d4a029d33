"""Hugging Face transformers as the engine, one prompt at a time, on a CUDA device if there is one, else on the CPU."""

import json
from pathlib import Path
from typing import Any

from fp8pad.errors import GoldenError
from fp8pad.golden.document import Answer, Environment
from fp8pad.golden.prompts import Prompt
from fp8pad.golden.request import Request, cpu_name, likeliest_first


def environment() -> Environment:
    """Describe transformers and the device that it will run on."""
    import torch
    import transformers

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    return Environment(transformers.__version__, torch.__version__, device)


def answer(request: Request) -> tuple[str, tuple[Answer, ...]]:
    """Load the model once and return its dtype and its greedy answers.

    Raises `GoldenError` if more than one device is asked for.
    """
    if request.settings.tensor_parallel_size != 1:
        raise GoldenError("the transformers engine runs on one device: tensor parallel size must be 1")
    model = _load(request)
    answers = tuple(_answer(model, prompt, request) for prompt in request.prompts)
    return str(model.dtype).removeprefix("torch."), answers


def _load(request: Request) -> Any:
    import torch
    import transformers

    torch.manual_seed(request.settings.seed)
    architectures = json.loads((Path(request.model) / "config.json").read_bytes()).get("architectures") or [""]
    factory = getattr(transformers, architectures[0], transformers.AutoModelForCausalLM)
    model = factory.from_pretrained(
        request.model, dtype=request.settings.dtype, trust_remote_code=request.trust_remote_code
    )
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    if request.settings.mode == "compiled":
        model.compile()
    return model


def _answer(model: Any, prompt: Prompt, request: Request) -> Answer:
    import torch
    import transformers

    # As with vLLM, the end-of-text token does not end an answer; the model's own sampling settings are not used.
    model.generation_config = transformers.GenerationConfig(
        do_sample=False,
        max_new_tokens=request.settings.max_tokens,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    input_ids = torch.tensor([prompt], device=model.device)
    output = model.generate(input_ids, attention_mask=torch.ones_like(input_ids))
    token_ids = output.sequences[0, len(prompt) :].tolist()
    steps = (
        _step(logits[0], token_id, request.settings.top_k)
        for logits, token_id in zip(output.logits, token_ids, strict=True)
    )
    return Answer(prompt, tuple(token_ids), tuple(steps))


def _step(logits: Any, token_id: int, top_k: int) -> Any:
    """Return the top-k logprobs of logits `[vocab]`, and that of the chosen token."""
    logprobs = logits.float().log_softmax(dim=-1)
    top = logprobs.topk(min(top_k, logprobs.numel()))
    pairs = dict(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return likeliest_first(pairs | {token_id: logprobs[token_id].item()})
