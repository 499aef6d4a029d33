"""Prompts as token ids, from a file or from a seed, checked before any engine starts."""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fp8pad.errors import GoldenError
from fp8pad.golden.document import READER, read_text

Prompt = tuple[int, ...]
Tokenize = Callable[[str], Sequence[int]]

# One token alone, lengths around the multiples of 16 that kernels prefer, and a longer one.
BUILT_IN_LENGTHS = (1, 2, 3, 5, 8, 13, 15, 16, 17, 21, 31, 32, 33, 48, 63, 65)

# The config keys in which model families keep the longest sequence that their positions allow.
_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")


def built_in_prompts(config: Mapping[str, Any], max_tokens: int, seed: int) -> tuple[Prompt, ...]:
    """Return 16 prompts of seeded random tokens for the model of `config`; no tokenizer is needed.

    Tokens that the config gives a role (end of text, image placeholders, ...) are not used. Prompts are cut so that the
    model's positions allow `max_tokens` more. Raises `GoldenError` if the config has no vocabulary size.
    """
    vocab_size = _text_value(config, "vocab_size")
    if vocab_size is None:
        raise GoldenError("config.json: vocab_size: no such key, so built-in prompts cannot be made; use --prompts")
    special = set(_special_token_ids(config))
    ordinary = [token_id for token_id in range(vocab_size) if token_id not in special] or range(vocab_size)
    longest = max(1, (model_length(config) or max_tokens + max(BUILT_IN_LENGTHS)) - max_tokens)
    choose = random.Random(seed)  # noqa: S311 - prompts are no secret
    return tuple(tuple(choose.choices(ordinary, k=min(num_tokens, longest))) for num_tokens in BUILT_IN_LENGTHS)


def read_prompts(file: Path, tokenize: Tokenize) -> tuple[Prompt, ...]:
    """Read one prompt per line: plain text, or, if the name ends in `.jsonl`, `{"prompt": TEXT}` or
    `{"prompt_token_ids": [IDS]}`.

    Blank lines are skipped. Raises `GoldenError` if the file cannot be read, is not UTF-8 or has no prompt, and, with
    the line's number, for a malformed line or a prompt without tokens.
    """
    text = read_text(file, file.name)
    lines = [(f"{file.name}: line {number}", line) for number, line in enumerate(text.split("\n"), start=1)]
    prompts = {where: _prompt(line, where, file.suffix == ".jsonl", tokenize) for where, line in lines if line.strip()}
    for where, prompt in prompts.items():
        if not prompt:
            raise GoldenError(f"{where}: the prompt has no tokens")
    if not prompts:
        raise GoldenError(f"{file.name}: expected one prompt per line, found none")
    return tuple(prompts.values())


def check_prompts(prompts: Sequence[Prompt], config: Mapping[str, Any], max_tokens: int, max_model_len: int) -> None:
    """Raise `GoldenError` for a prompt that is too long with its answer, or a token outside the vocabulary."""
    vocab_size = _text_value(config, "vocab_size")
    for number, prompt in enumerate(prompts, start=1):
        if len(prompt) + max_tokens > max_model_len:
            raise GoldenError(
                f"prompt {number}: {len(prompt)} tokens plus an answer of {max_tokens}"
                f" exceed the context length of {max_model_len}"
            )
        if vocab_size is not None and not all(0 <= token_id < vocab_size for token_id in prompt):
            raise GoldenError(f"prompt {number}: a token id is not below the vocabulary size, {vocab_size}")


def model_length(config: Mapping[str, Any]) -> int | None:
    """Return the largest number of tokens that the model's positions allow, or None if its config does not say."""
    return next((length for key in _LENGTH_KEYS if (length := _text_value(config, key))), None)


def tokenizer(model: Path, trust_remote_code: bool) -> Tokenize:
    """Return a function from a text to its token ids, with what the model's tokenizer adds (a begin-of-text token).

    The tokenizer is loaded at the first text; prompts of token ids need none. The function raises `GoldenError` if
    transformers is not installed or the tokenizer cannot be loaded.
    """
    return lambda text: list(_load_tokenizer(model, trust_remote_code)(text)["input_ids"])


@cache
def _load_tokenizer(model: Path, trust_remote_code: bool) -> Any:
    try:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(model, trust_remote_code=trust_remote_code)
    except ImportError as error:
        raise GoldenError(f"text prompts need transformers, which cannot be imported: {error}") from error
    except Exception as error:  # a tokenizer may come with its own code, and raise anything
        cause = str(error).strip().partition("\n")[0]
        raise GoldenError(f"{model}: text prompts need its tokenizer, which cannot be loaded: {cause}") from error


def _text_value(config: Mapping[str, Any], key: str) -> int | None:
    """Return a size of the language model, which may have a section of its own in the config."""
    for section in (config.get("text_config"), config.get("llm_config"), config):
        if isinstance(section, Mapping) and type(value := section.get(key)) is int and value > 0:
            return value
    return None


def _special_token_ids(node: Any, is_special: bool = False) -> Iterator[int]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _special_token_ids(value, "token_id" in key or "token_index" in key)
    elif isinstance(node, list):
        for value in node:
            yield from _special_token_ids(value, is_special)
    elif is_special and type(node) is int:
        yield node


def _prompt(line: str, where: str, is_json: bool, tokenize: Tokenize) -> Prompt:
    if not is_json:
        return tuple(tokenize(line))
    document = READER.parse_json(line, where)
    if isinstance(document, dict) and "prompt_token_ids" in document:
        return READER.read(Prompt, document["prompt_token_ids"], f"{where}: prompt_token_ids")
    if isinstance(document, dict) and "prompt" in document:
        return tuple(tokenize(READER.read(str, document["prompt"], f"{where}: prompt")))
    raise GoldenError(f'{where}: expected {{"prompt": TEXT}} or {{"prompt_token_ids": [IDS]}}')
