"""The procedure of a score: the prompt, the rating words and the pixel policy."""

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
"""The beginning of the model's reply; its next token is the rating. Tokenized separately from the prompt."""

WORDS = ("Excellent", "Good", "Fair", "Poor", "Bad")
"""The ratings that the model chooses from."""

WEIGHTS = (1.0, 0.75, 0.5, 0.25, 0.0)
"""The score of each rating."""

UPRIGHT = "rating-1/upright-1"
"""The procedure with pixels as a viewer shows them: rotated by EXIF, on white, in sRGB."""

AS_STORED = "rating-1/as-stored-1"
"""The procedure with pixels as they are in the file, as in the model's README."""


@dataclass(frozen=True)
class Score:
    """A score from 0 (bad) to 1 (excellent), with probabilities and logits in the order of WORDS."""

    value: float
    probabilities: tuple[float, ...]
    logits: tuple[float, ...]


def score_of(logits: Sequence[float]) -> Score:
    """
    Return the score of five rating logits: their softmax, weighted with WEIGHTS (arXiv 2503.09197).

    Raises ValueError when a logit is infinite or NaN.
    """
    if not all(map(math.isfinite, logits)):
        raise ValueError("the model gave no finite rating")
    top = max(logits)
    shift = top if abs(top) > 500 else 0.0  # exp() overflows at 710; without a shift, all bits match the authors' code
    exponentials = [math.exp(logit - shift) for logit in logits]
    total = sum(exponentials)
    probabilities = tuple(exponential / total for exponential in exponentials)
    value = sum(probability * weight for probability, weight in zip(probabilities, WEIGHTS, strict=True))
    return Score(value, probabilities, tuple(map(float, logits)))
