"""Comparing answers: what counts as a difference, where it is found, and what a JUnit file says about it."""

from xml.etree import ElementTree

import pytest

from fp8pad.golden.compare import Comparison, Difference, compare_answers, logprob_deltas
from fp8pad.golden.document import Answer, Step
from fp8pad.golden.junit import to_junit


def answer(*steps: Step, tokens: tuple[int, ...] | None = None) -> Answer:
    """Return an answer to the prompt 1, 2 that chose each step's most likely token by default."""
    return Answer((1, 2), tokens or tuple(step[0][0] for step in steps), steps)


FIRST: Step = ((7, -0.5), (8, -1.0))
SECOND: Step = ((9, -0.25), (7, -2.0))
RECORDED = answer(FIRST, SECOND)


def test_equal_answers_are_identical() -> None:
    """Nothing differs, and every token was compared."""
    (result,) = compare_answers([RECORDED], [answer(FIRST, SECOND)], 0.0)
    assert (result.identical, result.max_abs_difference, result.difference, result.num_compared) == (True, 0.0, None, 2)


def test_a_single_bit_of_a_logprob_is_a_difference_without_tolerance() -> None:
    """atol 0 means bitwise equality: the next float32 is a difference, and the step is named."""
    (result,) = compare_answers([RECORDED], [answer(FIRST, ((9, -0.2500000298), (7, -2.0)))], 0.0)
    assert result.difference == Difference(1, "logprob", "token 9 at -0.25", "token 9 at -0.25000003")
    assert not result.identical


@pytest.mark.parametrize(("atol", "differs"), [(0.125, False), (0.124, True)])
def test_the_tolerance_is_inclusive(atol: float, differs: bool) -> None:
    """A logprob may move by `atol` and no more."""
    (result,) = compare_answers([RECORDED], [answer(FIRST, ((9, -0.375), (7, -2.0)))], atol)
    assert (result.difference is not None, result.max_abs_difference) == (differs, 0.125)


def test_another_token_is_a_difference_whatever_the_tolerance() -> None:
    """Tokens must be equal; everything after the first different token is not compared."""
    (result,) = compare_answers([RECORDED], [answer(((8, -0.75), (7, -0.75)), ((3, -9.0), (4, -9.5)))], 100.0)
    assert result.difference == Difference(
        0, "token", "token 7 at -0.5 over token 8 at -1", "token 8 at -0.75 over token 7 at -0.75"
    )
    assert (result.num_compared, result.max_abs_difference) == (1, 0.25)


@pytest.mark.parametrize(("atol", "differs"), [(0.25, False), (0.2, True)])
def test_a_tie_is_allowed_only_within_the_tolerance(atol: float, differs: bool) -> None:
    """With ties allowed, another token passes only if no logprob of its step moved by more than `atol`."""
    tie = answer(((8, -0.75), (7, -0.75)), SECOND)
    (result,) = compare_answers([RECORDED], [tie], atol, allow_ties=True)
    assert (result.difference is not None) == differs


def test_a_token_that_was_not_in_the_top_is_no_tie() -> None:
    """Its recorded logprob is unknown, so it cannot be called a tie."""
    (result,) = compare_answers([RECORDED], [answer(((5, -0.5), (7, -1.0)), SECOND)], 10.0, allow_ties=True)
    assert result.difference
    assert result.difference.expected == "token 7 at -0.5 over token 5 below the top"


def test_tokens_that_leave_the_top_move_by_what_is_certain() -> None:
    """A token outside the top k is at most as likely as the last token inside."""
    assert logprob_deltas(((1, -0.5), (2, -1.0)), ((1, -0.5), (3, -1.5))) == {1: 0.0, 2: 0.5, 3: 0.0}


def test_a_tie_at_the_end_of_the_top_is_no_difference() -> None:
    """It does not matter which of two equally likely tokens is listed last."""
    (result,) = compare_answers([answer(FIRST)], [answer(((7, -0.5), (11, -1.0)))], 0.0)
    assert result.difference is None


def test_answers_must_be_as_many() -> None:
    """A missing answer is an error of the caller, not a difference."""
    with pytest.raises(ValueError, match="zip"):
        compare_answers([RECORDED], [], 0.0)


def comparison(*got: Answer) -> Comparison:
    """Compare answers with an equal number of recorded ones."""
    results = compare_answers([RECORDED] * len(got), got, 0.0)
    return Comparison("tiny", 0.0, ("device: recorded with A, here <B>",), 2 * len(got), results)


def test_the_document_holds_all_figures() -> None:
    """`--json` contains the verdict, the counts, and each prompt's first difference."""
    document = comparison(RECORDED, answer(((7, -0.5), (8, -1.5)), SECOND)).to_json()
    assert (document["ok"], document["num_identical"], document["max_abs_difference"]) == (False, 1, 0.5)
    assert document["prompts"][1]["difference"] == {
        "step": 0,
        "kind": "logprob",
        "expected": "token 8 at -1",
        "got": "token 8 at -1.5",
    }


def test_junit_has_a_case_for_each_prompt() -> None:
    """CI systems see which prompt failed and why, and the warnings too."""
    xml = to_junit(comparison(RECORDED, answer(((8, -0.5), (7, -1.0)), SECOND)))
    suite = ElementTree.fromstring(xml).find("testsuite")  # noqa: S314 - written a line above
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    assert [case.get("name") for case in suite.findall("testcase")] == ["prompt 1 (2 tokens)", "prompt 2 (2 tokens)"]
    failure = suite.find("testcase[2]/failure")
    assert failure is not None
    assert failure.get("message") == (
        "step 0: token: expected token 7 at -0.5 over token 8 at -1, got token 8 at -0.5 over token 7 at -1"
    )
    assert suite.findtext("system-out") == "device: recorded with A, here <B>"
