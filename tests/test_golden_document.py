"""Golden files: written and read again in full, and everything that is not one is refused with its place."""

import json
from dataclasses import replace
from typing import Any

import pytest

from fp8pad.errors import GoldenError
from fp8pad.golden.document import Answer, Environment, GoldenDocument, Settings, parse_document

SETTINGS = Settings("vllm", "eager", "bfloat16", 0, 1, 32, 2, 2)
ANSWER = Answer((3, 1), (7, 8), (((7, -0.1), (2, -2.5)), ((8, -0.30000001192092896), (9, -1e-30))))
GOLDEN = GoldenDocument(
    "0.1.0", "tiny", "sha256:00", SETTINGS, Environment("0.32.0", "2.13.0", "CPU"), "built-in, seed 0", (ANSWER,)
)


def test_a_document_is_read_back_as_it_was_written() -> None:
    """Every field and every bit of a logprob is preserved."""
    assert parse_document(GOLDEN.to_text(), "golden.json") == GOLDEN


def test_the_text_is_literally_this() -> None:
    """The file has the documented layout: one line per prompt, with its digest."""
    document = json.loads(GOLDEN.to_text())
    assert document["format_version"] == 1
    assert document["answers"] == [
        {
            "prompt_token_ids": [3, 1],
            "token_ids": [7, 8],
            "logprobs": [[[7, -0.1], [2, -2.5]], [[8, -0.30000001192092896], [9, -1e-30]]],
            "digest": "77940f3e6a1dbfd6dbf0edb893d8b69f0c725c92259fce1db9a968b3b8aa903d",
        }
    ]
    assert [line for line in GOLDEN.to_text().splitlines() if "digest" in line] == [f"  {json.dumps(ANSWER.to_json())}"]


def test_the_digest_tells_single_bits_apart() -> None:
    """The next float64 after a logprob changes the digest."""
    moved = replace(ANSWER, logprobs=(((7, -0.10000000000000002), (2, -2.5)), ANSWER.logprobs[1]))
    assert moved.digest() != ANSWER.digest()


def test_unknown_keys_are_passed_over() -> None:
    """A later version may add keys without changing format_version."""
    document = json.loads(GOLDEN.to_text()) | {"note": "added later"}
    assert parse_document(json.dumps(document), "golden.json") == GOLDEN


def changed(*path: str | int, to: Any) -> str:
    """Return the text of a golden file in which one value is changed."""
    document = json.loads(GOLDEN.to_text())
    node = document
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = to
    return json.dumps(document)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "golden.json: not a golden file: not JSON"),
        ("[1]", "golden.json: not a golden file: expected an object"),
        ('{"ok": true}', "golden.json: not a golden file: expected an object with format_version and answers"),
        ("[" * 100_000, "golden.json: not a golden file: not JSON"),
        (changed("format_version", to=2), "golden.json: format_version: expected 1, got 2"),
        (changed("format_version", to=True), "golden.json: format_version: expected 1, got true"),
        (changed("format_version", to=1.0), "golden.json: format_version: expected 1, got 1.0"),
        (changed("model", to="\ud800"), "golden.json: not a golden file: not JSON: .*surrogates not allowed"),
        (changed("model", to=None), "golden.json: model: expected str, got null"),
        (changed("settings", to=[]), r"golden.json: settings: expected an object, got \[\]"),
        (changed("settings", "engine", to="sglang"), 'engine: expected one of .*, got "sglang"'),
        (changed("settings", "engine", to=["vllm"]), "engine: expected one of"),
        (changed("settings", "seed", to=True), "seed: expected int, got true"),
        (changed("settings", "max_tokens", to=3), r"answers\[0\]: expected 3 tokens with logprobs, got 2"),
        (changed("answers", to=[]), "answers: expected at least one"),
        (changed("answers", 0, to=7), r"answers\[0\]: expected an object, got 7"),
        (changed("answers", 0, "token_ids", 0, to="7"), r'token_ids\[0\]: expected int, got "7"'),
        (changed("answers", 0, "token_ids", 0, to=5), r"answers\[0\]: token 5 has no logprob"),
        (changed("answers", 0, "logprobs", 0, 0, to=[7]), r"logprobs\[0\]\[0\]: expected a list of 2, got \[7\]"),
        (changed("answers", 0, "logprobs", 0, 0, 1, to=float("nan")), "expected a finite number, got NaN"),
        (changed("answers", 0, "logprobs", 0, 0, 1, to=10**400), "expected a finite number, got 1000"),
        (changed("answers", 0, "logprobs", 0, 0, 1, to=-0.2), r"answers\[0\]: digest: .* the file was changed"),
        (changed("answers", 0, "prompt_token_ids", to=[]), r"answers\[0\]: the prompt has no tokens"),
    ],
)
def test_what_is_not_a_golden_file_is_refused(text: str, message: str) -> None:
    """One clear line names the place, what was expected and what was found."""
    with pytest.raises(GoldenError, match=message) as caught:
        parse_document(text, "golden.json")
    assert "\n" not in str(caught.value)
