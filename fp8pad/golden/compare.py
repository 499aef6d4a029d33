"""Comparing answers: pure, prompt by prompt, up to the first token that differs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fp8pad.golden.document import Answer, Step

# What logprobs may differ by where bits may differ: another device, version or TP size, or compiled. docs/equality.md
# says what was measured and why this much.
LOOSE_ATOL = 0.25


@dataclass(frozen=True, slots=True)
class Difference:
    """The first thing in an answer that is not as recorded; `step` counts the answer's tokens from 0."""

    step: int
    kind: Literal["token", "logprob"]
    expected: str
    got: str


@dataclass(frozen=True, slots=True)
class PromptResult:
    """One prompt compared. `max_abs_difference` is that of the logprobs up to the first token that differs."""

    prompt: int
    num_prompt_tokens: int
    identical: bool
    max_abs_difference: float
    difference: Difference | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A check's result. `warnings` are sentences on what was not as recorded; `atol` is in nats."""

    model: str
    atol: float
    warnings: tuple[str, ...]
    prompts: tuple[PromptResult, ...]

    @property
    def ok(self) -> bool:
        """Whether every answer has the recorded tokens, and logprobs within `atol`."""
        return not self.differing

    @property
    def differing(self) -> tuple[PromptResult, ...]:
        """The prompts whose answers are not as recorded."""
        return tuple(result for result in self.prompts if result.difference)

    @property
    def num_identical(self) -> int:
        """How many answers are equal to the last bit of their logprobs."""
        return sum(result.identical for result in self.prompts)

    @property
    def max_abs_difference(self) -> float:
        """The largest difference between two logprobs that were compared, in nats."""
        return max((result.max_abs_difference for result in self.prompts), default=0.0)

    def to_json(self) -> dict[str, Any]:
        """Return what `golden check --json` prints."""
        summary = {"num_identical": self.num_identical, "max_abs_difference": self.max_abs_difference}
        return {"ok": self.ok, **asdict(self), **summary}


def compare_answers(expected: Sequence[Answer], got: Sequence[Answer], atol: float) -> tuple[PromptResult, ...]:
    """Compare answers to the same prompts, in the same order; `ValueError` if there are not as many."""
    pairs = zip(expected, got, strict=True)
    return tuple(_compare(index, *pair, atol) for index, pair in enumerate(pairs))


def _compare(index: int, expected: Answer, got: Answer, atol: float) -> PromptResult:
    num_steps = _num_comparable_steps(expected, got)
    distances = [step_distance(*steps) for steps in list(zip(expected.logprobs, got.logprobs, strict=True))[:num_steps]]
    return PromptResult(
        prompt=index,
        num_prompt_tokens=len(expected.prompt_token_ids),
        identical=expected.digest() == got.digest(),
        max_abs_difference=max(distances),
        difference=_first_difference(expected, got, distances, atol),
    )


def _num_comparable_steps(expected: Answer, got: Answer) -> int:
    """Steps up to the first token that differs, its own included: after it the models were asked different things."""
    pairs = zip(expected.token_ids, got.token_ids, strict=True)
    return next((step + 1 for step, (one, other) in enumerate(pairs) if one != other), len(expected.token_ids))


def step_distance(expected: Step, got: Step) -> float:
    """Return the largest difference between two steps' logprobs, rank by rank and token by token.

    Tokens that tie at the end of the top-k may be others in the two; a rank's logprob is the same whichever they are,
    and no rank moves by more than the largest move of any token's logprob.
    """
    num_ranks = min(len(expected), len(got))
    ranks = zip(expected[:num_ranks], got[:num_ranks], strict=True)
    by_rank = [abs(one[1] - other[1]) for one, other in ranks]
    expected_of, got_of = dict(expected), dict(got)
    by_token = [abs(expected_of[token_id] - got_of[token_id]) for token_id in expected_of.keys() & got_of.keys()]
    return max(by_rank + by_token)


def _first_difference(expected: Answer, got: Answer, distances: list[float], atol: float) -> Difference | None:
    for step, distance in enumerate(distances):
        tokens = expected.token_ids[step], got.token_ids[step]
        if tokens[0] != tokens[1]:
            return Difference(step, "token", *(_shown_token(answer, step, tokens) for answer in (expected, got)))
        if distance > atol:
            return Difference(step, "logprob", *_shown_logprobs(expected.logprobs[step], got.logprobs[step]))
    return None


def _shown_token(answer: Answer, step: int, tokens: tuple[int, int]) -> str:
    """Say which token was chosen, and how likely it and the other side's choice were."""
    logprobs = dict(answer.logprobs[step])
    chosen = answer.token_ids[step]
    other = tokens[0] if chosen == tokens[1] else tokens[1]
    versus = f"{logprobs[other]:.6g}" if other in logprobs else "not in the top k"
    return f"{chosen} at {logprobs[chosen]:.6g} ({other}: {versus})"


def _shown_logprobs(expected: Step, got: Step) -> tuple[str, str]:
    """Show the token whose logprob moved most, or the rank where no token is in both."""
    expected_of, got_of = dict(expected), dict(got)
    common = [token_id for token_id, _ in expected if token_id in got_of]
    token_id = max(common, key=lambda token_id: abs(expected_of[token_id] - got_of[token_id]))
    return f"{token_id}: {expected_of[token_id]!r}", f"{token_id}: {got_of[token_id]!r}"
