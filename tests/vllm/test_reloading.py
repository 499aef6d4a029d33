"""Weights that change in a running engine, as in reinforcement learning, and LoRA adapters."""

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from serving import ENGINE_OPTIONS, answers_of, kept_layers

pytestmark = pytest.mark.vllm

Find = Callable[[str], Path]
Convert = Callable[..., Path]


@pytest.fixture
def engine() -> Iterator[Callable[..., Any]]:
    """Return a function that starts an engine, which is shut down at the end of the test."""
    from vllm import LLM

    engines = []

    def start(model: Path, **options: Any) -> Any:
        engines.append(LLM(str(model), **{**ENGINE_OPTIONS, **options}))
        return engines[-1]

    yield start
    engines.clear()
    gc.collect()


def test_weights_can_be_reloaded_from_disk(tiny: Find, converted: Convert, engine: Callable[..., Any]) -> None:
    """After a reload from another padded checkpoint, including biases, outputs equal those of its original."""
    expected = answers_of(engine(tiny("llama_bias_other")))
    llm = engine(converted(tiny("llama_bias")))
    assert llm.apply_model(kept_layers)[0]
    before = answers_of(llm)
    _runner(llm).reload_weights(weights_path=str(converted(tiny("llama_bias_other"))))
    assert answers_of(llm) == expected
    assert before != expected


def test_a_trainer_can_send_weights_without_padding(tiny: Find, converted: Convert, engine: Callable[..., Any]) -> None:
    """Tensors of logical sizes, as from a trainer, load into a padded engine too."""
    expected = answers_of(engine(tiny("llama_bias_other")))
    llm = engine(converted(tiny("llama_bias")))
    _runner(llm).reload_weights(
        weights_iterator=iter(load_file(tiny("llama_bias_other") / "model.safetensors").items())
    )
    assert answers_of(llm) == expected


def test_lora_adapters_work_on_padded_layers(
    tmp_path: Path, tiny: Find, converted: Convert, engine: Callable[..., Any]
) -> None:
    """An adapter on layers with padded N and K changes the outputs as it changes the original's."""
    from vllm.lora.request import LoRARequest

    # vLLM's CPU build cannot return logprobs of prompt tokens with adapters.
    asked = {"prompt_logprobs": None, "lora_request": LoRARequest("a", 1, str(_adapter(tiny("llama"), tmp_path)))}
    original = engine(tiny("llama"), enable_lora=True, max_lora_rank=8)
    expected, plain = answers_of(original, **asked), answers_of(original, prompt_logprobs=None)
    padded = engine(converted(tiny("llama")), enable_lora=True, max_lora_rank=8)
    assert not padded.apply_model(kept_layers)[0]
    assert answers_of(padded, **asked) == expected
    assert expected != plain


def _runner(llm: Any) -> Any:
    return llm.llm_engine.model_executor.driver_worker.worker.model_runner


def _adapter(model: Path, folder: Path) -> Path:
    targets = {"q_proj": "self_attn", "gate_proj": "mlp", "up_proj": "mlp", "down_proj": "mlp"}
    weights = load_file(model / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for target, parent in targets.items():
        name = f"model.layers.1.{parent}.{target}"
        num_rows, num_columns = weights[f"{name}.weight"].shape
        for half, shape in (("A", (8, num_columns)), ("B", (num_rows, 8))):
            tensors[f"base_model.model.{name}.lora_{half}.weight"] = torch.randn(shape, generator=generator) * 0.2
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": list(targets), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
