"""Batches, their budget, and what happens when something fails. The model is made up, so that a test can break it."""

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.claims import AlreadyScored, Claim, ClaimedItem, ExistingResults, Failed, Result, Scored
from qsit.errors import DatabaseUnavailable, ImageError, ProcessUnusable, WorkerFault
from qsit.questions import Answer, Question
from qsit.rating import Score, score_of
from qsit.states import Reason
from tests.support.programs import until
from worker.inference.tiles import Prepared
from worker.pipeline import Pipeline
from worker.scoring import BatchScorer, PreparedPhoto

LOGITS = (1.0, 2.0, 3.0, 4.0, 5.0)
Batches = list[list[Result]]
Prepare = Callable[[ClaimedItem], Prepared | PreparedPhoto | AlreadyScored]
MarkInFlight = Callable[[Sequence[int], bool], None]


@dataclass
class MadeUpModel:
    """Fails on the widths in `broken`, and on batches of more tokens than `memory`."""

    broken: tuple[int, ...] = ()
    memory: int = 10**9
    batches: list[list[int]] = field(default_factory=list)  # the widths in each batch

    def upload(self, images: Sequence[Prepared]) -> Sequence[Prepared]:
        return images

    def score(self, images: Sequence[Prepared]) -> list[Score]:
        self.batches.append([image.width for image in images])
        if sum(image.tokens for image in images) > self.memory:
            raise MemoryError("out of\nmemory")
        if any(image.width in self.broken for image in images):
            raise ValueError("the model gave no finite rating")
        return [score_of((float(image.width), *LOGITS[1:])) for image in images]

    def look(
        self, images: Sequence[Prepared], questions: Sequence[Question], *, asks: Callable[[int, Score], Sequence[int]]
    ) -> list[tuple[Score, list[Answer]]]:
        return [
            (score, [Answer(f"{questions[number].text} {image.width}") for number in asks(index, score)])
            for index, (image, score) in enumerate(zip(images, self.score(images), strict=True))
        ]


def items(count: int, suspects: Sequence[int] = ()) -> list[ClaimedItem]:
    return [ClaimedItem(number, f"file:///{number}.jpg", "1", number in suspects) for number in range(count)]


def photo(item: ClaimedItem, tokens: int = 10) -> Prepared:
    """An image as wide as its number, by which the model knows it."""
    return Prepared(np.zeros((1, 1, 1, 3), np.uint8), item.image_id, 1, tokens)


@dataclass
class MadeUpLoader:
    """Loads what `prepare` returns, after `read`."""

    prepare: Prepare
    read: Callable[[ClaimedItem], object]

    def load(self, item: ClaimedItem, claim: Claim, on_decoding: Callable[[], None]) -> PreparedPhoto | AlreadyScored:
        self.read(item)
        on_decoding()
        prepared = self.prepare(item)
        return PreparedPhoto(prepared) if isinstance(prepared, Prepared) else prepared


def pipeline_of(
    model: MadeUpModel,
    prepare: Prepare = photo,
    *,
    read: Callable[[ClaimedItem], object] = lambda item: None,
    batch_tokens: int = 1000,
    probe: Prepared | None = None,
    loaders: int = 2,
    **options: Any,
) -> Pipeline:
    """A pipeline whose batches are full, however slow the machine is."""
    scorer = BatchScorer(model, "float32", batch_tokens, probe)
    return Pipeline(scorer, MadeUpLoader(prepare, read), loaders, **{"idle_s": 30.0} | options)


def start(
    pipeline: Pipeline,
    claimed: Sequence[ClaimedItem] | Claim,
    mark_in_flight: MarkInFlight = lambda image_ids, alone: None,
    *,
    turn_s: float = 1000,
    stopping: Callable[[], bool] = lambda: False,
) -> Generator[list[Result], None, None]:
    claim = claimed if isinstance(claimed, Claim) else Claim(1, 1, 1, "", False, "token", list(claimed))
    return pipeline.run(claim, mark_in_flight, turn_s=turn_s, stopping=stopping)


def run(*arguments: Any, **options: Any) -> Batches:
    return list(start(*arguments, **options))


def image_ids(batches: Batches) -> list[int]:
    return [result.image_id for batch in batches for result in batch]


def failures(batches: Batches) -> dict[int, Failed]:
    return {result.image_id: result for batch in batches for result in batch if isinstance(result, Failed)}


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_a_result_has_the_score_its_logits_and_the_precision() -> None:
    [[result]] = run(pipeline_of(MadeUpModel()), items(1))

    expected = score_of((0.0, *LOGITS[1:]))
    assert result == Scored(0, expected.value, expected.logits, "float32")


def test_without_items_nothing_is_marked_and_nothing_is_scored() -> None:
    marked: list[Sequence[int]] = []
    model = MadeUpModel()

    batches = run(pipeline_of(model), [], lambda image_ids, alone: marked.append(image_ids))

    assert batches == []
    assert marked == []
    assert model.batches == []


def test_batches_are_cut_by_the_budget_in_the_order_of_the_items() -> None:
    model = MadeUpModel()

    batches = run(pipeline_of(model, batch_tokens=35), items(8))

    assert model.batches == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert [[result.image_id for result in batch] for batch in batches] == model.batches


def test_a_batch_may_fill_the_budget_to_the_last_token() -> None:
    model = MadeUpModel()

    run(pipeline_of(model, batch_tokens=30), items(6))

    assert model.batches == [[0, 1, 2], [3, 4, 5]]


def test_an_image_over_the_budget_runs_alone() -> None:
    model = MadeUpModel()

    run(pipeline_of(model, lambda item: photo(item, 100 if item.image_id == 2 else 10), batch_tokens=35), items(5))

    assert model.batches == [[0, 1], [2], [3, 4]]


@given(
    tokens=st.lists(st.integers(1, 60), max_size=60),
    budget=st.integers(1, 100),
    memory=st.integers(1, 200),
    broken=st.sets(st.integers(0, 59)),
    undecodable=st.sets(st.integers(0, 59)),
    suspects=st.sets(st.integers(0, 59)),
    loaders=st.integers(1, 4),
)
@settings(deadline=None, max_examples=100)
def test_every_item_has_exactly_one_result_whatever_fails(
    tokens: list[int],
    budget: int,
    memory: int,
    broken: set[int],
    undecodable: set[int],
    suspects: set[int],
    loaders: int,
) -> None:
    def prepare(item: ClaimedItem) -> Prepared:
        if item.image_id in undecodable:
            raise ImageError(Reason.CORRUPT, "broken")
        return photo(item, tokens[item.image_id])

    model = MadeUpModel(tuple(broken), memory)

    batches = run(
        pipeline_of(model, prepare, batch_tokens=budget, loaders=loaders), items(len(tokens), tuple(suspects))
    )

    expected: dict[int, Reason] = {}
    for number, count in enumerate(tokens):
        if number in undecodable:
            expected[number] = Reason.CORRUPT
        elif count > memory:
            expected[number] = Reason.OUT_OF_MEMORY
        elif number in broken:
            expected[number] = Reason.MODEL_ERROR
    assert Counter(image_ids(batches)) == Counter(range(len(tokens)))
    assert {number: failed.reason for number, failed in failures(batches).items()} == expected
    assert all(batches)


def test_a_long_chunk_is_prepared_window_by_window() -> None:
    marked: list[Sequence[int]] = []
    pipeline = pipeline_of(MadeUpModel(), batch_tokens=40)

    batches = run(pipeline, items(512), lambda image_ids, alone: marked.append(image_ids))

    assert [number for window in marked for number in window] == list(range(512))
    assert len(marked) > 1
    assert max(map(len, marked)) <= pipeline.look_ahead
    assert Counter(image_ids(batches)) == Counter(range(512))


def test_items_are_marked_before_they_are_prepared() -> None:
    events: list[tuple[str, int]] = []

    def prepare(item: ClaimedItem) -> Prepared:
        events.append(("prepared", item.image_id))
        return photo(item)

    def mark_in_flight(image_ids: Sequence[int], alone: bool) -> None:
        events.extend(("marked", number) for number in image_ids)

    run(pipeline_of(MadeUpModel(), prepare), items(100, suspects=(3, 50)), mark_in_flight)

    for number in range(100):
        assert events.index(("marked", number)) < events.index(("prepared", number))
    assert Counter(events) == Counter((event, number) for event in ("marked", "prepared") for number in range(100))


def test_photos_are_prepared_in_parallel() -> None:
    together = threading.Barrier(3, timeout=30)

    def prepare(item: ClaimedItem) -> Prepared:
        together.wait()
        return photo(item)

    batches = run(pipeline_of(MadeUpModel(), prepare, loaders=3), items(3))

    assert failures(batches) == {}


def test_an_image_error_fails_only_its_photo_with_its_reason() -> None:
    def prepare(item: ClaimedItem) -> Prepared:
        if item.image_id == 1:
            raise ImageError(Reason.TOO_LARGE, "too many pixels")
        return photo(item)

    batches = run(pipeline_of(MadeUpModel(), prepare), items(3))

    assert sorted(image_ids(batches)) == [0, 1, 2]
    assert failures(batches) == {1: Failed(1, Reason.TOO_LARGE, "too many pixels")}


def test_any_other_error_of_a_loader_fails_only_its_photo_in_one_line() -> None:
    def prepare(item: ClaimedItem) -> Prepared:
        if item.image_id == 1:
            raise RuntimeError("first line\nsecond line")
        return photo(item)

    batches = run(pipeline_of(MadeUpModel(), prepare), items(3))

    assert sorted(image_ids(batches)) == [0, 1, 2]
    [failed] = failures(batches).values()
    assert (failed.image_id, failed.reason) == (1, Reason.MODEL_ERROR)
    assert failed.message.endswith("first line second line")


def test_an_error_of_the_model_is_bisected_to_the_images_that_cause_it() -> None:
    batches = run(pipeline_of(MadeUpModel(broken=(3, 12))), items(16))

    failed = failures(batches)
    assert sorted(image_ids(batches)) == list(range(16))
    assert set(failed) == {3, 12}
    assert all(failure.reason is Reason.MODEL_ERROR for failure in failed.values())
    assert failed[3].message == "3 x 1 pixels: the model gave no finite rating"


def test_an_error_of_the_model_does_not_change_the_budget() -> None:
    pipeline = pipeline_of(MadeUpModel(broken=(3,)))

    run(pipeline, items(16))

    assert pipeline.scorer.batch_tokens == 1000


def test_out_of_memory_halves_the_budget_for_good() -> None:
    model = MadeUpModel(memory=60)
    pipeline = pipeline_of(model, batch_tokens=80)

    first = run(pipeline, items(16))
    first_batches = list(model.batches)
    model.batches.clear()
    second = run(pipeline, items(16))

    assert first_batches[0] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert first_batches[1:] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert pipeline.scorer.batch_tokens == 40
    assert model.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert failures(first) == failures(second) == {}


def test_the_budget_never_grows_when_memory_runs_out_again() -> None:
    tokens = (20, 20, 60, 60)
    budgets: list[int] = []

    class Watching(MadeUpModel):
        def score(self, images: Sequence[Prepared]) -> list[Score]:
            budgets.append(pipeline.scorer.batch_tokens)
            return super().score(images)

    pipeline = pipeline_of(Watching(memory=30), lambda item: photo(item, tokens[item.image_id]))
    run(pipeline, items(4))

    budgets.append(pipeline.scorer.batch_tokens)
    assert budgets == sorted(budgets, reverse=True)


def test_an_image_that_does_not_fit_alone_fails_as_out_of_memory() -> None:
    pipeline = pipeline_of(MadeUpModel(memory=50), lambda item: photo(item, 60 if item.image_id == 2 else 10))

    batches = run(pipeline, items(5))

    assert sorted(image_ids(batches)) == [0, 1, 2, 3, 4]
    assert failures(batches) == {2: Failed(2, Reason.OUT_OF_MEMORY, "2 x 1 pixels: out of memory")}


def test_the_memory_of_a_failed_batch_is_free_before_its_halves_are_tried() -> None:
    class Tensor:
        """What a forward pass holds on the device while it runs."""

    held: list[weakref.ref[Tensor]] = []
    still_held: list[int] = []

    class OneBatchFits(MadeUpModel):
        def score(self, images: Sequence[Prepared]) -> list[Score]:
            still_held.append(sum(tensor() is not None for tensor in held))
            activations = Tensor()
            held.append(weakref.ref(activations))
            return super().score(images)

    run(pipeline_of(OneBatchFits(memory=20)), items(8))

    assert len(still_held) > 1
    assert set(still_held) == {0}


def test_the_next_batch_is_scored_while_results_are_written() -> None:
    model = MadeUpModel()

    for number, batch in enumerate(start(pipeline_of(model, batch_tokens=20), items(6))):
        assert [result.image_id for result in batch] == [2 * number, 2 * number + 1]
        until(lambda number=number: len(model.batches) == min(number + 2, 3))


def test_a_slow_photo_does_not_delay_the_results_before_it() -> None:
    written = threading.Event()
    model = MadeUpModel()

    def prepare(item: ClaimedItem) -> Prepared:
        if item.image_id == 3:
            assert written.wait(30)
        return photo(item)

    done: Batches = []
    for batch in start(pipeline_of(model, prepare, batch_tokens=20, idle_s=0.01), items(6)):
        done.append(batch)
        if 2 in image_ids(done):
            written.set()
    assert image_ids(done) == list(range(6))
    assert model.batches[:2] == [[0, 1], [2]]


def test_suspects_run_alone_and_last() -> None:
    model = MadeUpModel()
    marked: list[tuple[list[int], bool]] = []

    def mark_in_flight(image_ids: Sequence[int], alone: bool) -> None:
        marked.append((list(image_ids), alone))

    batches = run(pipeline_of(model), items(5, suspects=(0, 3)), mark_in_flight)

    assert model.batches == [[1, 2, 4], [0], [3]]
    assert marked == [([1, 2, 4], False), ([0], True), ([3], True)]
    assert sorted(image_ids(batches)) == [0, 1, 2, 3, 4]


def test_a_suspect_is_marked_after_the_result_before_it_is_written() -> None:
    marked: list[int] = []
    batches = start(pipeline_of(MadeUpModel()), items(3, suspects=(1, 2)), lambda ids, alone: marked.extend(ids))

    for number, batch in enumerate(batches):
        assert [result.image_id for result in batch] == [number]
        assert marked == list(range(number + 1))
    assert len(marked) == 3


@pytest.mark.parametrize("suspects", [(), (1,)])
def test_a_fault_of_the_worker_ends_the_turn_and_fails_no_photo(suspects: tuple[int, ...]) -> None:
    def prepare(item: ClaimedItem) -> Prepared:
        if item.image_id == 1:
            raise WorkerFault("the root is not mounted")
        return photo(item)

    batches: Batches = []

    with pytest.raises(WorkerFault, match="not mounted"):
        batches.extend(start(pipeline_of(MadeUpModel(), prepare, batch_tokens=10), items(3, suspects)))

    assert failures(batches) == {}
    assert 1 not in image_ids(batches)
    assert not loader_threads()


def test_an_error_of_marking_ends_the_turn_before_anything_is_prepared() -> None:
    prepared: list[int] = []

    def mark_in_flight(image_ids: Sequence[int], alone: bool) -> None:
        raise WorkerFault("the database is gone")

    def prepare(item: ClaimedItem) -> Prepared:
        prepared.append(item.image_id)
        return photo(item)

    with pytest.raises(WorkerFault, match="the database is gone"):
        run(pipeline_of(MadeUpModel(), prepare), items(3), mark_in_flight)

    assert prepared == []


def test_stopping_drops_what_is_in_preparation() -> None:
    stop, has_ended = threading.Event(), threading.Event()
    prepared: list[int] = []

    def prepare(item: ClaimedItem) -> Prepared:
        if item.image_id == 3:
            has_ended.wait(30)
        prepared.append(item.image_id)
        return photo(item)

    pipeline = pipeline_of(MadeUpModel(), prepare, batch_tokens=20, loaders=1, idle_s=0.01)
    batches: Batches = []
    for batch in start(pipeline, items(30, suspects=(29,)), stopping=stop.is_set):
        batches.append(batch)
        stop.set()
    has_ended.set()
    until(lambda: not loader_threads())

    assert image_ids(batches) in ([0, 1], [0, 1, 2])  # the device may have the next batch by then
    assert set(prepared) <= {0, 1, 2, 3}


def test_a_turn_that_is_stopping_from_the_start_does_nothing() -> None:
    marked: list[Sequence[int]] = []
    model = MadeUpModel()

    batches = run(
        pipeline_of(model), items(3, suspects=(2,)), lambda ids, alone: marked.append(ids), stopping=lambda: True
    )

    assert (batches, marked, model.batches) == ([], [], [])


def test_a_turn_without_time_starts_nothing_and_ends_cleanly() -> None:
    marked: list[Sequence[int]] = []
    model = MadeUpModel()

    batches = run(pipeline_of(model), items(3, suspects=(2,)), lambda ids, alone: marked.append(ids), turn_s=0)

    assert (batches, marked, model.batches) == ([], [], [])
    assert not loader_threads()


def test_what_is_in_flight_is_finished_when_the_turn_is_over() -> None:
    now = 0.0
    pipeline = pipeline_of(MadeUpModel(), batch_tokens=20, clock=lambda: now)
    marked: list[int] = []
    batches: Batches = []

    for batch in start(pipeline, items(512, suspects=(511,)), lambda ids, alone: marked.extend(ids), turn_s=60):
        batches.append(batch)
        now = 61.0

    assert len(marked) == pipeline.look_ahead
    assert image_ids(batches) == marked


def test_a_turn_that_is_closed_leaves_no_threads() -> None:
    batches = start(pipeline_of(MadeUpModel(), batch_tokens=10), items(30))
    next(batches)
    assert loader_threads()

    batches.close()

    assert not loader_threads()


def test_a_model_that_fails_on_the_probe_is_broken_and_fails_no_photo() -> None:
    class LostDevice(MadeUpModel):
        def score(self, images: Sequence[Prepared]) -> list[Score]:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    probe = Prepared(np.zeros((2, 4, 4, 3), np.uint8), 4, 4, 10)

    with pytest.raises(ProcessUnusable, match="illegal memory access"):
        run(pipeline_of(LostDevice(), probe=probe), items(5))


def test_what_this_worker_cannot_read_holds_up_no_other_photo() -> None:
    def prepare(item: ClaimedItem) -> Prepared:
        if item.image_id == 1:
            raise WorkerFault("under none of the roots")
        return photo(item)

    batches = start(pipeline_of(MadeUpModel(), prepare, batch_tokens=20), items(5))

    done = [result.image_id for _ in range(2) for result in next(batches)]

    assert sorted(done) == [0, 2, 3, 4]
    with pytest.raises(WorkerFault, match="none of the roots"):
        next(batches)


def test_what_has_its_score_is_not_scored_and_a_version_that_was_read_goes_with_the_score() -> None:
    model = MadeUpModel()

    def prepare(item: ClaimedItem) -> PreparedPhoto | AlreadyScored:
        if item.image_id == 1:
            return AlreadyScored(1, "v7")
        return PreparedPhoto(photo(item), f"v{item.image_id}")

    [batch] = run(pipeline_of(model, prepare), items(3))

    assert model.batches == [[0, 2]]
    versions = {result.image_id: result.version for result in batch if not isinstance(result, Failed)}
    assert versions == {0: "v0", 1: "v7", 2: "v2"}
    assert [result.image_id for result in batch if isinstance(result, AlreadyScored)] == [1]


@pytest.mark.parametrize("suspects", [(), (0,)])
def test_a_decoder_that_does_not_return_costs_its_photo_and_the_process(suspects: tuple[int, ...]) -> None:
    released = threading.Event()

    def prepare(item: ClaimedItem) -> Prepared:
        released.wait(60)
        return photo(item)

    batches: Batches = []
    with pytest.raises(ProcessUnusable):
        batches.extend(start(pipeline_of(MadeUpModel(), prepare, decode_s=0.1), items(1, suspects)))
    released.set()

    [[failed]] = batches
    assert isinstance(failed, Failed)
    assert (failed.image_id, failed.reason) == (0, Reason.TIMEOUT)
    assert "0.1 s" in failed.message


def test_after_a_time_out_no_further_photo_is_loaded() -> None:
    released = threading.Event()

    def prepare(item: ClaimedItem) -> Prepared:
        if item.image_id == 2:
            released.wait(60)
        return photo(item)

    batches: Batches = []
    with pytest.raises(ProcessUnusable):
        batches.extend(start(pipeline_of(MadeUpModel(), prepare, decode_s=0.1), items(300)))
    released.set()

    assert sorted(image_ids(batches)) == [0, 1, 2]
    assert [failed.reason for failed in failures(batches).values()] == [Reason.TIMEOUT]


def test_reading_has_no_time_limit() -> None:
    pipeline = pipeline_of(MadeUpModel(), read=lambda item: threading.Event().wait(0.5), decode_s=0.1)

    batches = run(pipeline, items(2))

    assert failures(batches) == {}
    assert sorted(image_ids(batches)) == [0, 1]


def test_an_error_of_ours_in_a_loader_is_a_fault_of_the_worker() -> None:
    def prepare(item: ClaimedItem) -> Prepared:
        if item.image_id == 1:
            raise DatabaseUnavailable("the database is away")
        return photo(item)

    batches: Batches = []
    with pytest.raises(WorkerFault, match="the database is away"):
        batches.extend(start(pipeline_of(MadeUpModel(), prepare), items(3)))

    assert sorted(image_ids(batches)) == [0, 2]
    assert failures(batches) == {}


@pytest.mark.parametrize("suspects", [(), (0, 1, 2)])
def test_stopping_does_not_wait_for_what_is_being_read(suspects: tuple[int, ...]) -> None:
    released, stop = threading.Event(), threading.Event()

    def read(item: ClaimedItem) -> None:
        if item.image_id == 1:
            stop.set()
            released.wait(60)

    batches = run(pipeline_of(MadeUpModel(), read=read), items(3, suspects), stopping=stop.is_set)
    assert not released.is_set()
    released.set()

    assert set(image_ids(batches)) <= {0}


QUESTIONS = {7: Question("haze", "Is it hazy?"), 9: Question("blur", "Is it blurred?")}


def asking(*, rescore: bool = False, below: float | None = None, count: int = 0) -> Claim:
    return Claim(1, 1, 1, "", rescore, "token", items(count), QUESTIONS, below)


def answered(found: Sequence[ExistingResults], **options: Any) -> list[Result]:
    """The results of photos in one batch, where the ledger has `found` already."""
    pipeline = pipeline_of(MadeUpModel(), lambda item: PreparedPhoto(photo(item), None, found[item.image_id]))
    [batch] = run(pipeline, asking(count=len(found), **options))
    return batch


def test_a_question_is_answered_together_with_the_score() -> None:
    first, second = answered([ExistingResults(), ExistingResults()])

    assert isinstance(first, Scored)
    assert isinstance(second, Scored)
    assert first.answers == {7: Answer("Is it hazy? 0"), 9: Answer("Is it blurred? 0")}
    assert second.answers == {7: Answer("Is it hazy? 1"), 9: Answer("Is it blurred? 1")}


def test_only_questions_without_an_answer_are_asked_and_an_existing_score_stays() -> None:
    known, half, new = answered(
        [ExistingResults(0.5, frozenset({7})), ExistingResults(None, frozenset({9})), ExistingResults(0.1)]
    )

    assert known == AlreadyScored(0, None, "float32", {9: Answer("Is it blurred? 0")})
    assert isinstance(half, Scored)
    assert half.answers == {7: Answer("Is it hazy? 1")}
    assert isinstance(new, AlreadyScored)
    assert set(new.answers) == {7, 9}


def test_only_photos_with_a_score_below_the_limit_are_asked_about() -> None:
    low, high = (score_of((float(width), *LOGITS[1:])).value for width in (0, 1))
    assert low < high

    results = answered([ExistingResults(), ExistingResults(), ExistingResults(high), ExistingResults(low)], below=high)

    assert [len(result.answers) for result in results if isinstance(result, Scored)] == [2, 0]
    assert [len(result.answers) for result in results if isinstance(result, AlreadyScored)] == [0, 2]


def test_every_question_is_asked_again_when_photos_are_scored_again() -> None:
    results = answered([ExistingResults(0.5, frozenset({7, 9}))], rescore=True)

    assert [len(result.answers) for result in results if isinstance(result, Scored)] == [2]


def test_a_broken_photo_in_a_batch_costs_no_other_photo_its_answers() -> None:
    [batch] = run(pipeline_of(MadeUpModel(broken=(2,))), asking(count=4))

    assert [type(result) for result in batch] == [Scored, Scored, Failed, Scored]
    assert all(len(result.answers) == 2 for result in batch if isinstance(result, Scored))
