"""Answers to questions: greedy generation, or the likelihoods of given choices."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from qsit.questions import Answer, Question, accepted_replies
from worker.inference.prompts import Prompts
from worker.inference.shared_prefix import Continuations

LOGITS_BLOCK = 128
"""Tokens whose logits over the whole vocabulary are in memory at a time."""
Head = Callable[[Tensor], Tensor]
"""The output head: (n, width) to logits, float32 (n, vocabulary)."""


def answer_questions(
    continuations: Continuations, questions: Sequence[Question], ids: Sequence[list[int]], head: Head, prompts: Prompts
) -> list[Answer]:
    """Answer one question per continuation. ids: the tokens of each question's prompt, from the image on."""
    hidden = continuations.extend(ids)
    last = hidden[torch.arange(len(ids)), torch.tensor([len(row) - 1 for row in ids])]
    answers: dict[int, Answer] = {}
    for has_choices, answer in ((False, generate_greedy), (True, score_choices)):
        if indices := [index for index, question in enumerate(questions) if bool(question.choices) is has_choices]:
            asked = [questions[index] for index in indices]
            some = answer(continuations.select(indices), last[indices], asked, head, prompts)
            answers |= zip(indices, some, strict=True)
    return [answers[index] for index in range(len(questions))]


def generate_greedy(
    continuations: Continuations, last: Tensor, questions: Sequence[Question], head: Head, prompts: Prompts
) -> list[Answer]:
    """
    Generate the most likely token until an end token or the limit; finished answers leave the batch.

    last: (continuations, width), the head's input for the last token of each.
    """
    generated: list[list[int]] = [[] for _ in questions]
    cut = [False] * len(questions)
    active = list(range(len(questions)))
    while active:
        tokens = head(last).argmax(-1).tolist()
        unfinished = []
        for row, index in enumerate(active):
            if tokens[row] not in prompts.eos_token_ids:
                generated[index].append(tokens[row])
                cut[index] = len(generated[index]) == questions[index].max_new_tokens
                unfinished += [] if cut[index] else [row]
        if unfinished:
            if len(unfinished) < len(active):
                continuations = continuations.select(unfinished)
            last = continuations.extend([[tokens[row]] for row in unfinished])[:, 0]
        active = [active[row] for row in unfinished]
    return [Answer(prompts.decode(tokens), is_cut) for tokens, is_cut in zip(generated, cut, strict=True)]


def score_choices(
    continuations: Continuations, last: Tensor, questions: Sequence[Question], head: Head, prompts: Prompts
) -> list[Answer]:
    """
    Return the most likely choice of each question, with the probabilities of all.

    A choice's likelihood is the sum over the replies that count as it, each with the end token that training teaches.
    Its probability is its share of the likelihoods of all choices. `last` is as for `generate_greedy`.
    """
    replies = [
        (index, choice, list(tokens))
        for index, question in enumerate(questions)
        for choice in range(len(question.choices))
        for tokens in sorted({tuple(prompts.encode(reply)) for reply in accepted_replies(question, choice)})
    ]
    hidden = continuations.select([index for index, _, _ in replies]).extend([tokens for _, _, tokens in replies])
    states = [
        part
        for row, (index, _, tokens) in enumerate(replies)
        for part in (last[index : index + 1], hidden[row, : len(tokens)])
    ]
    targets = [token for _, _, tokens in replies for token in (*tokens, prompts.eos_token_ids[0])]
    values = _log_probabilities(torch.cat(states), torch.tensor(targets, device=last.device), head)
    by_choice: list[list[list[float]]] = [[[] for _ in question.choices] for question in questions]
    for index, choice, tokens in replies:
        by_choice[index][choice].append(math.fsum(islice(values, len(tokens) + 1)))
    return list(map(pick_choice, questions, by_choice))


def pick_choice(question: Question, log_probabilities: Sequence[Sequence[float]]) -> Answer:
    """
    Return the most likely choice, from the log-probabilities of each choice's replies.

    Raises ValueError when one of them is not finite.
    """
    top = max(map(max, log_probabilities))
    likelihoods = [math.fsum(math.exp(value - top) for value in replies) for replies in log_probabilities]
    if not math.isfinite(total := math.fsum(likelihoods)):
        raise ValueError("the model gave no finite answer")
    probabilities = tuple(likelihood / total for likelihood in likelihoods)
    return Answer(question.choices[probabilities.index(max(probabilities))], probabilities=probabilities)


def _log_probabilities(states: Tensor, targets: Tensor, head: Head) -> Iterator[float]:
    """Yield the log-probability of the token that follows each state: (n, width) and (n,) to n numbers."""
    for block, following in zip(states.split(LOGITS_BLOCK), targets.split(LOGITS_BLOCK), strict=True):
        logits = head(block)
        yield from (logits.gather(1, following[:, None])[:, 0] - logits.logsumexp(1)).tolist()
