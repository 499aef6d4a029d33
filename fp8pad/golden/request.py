"""What the process that runs an engine is asked, and what it replies; JSON files carry both."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from fp8pad.errors import GoldenError
from fp8pad.golden.document import Answer, Environment, Settings, Step
from fp8pad.golden.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Question:
    """Prompts for a model in a local folder. Where `required` is set, any other environment is refused."""

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


def check_environment(environment: Environment, required: Environment | None) -> None:
    """Raise `GoldenError` where an environment is required and this is another."""
    if required is not None and (differences := environment_differences(required, environment)):
        raise GoldenError("; ".join(differences))


def environment_differences(recorded: Environment, here: Environment) -> tuple[str, ...]:
    """Return a sentence for each thing that is not as it was recorded."""
    names = {"engine_version": "engine version", "torch_version": "torch version", "device": "device"}
    return tuple(
        f"{name}: recorded with {getattr(recorded, field)}, here {getattr(here, field)}"
        for field, name in names.items()
        if getattr(recorded, field) != getattr(here, field)
    )


def likeliest_first(logprobs: dict[int, float]) -> Step:
    """Return a step's logprobs as an `Answer` holds them; tokens that are equally likely are ordered by id."""
    return tuple(sorted(logprobs.items(), key=lambda pair: (-pair[1], pair[0])))


def cpu_name(capability: str) -> str:
    """Name the processor and what decides how sums are split on it: vector `capability` and number of cores."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    return f"CPU {model} ({capability}, {len(os.sched_getaffinity(0))} cores)"
