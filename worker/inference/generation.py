"""How answers come about: what the model says to a question, greedily, or the likelihoods of its choices."""

import math
from collections.abc import Callable, Sequence
from itertools import islice

import torch
from torch import Tensor

from qsit.questions import Answer, Question, accepted_replies
from worker.inference.prompts import Prompts
from worker.inference.shared_prefix import Continuations

POSITIONS = 128
"""Tokens for which the logits of the whole vocabulary are held at a time."""

Head = Callable[[Tensor], Tensor]
"""(n, width) to (n, words of the vocabulary): logits, float32."""


def answers(
    branches: Continuations, asked: Sequence[Question], ids: Sequence[Sequence[int]], head: Head, prompts: Prompts
) -> list[Answer]:
    """
    The answer to the question of each branch; the branches have no tokens yet.

    ids: of each question, as it is put to the model.
    """
    hidden = branches.extend(ids)
    last = hidden[torch.arange(len(ids)), torch.tensor([len(each) - 1 for each in ids])]
    found: dict[int, Answer] = {}
    for way, places in (
        (generate_greedy, [place for place, question in enumerate(asked) if not question.choices]),
        (score_choices, [place for place, question in enumerate(asked) if question.choices]),
    ):
        if places:
            some = way(branches.pick(places), last[places], [asked[place] for place in places], head, prompts)
            found |= zip(places, some, strict=True)
    return [found[place] for place in range(len(asked))]


def generate_greedy(
    branches: Continuations, last: Tensor, asked: Sequence[Question], head: Head, prompts: Prompts
) -> list[Answer]:
    """
    What the model says: the likeliest token, again and again, to the end or the limit. What has ended leaves the batch.

    last: (branches, width), what the head sees of each branch's last token.
    """
    said: list[list[int]] = [[] for _ in asked]
    cut = [False] * len(asked)
    places = list(range(len(asked)))
    while places:
        tokens = head(last).argmax(-1).tolist()
        going = []
        for row, place in enumerate(places):
            if tokens[row] not in prompts.ends:
                said[place].append(tokens[row])
                cut[place] = len(said[place]) == asked[place].max_new_tokens
                going += [] if cut[place] else [row]
        if going:
            branches = branches if len(going) == len(places) else branches.pick(going)
            last = branches.extend([[tokens[row]] for row in going])[:, 0]
        places = [places[row] for row in going]
    return [Answer(prompts.text_of(tokens), is_cut) for tokens, is_cut in zip(said, cut, strict=True)]


def score_choices(
    branches: Continuations, last: Tensor, asked: Sequence[Question], head: Head, prompts: Prompts
) -> list[Answer]:
    """
    The likeliest choice, with the probabilities of all: that of a choice is the sum of those of the replies that count
    as it, each with the end that the model is taught, over the sum of all choices'.

    last: as for `greedy`.
    """
    replies = [
        (place, choice, list(tokens))
        for place, question in enumerate(asked)
        for choice in range(len(question.choices))
        for tokens in sorted({tuple(prompts.of(form)) for form in accepted_replies(question, choice)})
    ]
    hidden = branches.pick([place for place, _, _ in replies]).extend([tokens for _, _, tokens in replies])
    states = [
        part
        for row, (place, _, tokens) in enumerate(replies)
        for part in (last[place : place + 1], hidden[row, : len(tokens)])
    ]
    targets = [token for _, _, tokens in replies for token in (*tokens, prompts.ends[0])]
    of_tokens = iter(_log_probabilities(torch.cat(states), torch.tensor(targets, device=last.device), head).tolist())
    of_choices: list[list[list[float]]] = [[[] for _ in question.choices] for question in asked]
    for place, choice, tokens in replies:
        of_choices[place][choice].append(math.fsum(islice(of_tokens, len(tokens) + 1)))
    return list(map(_best, asked, of_choices))


def _best(question: Question, of_choices: Sequence[Sequence[float]]) -> Answer:
    """of_choices: logarithms of the probabilities of each choice's replies. Raises ValueError when one is no number."""
    top = max(map(max, of_choices))
    shares = [math.fsum(math.exp(value - top) for value in replies) for replies in of_choices]
    if not math.isfinite(total := math.fsum(shares)):
        raise ValueError("the model gave no finite answer")
    probabilities = tuple(share / total for share in shares)
    return Answer(question.choices[probabilities.index(max(probabilities))], probabilities=probabilities)


def _log_probabilities(states: Tensor, targets: Tensor, head: Head) -> Tensor:
    """Of the token that follows each state: (n, width) and (n,) to (n,)."""
    parts = []
    for some, wanted in zip(states.split(POSITIONS), targets.split(POSITIONS), strict=True):
        logits = head(some)
        parts.append(logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(1))
    return torch.cat(parts)
