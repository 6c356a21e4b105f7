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
