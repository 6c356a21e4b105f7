"""The procedure of a score: the prompt, the rating words, and the pixels they are asked about."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

PROMPT = (
    "Assume you are an image quality evaluator. \n"
    "Your rating should be chosen from the following five categories: "
    "Excellent, Good, Fair, Poor, and Bad (from high to low). \n"
    "How would you rate the quality of this image?"
)
"""The rating question of the model's README (https://huggingface.co/zhangzicheng/q-sit-mini)."""

ANSWER = "The quality of this image is "
"""What the model is made to have said; its next token is the rating. Tokenised apart from the prompt."""

WORDS = ("Excellent", "Good", "Fair", "Poor", "Bad")
WEIGHTS = (1.0, 0.75, 0.5, 0.25, 0.0)

UPRIGHT = "rating-1/upright-1"
"""Pixels as a viewer shows them: turned as EXIF says, on white, in sRGB."""

AS_STORED = "rating-1/as-stored-1"
"""Pixels as the file has them, which is what the model's README scores."""


@dataclass(frozen=True)
class Score:
    """A score from 0 (bad) to 1 (excellent); probabilities and logits in the order of WORDS."""

    value: float
    probabilities: tuple[float, ...]
    logits: tuple[float, ...]


def score_of(logits: Sequence[float]) -> Score:
    """
    The softmax over the five rating logits, weighted with 1, 0.75, 0.5, 0.25 and 0 (arXiv 2503.09197).

    Raises:
        ValueError: when a logit is not finite.
    """
    if not all(map(math.isfinite, logits)):
        raise ValueError("the model gave no finite rating")
    top = max(logits)
    shift = top if abs(top) > 500 else 0.0  # within that, as the model's authors compute it, to the last bit
    exponentials = [math.exp(logit - shift) for logit in logits]
    total = sum(exponentials)
    probabilities = tuple(exponential / total for exponential in exponentials)
    value = sum(probability * weight for probability, weight in zip(probabilities, WEIGHTS, strict=True))
    return Score(value, probabilities, tuple(map(float, logits)))
