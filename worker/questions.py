"""The questions that need not be written, and how a question is put to the model."""

from models.questions import Question

LEVELS = ("very low", "low", "acceptable", "high")
"""The choices of the ready questions, from bad to good."""

READY = {
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


def put(question: Question) -> str:
    """The text that the model gets; choices are listed as in LLVisionQA (https://github.com/Q-Future/Q-Bench)."""
    lines = (f"{letter}. {choice}" for letter, choice in zip(LETTERS, question.choices, strict=False))
    return "\n".join((question.text, *lines))


def forms(question: Question, choice: int) -> tuple[str, ...]:
    """The replies that count as a choice, as the authors of LLVisionQA count them: letter, letter and dot, or words."""
    letter = LETTERS[choice]
    return letter, f"{letter}.", question.choices[choice]
