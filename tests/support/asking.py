"""Jobs that ask questions, and a stand-in for the worker that answers them."""

from collections.abc import Callable
from dataclasses import replace

from sqlalchemy import Engine

from models.claims import AlreadyScored, Claim, ClaimedItem, Scored
from models.ledger import leases, scheduling
from qsit.questions import Answer, Question
from tests.support.ledger import HERE, QUEUE, SPEC, good

LEVELS = ("low", "high")


SHARP = Question("sharpness", "How sharp is it?", LEVELS)


NOISE = Question("noise", "How free from noise is it?", LEVELS)


WHY = Question("overall", "How is it, and why?")


ASKING = replace(SPEC, key="asking", questions=(WHY, SHARP))


def answer_to(question: Question) -> Answer:
    """Return the answer that this stand-in gives to a question."""
    return Answer(question.choices[0], probabilities=(0.75, 0.25)) if question.choices else Answer("Good: sharp.")


def result_of(
    claim: Claim, item: ClaimedItem, score: float, answer: Callable[[Question], Answer]
) -> Scored | AlreadyScored:
    """Score a photo unless it has a score, and answer its open questions."""
    known = None if claim.rescore else item.found.score
    value = score if known is None else known
    answers = {each: answer(claim.questions[each]) for each in claim.to_ask(value, item.found)}
    if known is None:
        return replace(good(item.image_id, value), answers=answers)
    return AlreadyScored(item.image_id, dtype="float32", answers=answers)


def score_and_answer(
    engine: Engine, score: Callable[[str], float] = lambda _: 0.5, answer: Callable[[Question], Answer] = answer_to
) -> tuple[int, int]:
    """Score and answer everything. Return how many photos were scored and how many answers given."""
    done: list[Scored | AlreadyScored] = []
    while messages := scheduling.stage_chunks(engine, QUEUE, ahead=4, lease_s=60):
        for message in messages:
            claim = leases.claim(engine, message.chunk_id, QUEUE, HERE, 60)
            assert claim is not None
            batch = [result_of(claim, item, score(item.uri), answer) for item in claim.items]
            leases.record(engine, claim, batch, 60)
            leases.release(engine, claim)
            done += batch
    return sum(isinstance(each, Scored) for each in done), sum(len(each.answers) for each in done)
