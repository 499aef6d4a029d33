"""The input of a golden run: the user's options, the resulting settings, and the request to the engine."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from fp8pad.golden.compare import LOOSE_ATOL
from fp8pad.golden.document import Answer, EngineName, Environment, Mode, Settings, Step
from fp8pad.golden.prompts import Prompt, model_length


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """How a golden file is recorded. Lengths are in tokens; without `prompts`, the built-in ones of `seed` are used.

    `max_model_len` None is the length of the longest prompt and its answer, so that an engine reserves no more.
    """

    prompts: Path | None = None
    engine: EngineName = "vllm"
    mode: Mode = "eager"
    dtype: str = "auto"
    seed: int = 0
    tensor_parallel_size: int = 1
    max_model_len: int | None = None
    max_tokens: int = 16
    top_k: int = 5
    trust_remote_code: bool = False


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """How a golden file is checked; None means as recorded, and for `atol`, in nats, `default_atol`.

    `allow_ties` accepts another token if, within `atol`, the two may have been equally likely. With `strict`, other
    settings or another environment than recorded are an error. Code that comes with the model runs only if
    `trust_remote_code` is set here: a golden file cannot enable it.
    """

    atol: float | None = None
    allow_ties: bool = False
    strict: bool = False
    engine: EngineName | None = None
    mode: Mode | None = None
    tensor_parallel_size: int | None = None
    trust_remote_code: bool = False


def settings_to_record(config: Mapping[str, Any], prompts: tuple[Prompt, ...], options: RecordOptions) -> Settings:
    """Return the settings for running `prompts` on the model that `config` describes."""
    longest = max(map(len, prompts)) + options.max_tokens
    limit = model_length(config) or longest
    asked = {field.name: getattr(options, field.name) for field in fields(Settings)}
    length = min(longest, limit) if options.max_model_len is None else options.max_model_len
    return Settings(**asked | {"max_model_len": length})


def settings_to_check(recorded: Settings, options: CheckOptions) -> Settings:
    """Return the recorded settings with the user's changes."""
    return replace(
        recorded,
        engine=options.engine or recorded.engine,
        mode=options.mode or recorded.mode,
        tensor_parallel_size=options.tensor_parallel_size or recorded.tensor_parallel_size,
    )


def default_atol(settings: Settings, warnings: Sequence[str]) -> float:
    """Return 0 when bitwise equality is expected: eager, and everything as recorded. Otherwise return `LOOSE_ATOL`."""
    return LOOSE_ATOL if warnings or settings.mode != "eager" else 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """Prompts for a model in a local folder. If `required` is set, any other environment is refused."""

    model: str
    settings: Settings
    prompts: tuple[Prompt, ...]
    trust_remote_code: bool
    required: Environment | None


@dataclass(frozen=True, slots=True)
class Reply:
    """The answers, in the order of the prompts; `dtype` is the one that the engine computed in."""

    environment: Environment
    dtype: str
    answers: tuple[Answer, ...]


def differences(recorded: Settings | Environment, here: Settings | Environment) -> tuple[str, ...]:
    """Return a sentence for each field that differs from the recorded one."""
    found = asdict(here)
    return tuple(
        f"{name.replace('_', ' ')}: recorded with {value}, here {found[name]}"
        for name, value in asdict(recorded).items()
        if found[name] != value
    )


def likeliest_first(logprobs: dict[int, float]) -> Step:
    """Return a step's logprobs as an `Answer` holds them; tokens that are equally likely are ordered by id."""
    return tuple(sorted(logprobs.items(), key=lambda pair: (-pair[1], pair[0])))


def cpu_name() -> str:
    """Return the processor's name and what decides how it splits sums: vector capability and number of cores."""
    import torch

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    return f"CPU {model} ({torch.backends.cpu.get_cpu_capability()}, {len(os.sched_getaffinity(0))} cores)"
