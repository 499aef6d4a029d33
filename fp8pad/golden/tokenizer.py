"""Prompts of text need the model's own tokenizer; it is loaded when the first text is met, so that others need none."""

from functools import cache
from pathlib import Path
from typing import Any

from fp8pad.errors import GoldenError
from fp8pad.golden.prompts import Tokenize


def tokenizer(model: Path, trust_remote_code: bool) -> Tokenize:
    """Return a function from a text to its token ids, with what the model's tokenizer adds (a begin-of-text token).

    It raises `GoldenError` if transformers is not installed or the tokenizer cannot be loaded.
    """

    def tokenize(text: str) -> list[int]:
        return list(_load(model, trust_remote_code)(text)["input_ids"])

    return tokenize


@cache
def _load(model: Path, trust_remote_code: bool) -> Any:
    try:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except ImportError as error:
        raise GoldenError(f"prompts of text need transformers, which cannot be imported: {error}") from error
    except Exception as error:  # a tokenizer may be code of its own, and raise anything
        cause = str(error).strip().partition("\n")[0]
        raise GoldenError(f"{model}: prompts of text need its tokenizer, which cannot be loaded: {cause}") from error
