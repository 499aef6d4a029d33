"""Compare answers prompt by prompt, up to the first token that differs; nothing is read or run here."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fp8pad.golden.document import FORMAT_VERSION, Answer, Step

# How far logprobs may differ where bitwise equality is not expected: another device, version or TP size, or compiled.
# docs/equality.md says what was measured and why this much.
LOOSE_ATOL = 0.5


@dataclass(frozen=True, slots=True)
class Difference:
    """The first difference between an answer and the recorded one; `step` counts the answer's tokens from 0."""

    step: int
    kind: Literal["token", "logprob"]
    expected: str
    got: str


@dataclass(frozen=True, slots=True)
class PromptResult:
    """The comparison of one prompt; `prompt` counts from 1.

    `num_compared` tokens of the answer were compared: up to and including the first that differs, because after it the
    models continue different texts. `max_abs_difference` is the largest difference of their logprobs.
    """

    prompt: int
    num_prompt_tokens: int
    num_compared: int
    identical: bool
    max_abs_difference: float
    difference: Difference | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A check's result. `warnings` are sentences about what differs from the recorded run; `atol` is in nats.

    `num_tokens` is the total length of all answers.
    """

    model: str
    atol: float
    warnings: tuple[str, ...]
    num_tokens: int
    prompts: tuple[PromptResult, ...]

    @property
    def ok(self) -> bool:
        """Whether every answer has the recorded tokens, and logprobs within `atol`."""
        return not self.differing

    @property
    def differing(self) -> tuple[PromptResult, ...]:
        """The prompts whose answers differ from the recorded ones."""
        return tuple(result for result in self.prompts if result.difference)

    @property
    def num_identical(self) -> int:
        """The number of answers that are bitwise equal, logprobs included."""
        return sum(result.identical for result in self.prompts)

    @property
    def max_abs_difference(self) -> float:
        """The largest difference between two logprobs that were compared, in nats."""
        return max((result.max_abs_difference for result in self.prompts), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """Return what `golden check --json` prints."""
        summary = {"num_identical": self.num_identical, "max_abs_difference": self.max_abs_difference}
        return {"format_version": FORMAT_VERSION, "ok": self.ok, **asdict(self), **summary}


def compare_answers(
    expected: Sequence[Answer], got: Sequence[Answer], atol: float, allow_ties: bool = False
) -> tuple[PromptResult, ...]:
    """Compare answers to the same prompts, in the same order; raises `ValueError` if their numbers differ.

    With `allow_ties`, a different token is accepted if both tokens are in the top k of both sides and no logprob of the
    step moved by more than `atol`: then the two were at most `2 * atol` apart.
    """
    pairs = zip(expected, got, strict=True)
    return tuple(_compare(number, *pair, atol, allow_ties) for number, pair in enumerate(pairs, start=1))


def _compare(number: int, expected: Answer, got: Answer, atol: float, allow_ties: bool) -> PromptResult:
    pairs = zip(expected.token_ids, got.token_ids, strict=True)
    up_to_other = (step + 1 for step, (one, other) in enumerate(pairs) if one != other)
    num_compared = next(up_to_other, len(expected.token_ids))
    steps = zip(expected.logprobs[:num_compared], got.logprobs[:num_compared], strict=True)
    deltas = [logprob_deltas(*step) for step in steps]
    return PromptResult(
        prompt=number,
        num_prompt_tokens=len(expected.prompt_token_ids),
        num_compared=num_compared,
        identical=expected.digest() == got.digest(),
        max_abs_difference=max(max(of_step.values()) for of_step in deltas),
        difference=_first_difference(expected, got, deltas, atol, allow_ties),
    )


def logprob_deltas(expected: Step, got: Step) -> dict[int, float]:
    """Return, for each token of either side, by how much its logprob differs, at least.

    A token outside the other side's top k is at most as likely there as the least likely token inside.
    """
    expected_of, got_of = dict(expected), dict(got)
    least_expected, least_got = min(expected_of.values()), min(got_of.values())
    both = {token: abs(expected_of[token] - got_of[token]) for token in expected_of.keys() & got_of.keys()}
    gone = {token: max(0.0, value - least_got) for token, value in expected if token not in got_of}
    came = {token: max(0.0, value - least_expected) for token, value in got if token not in expected_of}
    return both | gone | came


def _first_difference(
    expected: Answer, got: Answer, deltas: Sequence[Mapping[int, float]], atol: float, allow_ties: bool
) -> Difference | None:
    for step, of_step in enumerate(deltas):
        recorded, found = expected.logprobs[step], got.logprobs[step]
        tokens, largest = (expected.token_ids[step], got.token_ids[step]), max(of_step.values())
        is_tie = allow_ties and largest <= atol and set(tokens) <= dict(recorded).keys() & dict(found).keys()
        if tokens[0] != tokens[1] and not is_tie:
            return Difference(step, "token", _chosen(recorded, *tokens), _chosen(found, *reversed(tokens)))
        if largest > atol:
            token_id = max(token_id for token_id, delta in of_step.items() if delta == largest)
            return Difference(step, "logprob", _logprob(recorded, token_id), _logprob(found, token_id))
    return None


def _chosen(step: Step, token_id: int, other_id: int) -> str:
    """Return the chosen token with its logprob, and that of the other side's choice, as text."""
    return f"{_logprob(step, token_id)} over {_logprob(step, other_id)}"


def _logprob(step: Step, token_id: int) -> str:
    logprobs = dict(step)
    return (
        f"token {token_id} at {logprobs[token_id]:.9g}" if token_id in logprobs else f"token {token_id} below the top"
    )
