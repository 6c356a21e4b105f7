"""Questions about photos in the ledger, on both databases: who is asked, what is kept, how it is found."""

import json
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import Engine, event, func, select, text

from models.claims import AlreadyScored, ExistingResults, Failed
from models.db import reading
from models.ledger import control, jobs, leases, listing, recording
from models.queries import results
from models.queries.pagination import ResultFilter
from models.queries.progress import count_answers, job_progress
from models.queries.results import find_results
from models.tables import AnswerRow, JobQuestionRow, JobRow, QuestionRow
from qsit.errors import LeaseLost, UsageError
from qsit.questions import Answer, Question
from qsit.states import UNKNOWN_VERSION, JobState, Reason
from tests.support.asking import ASKING, LEVELS, NOISE, SHARP, WHY, answer_to, result_of, score_and_answer
from tests.support.ledger import SPEC, claimed, expire_leases, good, listed, photos, score_all


def by_number(uri: str) -> float:
    """Return a score from the last digit of a photo's name."""
    return int(uri.removesuffix(".jpg")[-1]) / 10


def answers_in(engine: Engine) -> list[tuple[str, str, str]]:
    """Return the view of answers: photo, question, answer."""
    with reading(engine) as connection:
        rows = connection.execute(text("SELECT uri, question, answer FROM qsit_answers ORDER BY uri, question"))
        return [(row.uri, row.question, row.answer) for row in rows]


def test_a_claim_has_the_questions_of_its_job_in_order(engine: Engine) -> None:
    short = replace(WHY, name="short", max_new_tokens=20)
    job_id = listed(engine, photos(2), replace(ASKING, questions=(WHY, SHARP, short), ask_below=0.4))

    claim = claimed(engine)

    assert list(claim.questions.values()) == [WHY, SHARP, short]
    assert (claim.job_id, claim.ask_below) == (job_id, 0.4)
    assert [item.found for item in claim.items] == [ExistingResults()] * 2


def test_equal_questions_are_stored_once_with_the_latest_name(engine: Engine) -> None:
    listed(engine, photos(2), replace(ASKING, questions=(WHY, SHARP, replace(WHY, name="why"))))
    listed(engine, photos(2), replace(ASKING, key="b", questions=(replace(SHARP, name="focus"),)))

    with reading(engine) as connection:
        names = connection.execute(select(QuestionRow.name).order_by(QuestionRow.id)).scalars().all()
    assert names == ["why", "focus"]
    assert [each.name for each in claimed(engine).questions.values()] == ["why", "focus"]


def test_a_question_too_long_for_an_index_is_refused_and_leaves_no_job(engine: Engine) -> None:
    with pytest.raises(UsageError, match="more than 2,500 bytes"):
        jobs.open_job(engine, replace(ASKING, questions=(replace(WHY, text="问" * 1000),)))

    with reading(engine) as connection:
        assert connection.execute(select(func.count()).select_from(JobRow)).scalar() == 0


def test_dropping_an_empty_job_drops_its_questions(engine: Engine) -> None:
    job = jobs.open_job(engine, ASKING)
    listing.begin_listing(engine, job.id)

    listing.drop_empty(engine, job.id)

    with reading(engine) as connection:
        assert connection.execute(select(func.count()).select_from(JobRow)).scalar() == 0
        assert connection.execute(select(func.count()).select_from(JobQuestionRow)).scalar() == 0


def test_a_job_scores_photos_and_asks_about_them(engine: Engine) -> None:
    job_id = listed(engine, photos(3), ASKING)

    assert score_and_answer(engine) == (3, 6)

    assert job_progress(engine, job_id).state is JobState.FINISHED
    (first, *_) = find_results(engine, ResultFilter(sort="uri", answers=True))
    assert [(each.name, each.question, each.choices, each.answer, each.dtype, each.job) for each in first.answers] == [
        ("overall", WHY.text, (), answer_to(WHY), "float32", job_id),
        ("sharpness", SHARP.text, LEVELS, answer_to(SHARP), "float32", job_id),
    ]
    assert first.answers[0].answered_at >= first.scored_at


def test_a_new_question_about_scored_photos_scores_nothing_again(engine: Engine) -> None:
    listed(engine, photos(5))
    score_all(engine)

    second = listed(engine, photos(6), ASKING)
    assert job_progress(engine, second).queued == 6
    assert [item.found for item in claimed(engine).items] == [ExistingResults(0.5)] * 5 + [ExistingResults()]
    expire_leases(engine)

    assert score_and_answer(engine) == (1, 12)
    assert job_progress(engine, second).state is JobState.FINISHED
    scored_by = {result.job for result in find_results(engine, ResultFilter(max_score=1.0))}
    assert scored_by == {1, second}


def test_an_answered_question_is_not_asked_again(engine: Engine) -> None:
    listed(engine, photos(5), ASKING)
    score_and_answer(engine)

    same = listed(engine, photos(5), replace(ASKING, key="same", questions=(replace(SHARP, name="other"),)))
    none = listed(engine, photos(5), replace(SPEC, key="none"))
    more = listed(engine, photos(5), replace(ASKING, key="more", questions=(SHARP, NOISE)))

    assert [job_progress(engine, job_id).skipped for job_id in (same, none, more)] == [5, 5, 0]
    assert job_progress(engine, same).state is JobState.FINISHED
    assert score_and_answer(engine) == (0, 5)
    assert {question for _, question, _ in answers_in(engine)} == {"overall", "sharpness", "noise"}


def test_a_question_is_asked_about_the_photos_without_its_answer(engine: Engine) -> None:
    listed(engine, photos(3), ASKING)
    score_and_answer(engine)
    listed(engine, photos(5), replace(SPEC, key="scores"))
    score_and_answer(engine)

    again = listed(engine, photos(5), replace(ASKING, key="again"))

    progress = job_progress(engine, again)
    assert (progress.skipped, progress.queued) == (3, 2)
    assert score_and_answer(engine) == (0, 4)


def test_answers_are_counted_for_the_job_that_got_them(engine: Engine) -> None:
    first = listed(engine, photos(3), ASKING)
    score_and_answer(engine)
    second = listed(engine, photos(4), replace(ASKING, key="second", questions=(SHARP,)))
    none = listed(engine, photos(4), SPEC)
    score_and_answer(engine)

    assert [count_answers(engine, job_id) for job_id in (first, second, none)] == [6, 1, 0]
    assert [job_progress(engine, job_id).asks for job_id in (first, second, none)] == [True, True, False]


def test_longer_answers_and_other_choices_are_other_questions(engine: Engine) -> None:
    listed(engine, photos(1), ASKING)
    score_and_answer(engine)

    others = (replace(WHY, max_new_tokens=20), replace(SHARP, choices=("no", "yes")))
    second = listed(engine, photos(1), replace(ASKING, key="others", questions=others))

    assert job_progress(engine, second).queued == 1
    assert score_and_answer(engine) == (0, 2)


def test_ask_below_asks_only_about_photos_with_lower_scores(engine: Engine) -> None:
    listed(engine, photos(8))
    score_and_answer(engine, by_number)

    second = listed(engine, photos(10), replace(ASKING, ask_below=0.3))

    progress = job_progress(engine, second)
    assert (progress.skipped, progress.queued) == (5, 5)
    assert score_and_answer(engine, by_number) == (2, 6)
    assert {by_number(uri) for uri, *_ in answers_in(engine)} == {0.0, 0.1, 0.2}
    assert job_progress(engine, second).state is JobState.FINISHED
    third = listed(engine, photos(10), replace(ASKING, key="again", ask_below=0.3))
    assert job_progress(engine, third).skipped == 10


def test_a_claim_settles_what_another_job_scored_and_answered(engine: Engine) -> None:
    listed(engine, photos(8), replace(SPEC, priority=2))
    listed(engine, photos(1), replace(ASKING, priority=1))
    third = listed(engine, photos(10), replace(ASKING, key="third", ask_below=0.3))
    first = claimed(engine)
    leases.record(engine, first, [good(item.image_id, by_number(item.uri)) for item in first.items], 60)
    leases.release(engine, first)
    second = claimed(engine)
    leases.record(engine, second, [result_of(second, item, 0.0, answer_to) for item in second.items], 60)
    leases.release(engine, second)

    claim = claimed(engine)

    assert claim.job_id == third
    assert [by_number(item.uri) for item in claim.items] == [0.1, 0.2, 0.8, 0.9]
    assert [item.found.score for item in claim.items] == [0.1, 0.2, None, None]
    assert job_progress(engine, third).scored == 6


def test_a_claim_returns_partly_answered_items_with_their_answers(engine: Engine) -> None:
    listed(engine, photos(2), replace(ASKING, key="first", questions=(SHARP,)))
    score_and_answer(engine)
    listed(engine, photos(3), ASKING)

    claim = claimed(engine)

    names = [{claim.questions[each].name for each in item.found.answered} for item in claim.items]
    assert names == [{"sharpness"}, {"sharpness"}, set()]
    assert [[claim.questions[each].name for each in claim.to_ask(0.5, item.found)] for item in claim.items] == [
        ["overall"],
        ["overall"],
        ["overall", "sharpness"],
    ]


def test_rescoring_asks_again_and_overwrites(engine: Engine) -> None:
    first = listed(engine, photos(2), ASKING)
    score_and_answer(engine)
    second = listed(engine, photos(2), replace(ASKING, key="again", questions=(WHY,), rescore=True))

    assert job_progress(engine, second).queued == 2
    assert score_and_answer(engine, answer=lambda _: Answer("Bad.", cut=True)) == (2, 2)

    (result, _) = find_results(engine, ResultFilter(answers=True))
    assert [(each.answer, each.job) for each in result.answers] == [
        (Answer("Bad.", cut=True), second),
        (answer_to(SHARP), first),
    ]


def test_answers_belong_to_one_procedure(engine: Engine) -> None:
    listed(engine, photos(2), ASKING)
    score_and_answer(engine)

    listed(engine, photos(2), replace(ASKING, procedure="rating-1/as-stored-1"))

    assert score_and_answer(engine) == (2, 4)
    assert len(answers_in(engine)) == 8


def test_a_changed_photo_is_asked_about_again(engine: Engine) -> None:
    listed(engine, photos(3), ASKING)
    score_and_answer(engine, answer=lambda _: Answer("old"))

    second = listed(engine, [*photos(2), *photos(3, version="2")[2:]], replace(ASKING, key="again"))

    assert job_progress(engine, second).queued == 1
    assert score_and_answer(engine, answer=lambda _: Answer("new")) == (1, 2)
    assert [answer for _, _, answer in answers_in(engine)] == ["old"] * 4 + ["new"] * 2
    every = find_results(engine, ResultFilter(all_versions=True, sort="uri", answers=True))
    assert [each.answers[0].answer.text for each in every] == ["old"] * 3 + ["new"]


TEXTS = {
    "Chinese": "这张照片的清晰度很高。",
    "nothing": "",
    "a quotation": 'assistant\n"It is\tgood", \\ said',
    "long": "blurry " * 1500,
    "beyond 16 bits": "🎞" * 3,
}


def test_answers_are_stored_unchanged(engine: Engine) -> None:
    questions = tuple(Question(name, f"{name}?") for name in TEXTS)
    listed(engine, photos(1), replace(ASKING, questions=questions))

    score_and_answer(engine, answer=lambda question: Answer(TEXTS[question.name]))

    (result,) = find_results(engine, ResultFilter(answers=True))
    assert {each.name: each.answer.text for each in result.answers} == TEXTS
    assert [(each, question, TEXTS[question]) for each, question, _ in answers_in(engine)] == answers_in(engine)


def test_characters_that_databases_refuse_are_escaped(engine: Engine) -> None:
    odd = Question("odd\0", "is this odd: \0 \udcff?", ("a\0", "问"))
    listed(engine, photos(1), replace(ASKING, questions=(odd, WHY)))

    score_and_answer(engine, answer=lambda question: Answer("nul \0, half \ud83c", cut=True))

    (result,) = find_results(engine, ResultFilter(answers=True))
    assert [each.answer for each in result.answers] == [Answer("nul \\0, half \\ud83c", cut=True)] * 2
    assert (result.answers[0].name, result.answers[0].question) == ("odd\\0", "is this odd: \\0 \\udcff?")
    assert result.answers[0].choices == ("a\\0", "问")


def test_probabilities_are_stored_exactly(engine: Engine) -> None:
    probabilities = (1 / 3, 2 / 3 - 1e-300, 1e-300)
    listed(engine, photos(1), replace(ASKING, questions=(SHARP,)))

    score_and_answer(engine, answer=lambda _: Answer("low", probabilities=probabilities))

    (result,) = find_results(engine, ResultFilter(answers=True))
    assert result.answers[0].answer == Answer("low", probabilities=probabilities)


def test_a_worker_without_the_lease_writes_no_answers(engine: Engine) -> None:
    listed(engine, photos(2, version=UNKNOWN_VERSION), ASKING)
    late = claimed(engine)
    first, second = late.items
    answers = {each: Answer("late") for each in late.questions}
    expire_leases(engine)
    claimed(engine)

    for version in (None, "v1"):
        for result in (
            replace(good(first.image_id), answers=answers, version=version),
            AlreadyScored(second.image_id, version, "float32", answers),
        ):
            with pytest.raises(LeaseLost):
                leases.record(engine, late, [result], 60)

    with reading(engine) as connection:
        assert connection.execute(select(func.count()).select_from(AnswerRow)).scalar() == 0


def test_answers_recorded_twice_are_stored_once(engine: Engine) -> None:
    job_id = listed(engine, photos(1), ASKING)
    claim = claimed(engine)
    (item,) = claim.items
    batch = [result_of(claim, item, 0.5, answer_to), result_of(claim, item, 0.5, answer_to)]

    leases.record(engine, claim, batch, 60)
    leases.record(engine, claim, [*batch, Failed(item.image_id, Reason.CORRUPT, "too late")], 60)

    progress = job_progress(engine, job_id)
    assert (progress.scored, progress.failed) == (1, 0)
    assert len(answers_in(engine)) == 2


def test_a_learned_version_gets_the_answers(engine: Engine) -> None:
    listed(engine, photos(1, version="v1"))
    score_all(engine)
    listed(engine, photos(2, version=UNKNOWN_VERSION), ASKING)
    claim = claimed(engine)
    first, second = claim.items
    answers = {each: answer_to(question) for each, question in claim.questions.items()}
    found = recording.existing_results(engine, first.uri, "v1", claim)
    assert (found, claim.is_settled(found)) == (ExistingResults(0.5), False)
    assert recording.existing_results(engine, second.uri, "v1", claim) == ExistingResults()

    batch = [
        AlreadyScored(first.image_id, "v1", "float16", answers),
        replace(good(second.image_id), version="v2", answers=answers),
    ]
    leases.record(engine, claim, batch, 60)

    assert recording.existing_results(engine, first.uri, "v1", claim) == ExistingResults(0.5, frozenset(answers))
    assert recording.existing_results(engine, second.uri, "v2", claim) == ExistingResults(0.5, frozenset(answers))
    assert claim.is_settled(recording.existing_results(engine, second.uri, "v2", claim))
    shown = list(find_results(engine, ResultFilter(sort="uri", answers=True)))
    assert [(each.version, {given.dtype for given in each.answers}, len(each.answers)) for each in shown] == [
        ("v1", {"float16"}, 2),
        ("v2", {"float32"}, 2),
    ]


def test_a_photo_that_failed_while_it_was_asked_about_can_be_retried(engine: Engine) -> None:
    listed(engine, photos(2))
    score_all(engine)
    second = listed(engine, photos(2), ASKING)
    score_all(engine, failing=(photos(1)[0].uri,), reason=Reason.MODEL_ERROR)
    third = listed(engine, photos(2), replace(ASKING, key="third"))
    progress = job_progress(engine, third)
    assert (progress.skipped, progress.skipped_failed, progress.queued) == (0, 1, 1)

    assert control.retry(engine, second) == 1

    assert score_and_answer(engine) == (0, 4)
    assert job_progress(engine, second).state is JobState.FINISHED


def test_the_view_has_every_column_of_an_answer(engine: Engine) -> None:
    job_id = listed(engine, photos(1), ASKING)
    score_and_answer(engine)

    with reading(engine) as connection:
        rows = connection.execute(text("SELECT * FROM qsit_answers ORDER BY question")).mappings().all()

    why, sharp = ({**row, "answered_at": None} for row in rows)
    same = {
        "uri": "file:///p/000000.jpg",
        "version": "1",
        "model": "demo",
        "revision": "r1",
        "procedure": "rating-1/upright-1",
        "dtype": "float32",
        "answered_at": None,
        "job": job_id,
        "cut": False,
    }
    assert why == {
        **same,
        "question": "overall",
        "text": WHY.text,
        "choices": None,
        "answer": "Good: sharp.",
        "probabilities": None,
    }
    assert json.loads(sharp.pop("choices")) == list(LEVELS)
    assert json.loads(sharp.pop("probabilities")) == [0.75, 0.25]
    assert sharp == {**same, "question": "sharpness", "text": SHARP.text, "answer": "low"}


def test_answers_are_fetched_page_by_page(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.queries.pagination.PAGE", 7)
    listed(engine, photos(30), ASKING)
    score_and_answer(engine)
    asked: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: asked.append(args[2]))

    rows = list(find_results(engine, ResultFilter(sort="-score", answers=True)))

    assert [len(row.answers) for row in rows] == [2] * 30
    assert sum("FROM answers" in statement for statement in asked) == 5
    del asked[:]
    assert [row.answers for row in find_results(engine, ResultFilter(sort="-score"))] == [()] * 30
    assert not [statement for statement in asked if "answers" in statement]


def test_results_of_a_job_include_photos_that_it_only_asked_about(engine: Engine) -> None:
    first = listed(engine, photos(20), replace(ASKING, questions=(SHARP,)))
    score_and_answer(engine, by_number)
    second = listed(engine, photos(30, "file:///p/")[15:], replace(ASKING, key="b", questions=(WHY,), ask_below=0.8))
    score_and_answer(engine, by_number)

    def found(**about: Any) -> list[results.Result]:
        return list(find_results(engine, ResultFilter(sort="uri", **about)))

    assert [row.uri for row in found(job=second)] == [photo.uri for photo in photos(30)[20:]]
    both = found(job=second, answers=True)
    wanted = [photo.uri for photo in photos(30)[15:] if by_number(photo.uri) < 0.8 or photo.uri > photos(20)[-1].uri]
    assert [row.uri for row in both] == wanted
    assert {given.job for row in both for given in row.answers} == {first, second}
    assert [row.uri for row in found(job=first, answers=True)] == [photo.uri for photo in photos(20)]


def test_question_names_are_those_of_answered_questions(engine: Engine) -> None:
    job_id = listed(engine, photos(2), ASKING)
    other = listed(engine, photos(2), replace(ASKING, procedure="other", questions=(NOISE, SHARP)))
    assert results.question_names(engine, ResultFilter()) == []

    score_and_answer(engine)

    listed(engine, photos(2), replace(ASKING, key="open", questions=(Question("open", "Open?"),)))
    assert results.question_names(engine, ResultFilter()) == ["overall", "sharpness", "noise"]
    assert results.question_names(engine, ResultFilter(job=job_id)) == ["overall", "sharpness"]
    assert results.question_names(engine, ResultFilter(job=other)) == ["sharpness", "noise"]
    assert results.question_names(engine, ResultFilter(model="demo")) == ["overall", "sharpness", "noise"]
    assert results.question_names(engine, ResultFilter(model="other")) == []


def test_jobs_without_questions_never_read_the_answers(engine: Engine) -> None:
    listed(engine, photos(2))
    asked: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: asked.append(args[2]))

    listed(engine, photos(3), replace(SPEC, key="b"))
    score_all(engine)

    assert not [statement for statement in asked if "answers" in statement]
