"""Sentences for the plan that belong to no layer."""

import re
from collections.abc import Iterable, Iterator

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def lora_notes(absorbed_modules: Iterable[str]) -> Iterator[str]:
    """Say which LoRA adapters no longer fit: those of modules whose sizes change in the config."""
    patterns = dict.fromkeys(_NUMBER.sub("*", module) for module in absorbed_modules)
    if patterns:
        yield f"LoRA adapters trained on the original do not fit what is absorbed: {', '.join(patterns)}"
