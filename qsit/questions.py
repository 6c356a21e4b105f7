"""Questions about photos, and their answers."""

import json
from dataclasses import dataclass

from qsit.errors import UsageError

MAX_NEW_TOKENS = 200
"""The length limit of an answer, as in the model's README."""

MAX_QUESTION_BYTES = 2500
"""Bytes of text and choices together. An entry of a PostgreSQL index holds them in 2,704 bytes."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""The letters of choices."""


@dataclass(frozen=True)
class Question:
    """
    A question about a photo. With choices, the answer is the likeliest choice, and each choice has its probability.
    Without choices, the answer is text of at most `max_new_tokens`.

    name: what results call it. The answer does not depend on it.
    """

    name: str
    text: str
    choices: tuple[str, ...] = ()
    max_new_tokens: int = MAX_NEW_TOKENS

    @property
    def generation(self) -> str:
        """How the answer is generated. The answer depends on it, on the text and on the choices."""
        return "choices-1" if self.choices else f"greedy-1/{self.max_new_tokens}"


@dataclass(frozen=True)
class Answer:
    """
    An answer to a question about a photo.

    text: what the model said, without white space around it; may be empty.
    cut: whether the answer was longer than its tokens allowed.
    probabilities: of the choices, in their order; they sum to 1. Empty without choices.
    """

    text: str
    cut: bool = False
    probabilities: tuple[float, ...] = ()


LEVELS = ("very low", "low", "acceptable", "high")
"""The choices of the built-in questions, from bad to good."""

BUILTIN_QUESTIONS = {
    question.name: question
    for question in (
        Question("sharpness", "How would you rate the sharpness of this image?", LEVELS),
        Question("noise", "How would you rate the freedom from noise of this image?", LEVELS),
        Question("exposure", "How would you rate the exposure of this image?", LEVELS),
        Question("colour", "How would you rate the colour of this image?", LEVELS),
        Question("compression", "How would you rate the freedom from compression artifacts of this image?", LEVELS),
        Question("overall", "How is the overall quality of this image, and why?"),
    )
}
"""The built-in questions by name. The last choice is the best."""


def check_size(question: Question) -> None:
    """Check that the ledger can store a question. Raises UsageError when its text and choices are too long."""
    parts = (question.text, json.dumps(question.choices, ensure_ascii=False), question.generation)
    if sum(len(part.encode()) for part in parts) > MAX_QUESTION_BYTES:
        name = f"{question.name[:60]}{'...' if len(question.name) > 60 else ''}"
        raise UsageError(f'the question "{name}" has more than {MAX_QUESTION_BYTES:,} bytes')


def render_prompt(question: Question) -> str:
    """Return the text for the model. Choices are listed as in LLVisionQA (https://github.com/Q-Future/Q-Bench)."""
    lines = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False))
    return "\n".join((question.text, *lines))


def accepted_replies(question: Question, choice: int) -> tuple[str, ...]:
    """Return the replies that LLVisionQA counts as a choice: its letter, its letter with a dot, or its words."""
    letter = LETTERS[choice]
    return letter, f"{letter}.", question.choices[choice]
