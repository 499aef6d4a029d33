"""Prompts: built-in ones for any vocabulary, those from files, and those that are refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fp8pad.errors import GoldenError
from fp8pad.golden.prompts import BUILT_IN_LENGTHS, built_in_prompts, check_prompts, model_length, read_prompts

CONFIG: Mapping[str, Any] = {"vocab_size": 50, "max_position_embeddings": 40, "eos_token_id": [1, 2], "bos_token_id": 0}


def test_built_in_prompts_are_the_same_for_the_same_seed() -> None:
    """A recording can be repeated anywhere: random.Random guarantees its sequence."""
    prompts = built_in_prompts({"vocab_size": 1000}, max_tokens=16, seed=0)
    assert prompts == built_in_prompts({"vocab_size": 1000}, max_tokens=16, seed=0)
    assert prompts != built_in_prompts({"vocab_size": 1000}, max_tokens=16, seed=1)
    assert prompts[:3] == ((844,), (757, 420), (258, 511, 404))
    assert tuple(map(len, prompts)) == BUILT_IN_LENGTHS


def test_built_in_prompts_fit_the_model() -> None:
    """Token ids are in the vocabulary, are not special tokens, and leave room for the answer."""
    prompts = built_in_prompts(CONFIG, max_tokens=16, seed=0)
    check_prompts(prompts, CONFIG, 16, 40)
    assert max(map(len, prompts)) == 24
    assert {0, 1, 2}.isdisjoint(token_id for prompt in prompts for token_id in prompt)


def test_the_language_models_own_sizes_count() -> None:
    """A vision model has its vocabulary and length in text_config; image placeholders are not used."""
    config = {"text_config": {"vocab_size": 8, "max_position_embeddings": 64}, "image_token_id": 7, "vocab_size": 99}
    assert model_length(config) == 64
    assert {token_id for prompt in built_in_prompts(config, 16, 0) for token_id in prompt} == set(range(7))


def test_a_vocabulary_of_roles_alone_is_asked_anyway() -> None:
    """If all tokens are special, they are used."""
    assert built_in_prompts({"vocab_size": 1, "eos_token_id": 0}, 16, 0)[1] == (0, 0)


def test_without_a_vocabulary_there_is_no_built_in_prompt() -> None:
    """The error says what to do."""
    with pytest.raises(GoldenError, match=r"config\.json: vocab_size: no such key, .* use --prompts"):
        built_in_prompts({}, 16, 0)


def tokenize(text: str) -> list[int]:
    """Act as a tokenizer with one token per letter."""
    return [ord(letter) - ord("a") for letter in text if letter.isalpha()]


def test_text_is_a_prompt_a_line(tmp_path: Path) -> None:
    """Blank lines and a byte order mark are not prompts; a Unicode line separator does not end a line."""
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffab\r\n\n   \nb\u2028c\n".encode())
    assert read_prompts(file, tokenize) == ((0, 1), (1, 2))


def test_jsonl_holds_text_or_token_ids(tmp_path: Path) -> None:
    """Token ids are used unchanged; both kinds may be mixed."""
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "ab"}\n{"prompt_token_ids": [5, 6], "note": "kept by its author"}\n')
    assert read_prompts(file, tokenize) == ((0, 1), (5, 6))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"", "p.txt: expected one prompt per line, found none"),
        ("p.txt", b" \n\t\n", "p.txt: expected one prompt per line, found none"),
        ("p.txt", b"ab\n123\n", "p.txt: line 2: the prompt has no tokens"),
        ("p.txt", b"caf\xe9", "p.txt: not UTF-8: byte 0xe9 at 3"),
        ("p.jsonl", b"ab", "p.jsonl: line 1: not JSON"),
        ("p.jsonl", b'"ab"', "p.jsonl: line 1: expected .*prompt"),
        ("p.jsonl", b'{"text": "ab"}', "p.jsonl: line 1: expected .*prompt"),
        ("p.jsonl", b'\n{"prompt": 7}', "p.jsonl: line 2: prompt: expected str, got 7"),
        ("p.jsonl", b'{"prompt": ""}', "p.jsonl: line 1: the prompt has no tokens"),
        ("p.jsonl", b'{"prompt_token_ids": []}', "p.jsonl: line 1: the prompt has no tokens"),
        ("p.jsonl", b'{"prompt_token_ids": [1.5]}', r"prompt_token_ids\[0\]: expected int, got 1.5"),
    ],
)
def test_files_without_prompts_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """One line names the file, the line and what is wrong."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(GoldenError, match=message):
        read_prompts(tmp_path / name, tokenize)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The error names the file."""
    with pytest.raises(GoldenError, match=r"gone\.txt: No such file or directory"):
        read_prompts(tmp_path / "gone.txt", tokenize)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ((3,) * 25, "prompt 2: 25 tokens plus an answer of 16 exceed the context length of 40"),
        ((3, 50), "prompt 2: a token id is not below the vocabulary size, 50"),
        ((-1,), "prompt 2: a token id is not below the vocabulary size, 50"),
    ],
)
def test_prompts_that_cannot_be_asked_are_refused(prompt: tuple[int, ...], message: str) -> None:
    """They are refused by number, before any engine starts."""
    with pytest.raises(GoldenError, match=message):
        check_prompts([(3,), prompt], CONFIG, max_tokens=16, max_model_len=40)
