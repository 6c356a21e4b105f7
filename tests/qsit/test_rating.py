"""The procedure of a score, against the numbers that the model's authors publish."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qsit.rating import ANSWER, AS_STORED, PROMPT, UPRIGHT, WEIGHTS, WORDS, score_of

ANCHOR = (11.953125, 9.390625, 11.0390625, 12.1015625, 15.3984375)
LOGITS = st.tuples(*[st.floats(-65504, 65504)] * 5)  # what float16 can say


def test_the_published_logits_give_the_published_score() -> None:
    score = score_of(ANCHOR)

    assert score.value == 0.045549712192942585
    assert score.logits == ANCHOR


def test_the_prompt_is_the_published_one_letter_by_letter() -> None:
    assert PROMPT == (
        "Assume you are an image quality evaluator. \nYour rating should be chosen from the following five categories: "
        "Excellent, Good, Fair, Poor, and Bad (from high to low). \nHow would you rate the quality of this image?"
    )
    assert ANSWER == "The quality of this image is "
    assert dict(zip(WORDS, WEIGHTS, strict=True)) == {"Excellent": 1, "Good": 0.75, "Fair": 0.5, "Poor": 0.25, "Bad": 0}


def test_the_two_pixel_policies_are_different_procedures() -> None:
    assert UPRIGHT != AS_STORED


@given(LOGITS)
@example((0.0,) * 5)
@example((60000.0,) * 5)
@example((-60000.0,) * 5)
@settings(deadline=None)
def test_probabilities_sum_to_one_and_the_score_lies_between_bad_and_excellent(logits: tuple[float, ...]) -> None:
    score = score_of(logits)

    assert math.isclose(sum(score.probabilities), 1, abs_tol=1e-12)
    assert all(0 <= probability <= 1 for probability in score.probabilities)
    assert -1e-12 <= score.value <= 1 + 1e-12


@given(st.permutations([0.0, 1.0, 2.0, 3.0, 4.0]), st.floats(-60000, 60000))
@settings(deadline=None)
def test_only_the_differences_of_logits_matter(logits: list[float], shift: float) -> None:
    shifted = score_of([logit + shift for logit in logits])

    assert math.isclose(shifted.value, score_of(logits).value, abs_tol=1e-6)


@pytest.mark.parametrize("place", range(5))
def test_a_certain_rating_gives_its_own_weight_without_overflow(place: int) -> None:
    logits = [0.0] * 5
    logits[place] = 60000.0

    score = score_of(logits)

    assert score.value == WEIGHTS[place]
    assert score.probabilities[place] == 1


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_rating_that_is_not_finite_is_refused(value: float, place: int) -> None:
    logits = [1.0] * 5
    logits[place] = value

    with pytest.raises(ValueError, match="no finite rating"):
        score_of(logits)
