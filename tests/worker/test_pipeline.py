"""Batches, their budget, and what becomes of what fails; the model is made up, so that it can fail as wanted."""

import threading
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

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
from worker.pipeline import Pipeline, PreparedPhoto


@pytest.fixture(autouse=True)
def full_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is."""
    monkeypatch.setattr("worker.pipeline.IDLE_S", 30.0)


LOGITS = (1.0, 2.0, 3.0, 4.0, 5.0)
Batches = list[list[Result]]


@dataclass
class MadeUpModel:
    """Fails on the widths in `broken`, and on batches of more tokens than `memory`."""

    broken: tuple[int, ...] = ()
    memory: int = 10**9
    batches: list[list[int]] = field(default_factory=list)  # the widths of what was asked for

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
            (score, [Answer(f"{questions[number].text} {image.width}") for number in asks(place, score)])
            for place, (image, score) in enumerate(zip(images, self.score(images), strict=True))
        ]


def items(count: int, suspects: Sequence[int] = ()) -> list[ClaimedItem]:
    return [ClaimedItem(number, f"file:///{number}.jpg", "1", number in suspects) for number in range(count)]


def photo(item: ClaimedItem, tokens: int = 10) -> Prepared:
    """An image as wide as its number, by which the model knows it."""
    return Prepared(np.zeros((1, 1, 1, 3), np.uint8), item.image_id, 1, tokens)


def ready(prepare: Callable[[ClaimedItem], Prepared]) -> Callable[[ClaimedItem, Callable[[], None]], PreparedPhoto]:
    return lambda item, _: PreparedPhoto(prepare(item))


def run(
    pipeline: Pipeline,
    claimed: Sequence[ClaimedItem],
    prepare: Callable[[ClaimedItem], Prepared] = photo,
    start: Callable[[Sequence[int], bool], None] = lambda image_ids, alone: None,
    *,
    turn_s: float = 1000,
    stopping: Callable[[], bool] = lambda: False,
) -> Batches:
    return list(pipeline.run(claimed, ready(prepare), start, turn_s=turn_s, stopping=stopping))


def made(model: MadeUpModel, batch_tokens: int = 1000, loaders: int = 2) -> Pipeline:
    return Pipeline(model, "float32", batch_tokens, loaders)


def image_ids(batches: Batches) -> list[int]:
    return [result.image_id for batch in batches for result in batch]


def failures(batches: Batches) -> dict[int, Failed]:
    return {result.image_id: result for batch in batches for result in batch if isinstance(result, Failed)}


def test_a_result_is_the_score_its_logits_and_the_precision() -> None:
    [[result]] = run(made(MadeUpModel()), items(1))

    expected = score_of((0.0, *LOGITS[1:]))
    assert result == Scored(0, expected.value, expected.logits, "float32")


def test_no_items_are_no_batches_and_no_start() -> None:
    started: list[Sequence[int]] = []
    model = MadeUpModel()

    batches = run(made(model), [], start=lambda image_ids, alone: started.append(image_ids))

    assert batches == []
    assert started == []
    assert model.batches == []


def test_batches_are_cut_by_the_budget_in_the_order_of_the_items() -> None:
    model = MadeUpModel()

    batches = run(made(model, batch_tokens=35), items(8))

    assert model.batches == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert [[result.image_id for result in batch] for batch in batches] == model.batches


def test_a_batch_may_fill_the_budget_to_the_last_token() -> None:
    model = MadeUpModel()

    run(made(model, batch_tokens=30), items(6))

    assert model.batches == [[0, 1, 2], [3, 4, 5]]


def test_an_image_over_the_budget_goes_alone() -> None:
    model = MadeUpModel()

    run(made(model, batch_tokens=35), items(5), lambda item: photo(item, 100 if item.image_id == 2 else 10))

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

    batches = run(made(model, budget, loaders), items(len(tokens), tuple(suspects)), prepare)

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


def test_a_long_chunk_is_prepared_a_window_at_a_time() -> None:
    started: list[Sequence[int]] = []
    pipeline = made(MadeUpModel(), batch_tokens=40)

    batches = run(pipeline, items(512), start=lambda image_ids, alone: started.append(image_ids))

    assert [number for window in started for number in window] == list(range(512))
    assert len(started) > 1
    assert max(map(len, started)) <= pipeline.look_ahead
    assert Counter(image_ids(batches)) == Counter(range(512))


def test_items_are_started_before_they_are_prepared() -> None:
    events: list[tuple[str, int]] = []

    def prepare(item: ClaimedItem) -> Prepared:
        events.append(("prepared", item.image_id))
        return photo(item)

    def start(image_ids: Sequence[int], alone: bool) -> None:
        events.extend(("started", number) for number in image_ids)

    run(made(MadeUpModel()), items(100, suspects=(3, 50)), prepare, start)

    for number in range(100):
        assert events.index(("started", number)) < events.index(("prepared", number))
    assert Counter(events) == Counter((event, number) for event in ("started", "prepared") for number in range(100))


def test_photos_are_prepared_beside_each_other() -> None:
    together = threading.Barrier(3, timeout=30)

    def prepare(item: ClaimedItem) -> Prepared:
        together.wait()
        return photo(item)

    batches = run(made(MadeUpModel(), loaders=3), items(3), prepare)

    assert failures(batches) == {}


def test_an_image_error_fails_its_photo_alone_with_its_reason() -> None:
    def prepare(item: ClaimedItem) -> Prepared:
        if item.image_id == 1:
            raise ImageError(Reason.TOO_LARGE, "too many pixels")
        return photo(item)

    batches = run(made(MadeUpModel()), items(3), prepare)

    assert sorted(image_ids(batches)) == [0, 1, 2]
    assert failures(batches) == {1: Failed(1, Reason.TOO_LARGE, "too many pixels")}


def test_any_other_error_of_preparing_fails_its_photo_alone_in_one_line() -> None:
    def prepare(item: ClaimedItem) -> Prepared:
        if item.image_id == 1:
            raise RuntimeError("first line\nsecond line")
        return photo(item)

    batches = run(made(MadeUpModel()), items(3), prepare)

    assert sorted(image_ids(batches)) == [0, 1, 2]
    assert failures(batches) == {1: Failed(1, Reason.MODEL_ERROR, "preparing it failed: first line second line")}


def test_an_error_of_the_model_is_bisected_to_the_images_that_cause_it() -> None:
    batches = run(made(MadeUpModel(broken=(3, 12))), items(16))

    failed = failures(batches)
    assert sorted(image_ids(batches)) == list(range(16))
    assert set(failed) == {3, 12}
    assert all(failure.reason is Reason.MODEL_ERROR for failure in failed.values())
    assert failed[3].message == "3 x 1 pixels: the model gave no finite rating"


def test_an_error_of_the_model_leaves_the_budget_alone() -> None:
    pipeline = made(MadeUpModel(broken=(3,)))

    run(pipeline, items(16))

    assert pipeline.batch_tokens == 1000


def test_out_of_memory_halves_the_budget_and_is_remembered() -> None:
    model = MadeUpModel(memory=60)
    pipeline = made(model, batch_tokens=80)

    first = run(pipeline, items(16))
    asked_first = list(model.batches)
    model.batches.clear()
    second = run(pipeline, items(16))

    assert asked_first[0] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert asked_first[1:] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert pipeline.batch_tokens == 40
    assert model.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert failures(first) == failures(second) == {}


def test_the_budget_never_grows_when_memory_runs_out_again() -> None:
    tokens = (20, 20, 60, 60)
    budgets: list[int] = []
    pipeline = made(MadeUpModel(memory=30))

    class Watching(MadeUpModel):
        def score(self, images: Sequence[Prepared]) -> list[Score]:
            budgets.append(pipeline.batch_tokens)
            return super().score(images)

    pipeline.model = Watching(memory=30)
    run(pipeline, items(4), lambda item: photo(item, tokens[item.image_id]))

    budgets.append(pipeline.batch_tokens)
    assert budgets == sorted(budgets, reverse=True)


def test_an_image_that_does_not_fit_alone_fails_as_out_of_memory() -> None:
    batches = run(made(MadeUpModel(memory=50)), items(5), lambda item: photo(item, 60 if item.image_id == 2 else 10))

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

    run(made(OneBatchFits(memory=20)), items(8))

    assert len(still_held) > 1
    assert set(still_held) == {0}


def test_the_next_batch_is_scored_while_results_are_written() -> None:
    model = MadeUpModel()
    batches = made(model, batch_tokens=20).run(
        items(6), ready(photo), lambda ids, alone: None, turn_s=1000, stopping=lambda: False
    )

    for number, batch in enumerate(batches):
        assert [result.image_id for result in batch] == [2 * number, 2 * number + 1]
        until(lambda number=number: len(model.batches) == min(number + 2, 3))


def test_a_photo_that_takes_long_holds_up_no_results_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.pipeline.IDLE_S", 0.01)
    written = threading.Event()
    model = MadeUpModel()

    def prepare(item: ClaimedItem) -> Prepared:
        if item.image_id == 3:
            assert written.wait(30)
        return photo(item)

    batches = made(model, batch_tokens=20).run(
        items(6), ready(prepare), lambda ids, alone: None, turn_s=1000, stopping=lambda: False
    )

    done: Batches = []
    for batch in batches:
        done.append(batch)
        if 2 in image_ids(done):
            written.set()
    assert image_ids(done) == list(range(6))
    assert model.batches[:2] == [[0, 1], [2]]


def test_suspects_run_alone_and_last() -> None:
    model = MadeUpModel()
    started: list[tuple[list[int], bool]] = []

    def start(image_ids: Sequence[int], alone: bool) -> None:
        started.append((list(image_ids), alone))

    batches = run(made(model), items(5, suspects=(0, 3)), start=start)

    assert model.batches == [[1, 2, 4], [0], [3]]
    assert started == [([1, 2, 4], False), ([0], True), ([3], True)]
    assert sorted(image_ids(batches)) == [0, 1, 2, 3, 4]


def test_a_suspect_is_taken_up_when_the_result_before_it_is_written() -> None:
    started: list[int] = []
    batches = made(MadeUpModel()).run(
        items(3, suspects=(1, 2)),
        ready(photo),
        lambda ids, alone: started.extend(ids),
        turn_s=1000,
        stopping=lambda: False,
    )

    for number, batch in enumerate(batches):
        assert [result.image_id for result in batch] == [number]
        assert started == list(range(number + 1))
    assert len(started) == 3


@pytest.mark.parametrize("suspects", [(), (1,)])
def test_a_fault_of_the_worker_ends_the_turn_and_fails_no_photo(suspects: tuple[int, ...]) -> None:
    def prepare(item: ClaimedItem) -> Prepared:
        if item.image_id == 1:
            raise WorkerFault("the root is not there")
        return photo(item)

    batches: Batches = []
    pipeline = made(MadeUpModel(), batch_tokens=10)

    with pytest.raises(WorkerFault, match="the root is not there"):
        batches.extend(
            pipeline.run(
                items(3, suspects), ready(prepare), lambda ids, alone: None, turn_s=1000, stopping=lambda: False
            )
        )

    assert failures(batches) == {}
    assert 1 not in image_ids(batches)
    assert not loaders_alive()


def test_what_start_raises_ends_the_turn_before_anything_is_prepared() -> None:
    prepared: list[int] = []

    def start(image_ids: Sequence[int], alone: bool) -> None:
        raise WorkerFault("the database is gone")

    def prepare(item: ClaimedItem) -> Prepared:
        prepared.append(item.image_id)
        return photo(item)

    with pytest.raises(WorkerFault, match="the database is gone"):
        run(made(MadeUpModel()), items(3), prepare, start)

    assert prepared == []


def test_stopping_drops_what_is_in_preparation(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = threading.Event()
    stop = threading.Event()
    prepared: list[int] = []

    class Noticed(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            dropped.set()
            super().shutdown(wait=wait)

    def prepare(item: ClaimedItem) -> Prepared:
        if item.image_id == 3:
            dropped.wait(30)
        prepared.append(item.image_id)
        return photo(item)

    monkeypatch.setattr("worker.pipeline.ThreadPoolExecutor", Noticed)
    monkeypatch.setattr("worker.pipeline.IDLE_S", 0.01)
    batches: Batches = []
    for batch in made(MadeUpModel(), batch_tokens=20, loaders=1).run(
        items(30, suspects=(29,)), ready(prepare), lambda ids, alone: None, turn_s=1000, stopping=stop.is_set
    ):
        batches.append(batch)
        stop.set()

    assert image_ids(batches) in ([0, 1], [0, 1, 2])  # by then, what follows may be on the device
    assert set(prepared) <= {0, 1, 2, 3}
    until(lambda: not loaders_alive())


def test_a_turn_that_is_stopping_from_the_start_does_nothing() -> None:
    started: list[Sequence[int]] = []
    model = MadeUpModel()

    batches = run(
        made(model), items(3, suspects=(2,)), start=lambda ids, alone: started.append(ids), stopping=lambda: True
    )

    assert (batches, started, model.batches) == ([], [], [])


def test_a_turn_of_no_time_takes_up_nothing_and_ends_cleanly() -> None:
    started: list[Sequence[int]] = []
    model = MadeUpModel()

    batches = run(made(model), items(3, suspects=(2,)), start=lambda ids, alone: started.append(ids), turn_s=0)

    assert (batches, started, model.batches) == ([], [], [])
    assert not loaders_alive()


def test_what_is_taken_up_is_finished_when_the_turn_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("worker.pipeline.time.monotonic", lambda: now)
    pipeline = made(MadeUpModel(), batch_tokens=20)
    started: list[int] = []
    batches: Batches = []

    for batch in pipeline.run(
        items(512, suspects=(511,)),
        ready(photo),
        lambda ids, alone: started.extend(ids),
        turn_s=60,
        stopping=lambda: False,
    ):
        batches.append(batch)
        now = 61.0

    assert len(started) == pipeline.look_ahead
    assert image_ids(batches) == started


def test_a_turn_that_is_given_up_leaves_no_threads() -> None:
    batches = made(MadeUpModel(), batch_tokens=10).run(
        items(30), ready(photo), lambda ids, alone: None, turn_s=1000, stopping=lambda: False
    )
    next(batches)
    assert loaders_alive()

    batches.close()  # type: ignore[attr-defined]

    assert not loaders_alive()


def loaders_alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_a_model_that_fails_on_a_good_image_too_is_broken_and_fails_no_photo() -> None:
    class LostDevice(MadeUpModel):
        def score(self, images: Sequence[Prepared]) -> list[Score]:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    probe = Prepared(np.zeros((2, 4, 4, 3), np.uint8), 4, 4, 10)
    pipeline = Pipeline(LostDevice(), "float16", 100, 2, probe)
    items = [ClaimedItem(number, f"file:///{number}.jpg", "1", False) for number in range(5)]

    with pytest.raises(ProcessUnusable, match="illegal memory access"):
        list(pipeline.run(items, ready(lambda _: probe), lambda *_: None, turn_s=60, stopping=lambda: False))


def test_what_this_worker_cannot_read_holds_up_no_other() -> None:
    class Model(MadeUpModel):
        def score(self, images: Sequence[Prepared]) -> list[Score]:
            return [score_of((0.0, 0.0, 0.0, 0.0, 0.0)) for _ in images]

    def prepare(item: ClaimedItem) -> Prepared:
        if item.image_id == 1:
            raise WorkerFault("under none of the roots")
        return Prepared(np.zeros((2, 4, 4, 3), np.uint8), 4, 4, 10)

    items = [ClaimedItem(number, f"file:///{number}.jpg", "1", False) for number in range(5)]
    batches = Pipeline(Model(), "float32", 20, 2).run(
        items, ready(prepare), lambda *_: None, turn_s=60, stopping=lambda: False
    )

    done = [result.image_id for _ in range(2) for result in next(batches)]

    assert sorted(done) == [0, 2, 3, 4]
    with pytest.raises(WorkerFault, match="none of the roots"):
        next(batches)


def test_what_is_known_is_not_scored_and_what_was_learnt_goes_with_the_score() -> None:
    model = MadeUpModel()

    def prepare(item: ClaimedItem, _: Callable[[], None]) -> PreparedPhoto | AlreadyScored:
        return (
            AlreadyScored(item.image_id, "v7")
            if item.image_id == 1
            else PreparedPhoto(photo(item), f"v{item.image_id}")
        )

    [batch] = made(model).run(items(3), prepare, lambda *_: None, turn_s=60, stopping=lambda: False)

    assert model.batches == [[0, 2]]
    assert sorted((result.image_id, result.version) for result in batch if not isinstance(result, Failed)) == [
        (0, "v0"),
        (1, "v7"),
        (2, "v2"),
    ]
    assert [result.image_id for result in batch if isinstance(result, AlreadyScored)] == [1]


@pytest.mark.parametrize("suspects", [(), (0,)])
def test_a_decoder_that_does_not_come_back_costs_its_photo_and_the_process(suspects: tuple[int, ...]) -> None:
    come_back = threading.Event()

    def prepare(item: ClaimedItem, decoding: Callable[[], None]) -> PreparedPhoto:
        decoding()
        if item.image_id == 0:
            come_back.wait(60)
        return PreparedPhoto(photo(item))

    pipeline = Pipeline(MadeUpModel(), "float32", 1000, 2, decode_s=0.1)
    batches: Batches = []
    with pytest.raises(ProcessUnusable):
        batches.extend(pipeline.run(items(1, suspects), prepare, lambda *_: None, turn_s=60, stopping=lambda: False))
    come_back.set()

    [[failed]] = batches
    assert isinstance(failed, Failed)
    assert (failed.image_id, failed.reason) == (0, Reason.TIMEOUT)
    assert "0.1 s" in failed.message


def test_after_a_time_out_nothing_more_is_taken_up() -> None:
    come_back = threading.Event()

    def prepare(item: ClaimedItem, decoding: Callable[[], None]) -> PreparedPhoto:
        decoding()
        if item.image_id == 2:
            come_back.wait(60)
        return PreparedPhoto(photo(item))

    pipeline = Pipeline(MadeUpModel(), "float32", 1000, 2, decode_s=0.1)
    batches: Batches = []
    with pytest.raises(ProcessUnusable):
        batches.extend(pipeline.run(items(300), prepare, lambda *_: None, turn_s=60, stopping=lambda: False))
    come_back.set()

    assert sorted(image_ids(batches)) == [0, 1, 2]
    assert [failed.reason for failed in failures(batches).values()] == [Reason.TIMEOUT]


def test_reading_takes_the_time_it_takes() -> None:
    def prepare(item: ClaimedItem, decoding: Callable[[], None]) -> PreparedPhoto:
        threading.Event().wait(0.5)
        decoding()
        return PreparedPhoto(photo(item))

    pipeline = Pipeline(MadeUpModel(), "float32", 1000, 2, decode_s=0.1)
    batches = list(pipeline.run(items(2), prepare, lambda *_: None, turn_s=60, stopping=lambda: False))

    assert failures(batches) == {}
    assert sorted(image_ids(batches)) == [0, 1]


def test_what_no_one_expects_of_a_loader_is_laid_to_the_worker_when_it_is_an_error_of_ours() -> None:
    def prepare(item: ClaimedItem) -> Prepared:
        if item.image_id == 1:
            raise DatabaseUnavailable("the database is away")
        return photo(item)

    batches: Batches = []
    with pytest.raises(WorkerFault, match="the database is away"):
        batches.extend(made(MadeUpModel()).run(items(3), ready(prepare), lambda *_: None, turn_s=60, stopping=bool))

    assert sorted(image_ids(batches)) == [0, 2]
    assert failures(batches) == {}


@pytest.mark.parametrize("suspects", [(), (0, 1, 2)])
def test_stopping_does_not_wait_for_what_is_being_read(suspects: tuple[int, ...]) -> None:
    come_back, stop = threading.Event(), threading.Event()

    def prepare(item: ClaimedItem) -> Prepared:
        if item.image_id == 1:
            stop.set()
            come_back.wait(60)
        return photo(item)

    batches = list(
        made(MadeUpModel()).run(items(3, suspects), ready(prepare), lambda *_: None, turn_s=60, stopping=stop.is_set)
    )
    assert not come_back.is_set()
    come_back.set()

    assert set(image_ids(batches)) <= {0}


QUESTIONS = {7: Question("haze", "Is it hazy?"), 9: Question("blur", "Is it blurred?")}


def asking(*, rescore: bool = False, below: float | None = None) -> Claim:
    return Claim(1, 1, 1, "", rescore, "token", [], QUESTIONS, below)


def looked_at(claim: Claim, found: Sequence[ExistingResults]) -> list[Result]:
    """What becomes of photos in one batch, of which that is known."""
    batches = made(MadeUpModel()).run(
        items(len(found)),
        lambda item, _: PreparedPhoto(photo(item), None, found[item.image_id]),
        lambda *_: None,
        turn_s=60,
        stopping=lambda: False,
        claim=claim,
    )
    [batch] = batches
    return batch


def test_a_question_is_answered_beside_the_score() -> None:
    first, second = looked_at(asking(), [ExistingResults(), ExistingResults()])

    assert isinstance(first, Scored)
    assert isinstance(second, Scored)
    assert first.answers == {7: Answer("Is it hazy? 0"), 9: Answer("Is it blurred? 0")}
    assert second.answers == {7: Answer("Is it hazy? 1"), 9: Answer("Is it blurred? 1")}


def test_only_what_has_no_answer_is_asked_and_a_score_that_is_there_stays() -> None:
    known, half, new = looked_at(
        asking(), [ExistingResults(0.5, frozenset({7})), ExistingResults(None, frozenset({9})), ExistingResults(0.1)]
    )

    assert known == AlreadyScored(0, None, "float32", {9: Answer("Is it blurred? 0")})
    assert isinstance(half, Scored)
    assert half.answers == {7: Answer("Is it hazy? 1")}
    assert isinstance(new, AlreadyScored)
    assert set(new.answers) == {7, 9}


def test_photos_whose_score_is_not_below_are_not_asked_about() -> None:
    low, high = (score_of((float(width), *LOGITS[1:])).value for width in (0, 1))
    assert low < high

    results = looked_at(
        asking(below=high), [ExistingResults(), ExistingResults(), ExistingResults(high), ExistingResults(low)]
    )

    assert [len(result.answers) for result in results if isinstance(result, Scored)] == [2, 0]
    assert [len(result.answers) for result in results if isinstance(result, AlreadyScored)] == [0, 2]


def test_all_is_asked_again_when_photos_are_scored_again() -> None:
    results = looked_at(asking(rescore=True), [ExistingResults(0.5, frozenset({7, 9}))])

    assert [len(result.answers) for result in results if isinstance(result, Scored)] == [2]


def test_a_batch_with_a_broken_photo_loses_no_answer() -> None:
    model = MadeUpModel(broken=(2,))
    [batch] = made(model).run(
        items(4), ready(photo), lambda *_: None, turn_s=60, stopping=lambda: False, claim=asking()
    )

    assert [type(result) for result in batch] == [Scored, Scored, Failed, Scored]
    assert all(len(result.answers) == 2 for result in batch if isinstance(result, Scored))
