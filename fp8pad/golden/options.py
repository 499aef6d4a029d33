"""What a user asks of `golden record` and `golden check`, and the settings that it comes to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fp8pad.golden.compare import LOOSE_ATOL
from fp8pad.golden.document import EngineName, Mode, Settings
from fp8pad.golden.prompts import Prompt, model_length


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """How a golden file is recorded. Lengths are in tokens; without `prompts` the built-in ones of `seed` are asked.

    `max_model_len` None is what the longest prompt and its answer take, so that an engine reserves no more.
    """

    engine: EngineName = "vllm"
    mode: Mode = "eager"
    dtype: str = "auto"
    seed: int = 0
    tensor_parallel_size: int = 1
    max_model_len: int | None = None
    max_tokens: int = 16
    top_k: int = 5
    prompts: Path | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """How a golden file is checked; None is as recorded, and for `atol`, in nats, what `default_atol` says.

    `allow_ties` takes another token for right where, by `atol`, the two may have been equally likely. With `strict`,
    anything that is not as recorded is an error. Code that comes with the model runs only where `trust_remote_code`
    says so here: a golden file cannot ask for it.
    """

    engine: EngineName | None = None
    mode: Mode | None = None
    tensor_parallel_size: int | None = None
    atol: float | None = None
    allow_ties: bool = False
    strict: bool = False
    trust_remote_code: bool = False


def settings_to_record(config: Mapping[str, Any], prompts: tuple[Prompt, ...], options: RecordOptions) -> Settings:
    """Return the settings to ask `prompts` with of the model that `config` describes."""
    longest = max(map(len, prompts)) + options.max_tokens
    limit = model_length(config) or longest
    return Settings(
        engine=options.engine,
        mode=options.mode,
        dtype=options.dtype,
        seed=options.seed,
        tensor_parallel_size=options.tensor_parallel_size,
        max_model_len=min(longest, limit) if options.max_model_len is None else options.max_model_len,
        max_tokens=options.max_tokens,
        top_k=options.top_k,
    )


def settings_to_check(recorded: Settings, options: CheckOptions) -> Settings:
    """Return the recorded settings with those that the user asks to change."""
    return replace(
        recorded,
        engine=options.engine or recorded.engine,
        mode=options.mode or recorded.mode,
        tensor_parallel_size=options.tensor_parallel_size or recorded.tensor_parallel_size,
    )


def default_atol(settings: Settings, warnings: Sequence[str]) -> float:
    """Return 0 where equal bits are promised: eager, and nothing that is not as recorded. Else `LOOSE_ATOL`."""
    return LOOSE_ATOL if warnings or settings.mode != "eager" else 0.0


def settings_differences(recorded: Settings, asked: Settings) -> tuple[str, ...]:
    """Return a sentence for each setting that is not as recorded."""
    names = {"engine": "engine", "mode": "mode", "tensor_parallel_size": "tensor parallel size"}
    return tuple(
        f"{name}: recorded with {getattr(recorded, field)}, here {getattr(asked, field)}"
        for field, name in names.items()
        if getattr(recorded, field) != getattr(asked, field)
    )
