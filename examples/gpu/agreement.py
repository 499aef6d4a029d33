"""Compare the answers of engines: bitwise, by tokens, and by the largest difference of a logprob."""

from collections.abc import Mapping, Sequence
from typing import Any

from engine import Engine, prompt_ids, run_all

ANSWER_TOKENS = 16
# From this number of tokens on, larger images are used too.
LONG_PROMPT = 2000

Batch = tuple[int, int, int]
Answers = list[dict[str, Any]]


def compare(engines: Mapping[str, Engine], batches: Sequence[Batch], *, images: bool) -> dict[str, Any]:
    """Run every batch, `(seed, prompts, tokens per prompt)`, and compare the answers with the first engine's."""
    reference, *others = engines
    agreements = {kind: Agreement(reference) for kind in others}
    for seed, batch, length in batches:
        answers = run_all(engines, "answers", **request(seed, batch, length, images=images))
        for kind, agreement in agreements.items():
            agreement.add(answers[reference], answers[kind])
    return {kind: vars(agreement) for kind, agreement in agreements.items()}


def request(seed: int, batch: int, length: int, *, images: bool = False) -> dict[str, Any]:
    """Return the request for a batch of prompts, with one or two images before each if `images`."""
    prompts = [prompt_ids(length, 100 * seed + number) for number in range(batch)]
    arguments: dict[str, Any] = {"prompts": prompts, "max_tokens": ANSWER_TOKENS, "seed": seed}
    if images:
        arguments |= {"images": 1 + seed % 2, "size": 448 if length < LONG_PROMPT else 1036}
    return arguments


class Agreement:
    """Counts how many of an engine's answers equal those of another, `compared_with`."""

    def __init__(self, compared_with: str) -> None:
        self.compared_with = compared_with
        self.num_answers = self.num_tokens = self.num_identical = self.num_same_tokens = 0
        self.largest_difference = 0.0

    def add(self, expected: Answers, got: Answers) -> None:
        """Count the answers to one batch."""
        for one, other in zip(expected, got, strict=True):
            self.num_answers += 1
            self.num_tokens += len(one["tokens"])
            self.num_identical += one == other
            self.num_same_tokens += one["tokens"] == other["tokens"]
            self.largest_difference = max(self.largest_difference, _largest_difference(one, other))


def _largest_difference(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Return the largest difference of a logprob that both have, up to and including the first different token."""
    largest = 0.0
    for step, (token, other_token) in enumerate(zip(one["tokens"], other["tokens"], strict=True)):
        ours, theirs = (dict(map(tuple, answer["logprobs"][step])) for answer in (one, other))
        differences = (abs(float.fromhex(ours[t]) - float.fromhex(theirs[t])) for t in ours.keys() & theirs.keys())
        largest = max([largest, *differences])
        if token != other_token:
            break
    return largest
