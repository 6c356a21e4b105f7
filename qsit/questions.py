"""Questions about photos, and answers to them, as producer, ledger and worker hand them on."""

from dataclasses import dataclass

MAX_NEW_TOKENS = 200
"""How long an answer may get, as in the model's README."""


@dataclass(frozen=True)
class Question:
    """
    What is asked about a photo. With choices, the answer is the likeliest of them, each with its probability;
    without, it is what the model says, in at most so many tokens.

    name: how results call it; the answer does not depend on it.
    """

    name: str
    text: str
    choices: tuple[str, ...] = ()
    max_new_tokens: int = MAX_NEW_TOKENS

    @property
    def generation(self) -> str:
        """The settings that an answer depends on beside text and choices; part of what it is found by."""
        return "choices-1" if self.choices else f"greedy-1/{self.max_new_tokens}"


@dataclass(frozen=True)
class Answer:
    """
    text: as the model gave it, without white space around it; it may be empty.
    cut: whether the model had not ended when its tokens ran out.
    probabilities: of the choices, in their order, which sum to 1; empty without choices.
    """

    text: str
    cut: bool = False
    probabilities: tuple[float, ...] = ()


LEVELS = ("very low", "low", "acceptable", "high")
"""The choices of the ready questions, from bad to good."""

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
"""By name. Where there are choices, more is better."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def render_prompt(question: Question) -> str:
    """The text that the model gets; choices are listed as in LLVisionQA (https://github.com/Q-Future/Q-Bench)."""
    lines = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False))
    return "\n".join((question.text, *lines))


def accepted_replies(question: Question, choice: int) -> tuple[str, ...]:
    """The replies that count as a choice, as the authors of LLVisionQA count them: letter, letter and dot, or words."""
    letter = LETTERS[choice]
    return letter, f"{letter}.", question.choices[choice]
