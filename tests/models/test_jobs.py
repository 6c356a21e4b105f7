"""Opening and listing jobs, on both databases."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, func, select, text, update
from sqlalchemy.pool import QueuePool

from models.db import reading, writing
from models.dialects import now_s
from models.ledger import ingest, jobs, listing, scheduling
from models.queries.pagination import ResultFilter
from models.queries.progress import job_progress
from models.queries.results import find_results
from models.tables import ChunkRow, ImageRow, ItemRow, JobRow
from qsit import process_id
from qsit.errors import DatabaseUnavailable, JobNotFound, LeaseLost, UsageError
from qsit.states import UNKNOWN_VERSION, JobState, Reason
from tests.support.ledger import QUEUE, SPEC, Photo, listed, photos, score_all


def test_a_job_is_listed_in_chunks_that_grow(engine: Engine) -> None:
    job_id = listed(engine, photos(3000))

    with reading(engine) as connection:
        sizes = list(
            connection.execute(select(ChunkRow.size).where(ChunkRow.job_id == job_id).order_by(ChunkRow.id)).scalars()
        )
    assert sum(sizes) == 3000
    assert sizes[0] == ingest.SMALLEST_CHUNK
    assert max(sizes) <= ingest.CHUNK_SIZE
    progress = job_progress(engine, job_id)
    assert (progress.listed, progress.queued, progress.skipped) == (3000, 3000, 0)


def test_the_same_key_reopens_an_unfinished_job_only(engine: Engine) -> None:
    first = listed(engine, photos(3))

    again = jobs.open_job(engine, SPEC)
    assert (again.id, again.is_new, again.is_listed) == (first, False, True)

    score_all(engine)
    assert jobs.open_job(engine, SPEC).id != first


def test_another_revision_of_the_model_is_another_job(engine: Engine) -> None:
    first = listed(engine, photos(3))

    assert jobs.open_job(engine, replace(SPEC, revision="r2")).id != first


def test_a_name_returns_its_job_even_when_finished(engine: Engine) -> None:
    named = replace(SPEC, name="night")
    first = listed(engine, photos(3), named)
    score_all(engine)

    again = jobs.open_job(engine, named)

    assert (again.id, again.state) == (first, JobState.FINISHED)


def test_a_name_of_other_sources_is_refused(engine: Engine) -> None:
    listed(engine, photos(3), replace(SPEC, name="night"))

    with pytest.raises(UsageError, match="choose another --name"):
        jobs.open_job(engine, replace(SPEC, name="night", key="other"))


def test_scored_photos_are_skipped(engine: Engine) -> None:
    listed(engine, photos(5))
    score_all(engine)

    second = listed(engine, photos(7), replace(SPEC, key="other"))

    progress = job_progress(engine, second)
    assert (progress.listed, progress.skipped, progress.queued) == (7, 5, 2)


def test_another_procedure_skips_nothing(engine: Engine) -> None:
    listed(engine, photos(5))
    score_all(engine)

    second = listed(engine, photos(5), replace(SPEC, procedure="rating-1/as-stored-1"))

    assert job_progress(engine, second).queued == 5


def test_rescore_skips_nothing(engine: Engine) -> None:
    listed(engine, photos(5))
    score_all(engine, failing=("file:///p/000001.jpg",))

    second = listed(engine, photos(5), replace(SPEC, key="again", rescore=True))

    assert job_progress(engine, second).queued == 5
    assert score_all(engine) == 5


def test_a_changed_photo_is_scored_again_and_both_scores_stay(engine: Engine) -> None:
    listed(engine, photos(3))
    score_all(engine)

    second = listed(engine, [*photos(2), Photo("file:///p/000002.jpg", "2")], replace(SPEC, key="other"))

    assert job_progress(engine, second).queued == 1
    score_all(engine)
    current = list(find_results(engine, ResultFilter()))
    assert sorted(result.version for result in current) == ["1", "1", "2"]
    assert len(list(find_results(engine, ResultFilter(all_versions=True)))) == 4


def test_a_photo_that_changes_back_has_its_old_score(engine: Engine) -> None:
    listed(engine, photos(1))
    score_all(engine)
    listed(engine, photos(1, version="2"), replace(SPEC, key="2"))
    score_all(engine)

    third = listed(engine, photos(1), replace(SPEC, key="3"))

    assert job_progress(engine, third).skipped == 1
    assert [result.version for result in find_results(engine, ResultFilter())] == ["1"]
    with reading(engine) as connection:
        assert connection.execute(select(func.count()).select_from(ImageRow).where(ImageRow.current)).scalar() == 1


@pytest.mark.parametrize(("reason", "skipped"), [(Reason.CORRUPT, 1), (Reason.MISSING, 0), (Reason.UNREADABLE, 0)])
def test_failed_photos_are_skipped_until_they_change(engine: Engine, reason: Reason, skipped: int) -> None:
    listed(engine, photos(3))
    score_all(engine, failing=("file:///p/000001.jpg",), reason=reason)

    second = listed(engine, photos(3), replace(SPEC, key="other"))
    changed = listed(engine, photos(3, version="2"), replace(SPEC, key="third"))

    assert job_progress(engine, second).skipped_failed == skipped
    assert job_progress(engine, changed).queued == 3


def test_an_interrupted_listing_continues_and_counts_once(engine: Engine) -> None:
    job = jobs.open_job(engine, SPEC)
    assert listing.begin_listing(engine, job.id)
    listing.add_images(engine, job.id, photos(100))
    listing.give_up_listing(engine, job.id)
    assert not job_progress(engine, job.id).is_listed

    assert listing.begin_listing(engine, job.id)
    listing.add_images(engine, job.id, photos(100))
    listing.add_images(engine, job.id, photos(50, prefix="file:///q/"))
    listing.end_listing(engine, job.id)

    progress = job_progress(engine, job.id)
    assert (progress.is_listed, progress.listed, progress.queued) == (True, 150, 150)


def test_a_photo_named_twice_is_one_item(engine: Engine) -> None:
    job_id = listed(engine, [*photos(4), *photos(2)])

    assert job_progress(engine, job_id).to_do == 4


def test_only_one_process_lists_a_job(engine: Engine) -> None:
    job = jobs.open_job(engine, SPEC)
    with writing(engine) as connection:
        connection.execute(update(JobRow).values(lister="elsewhere:1:0.0", lister_until=now_s() + 60))

    assert not listing.begin_listing(engine, job.id)
    with pytest.raises(LeaseLost):
        listing.add_images(engine, job.id, photos(3))


def test_a_batch_whose_commit_was_lost_counts_once(engine: Engine) -> None:
    """The client repeats a call when the reply to its commit is lost."""
    listed(engine, photos(5))
    score_all(engine)
    job = jobs.open_job(engine, replace(SPEC, key="again"))
    assert listing.begin_listing(engine, job.id)
    first = listing.add_images(engine, job.id, photos(2))
    for _ in range(2):
        listing.add_images(engine, job.id, photos(8)[2:], skipped=first.skipped)

    progress = job_progress(engine, job.id)
    assert (progress.listed, progress.skipped, progress.queued) == (8, 5, 3)


def test_a_renewed_listing_is_not_taken_over(engine: Engine) -> None:
    job = jobs.open_job(engine, SPEC)
    assert listing.begin_listing(engine, job.id)
    with writing(engine) as connection:
        connection.execute(update(JobRow).values(lister_until=now_s() - 1))
    assert not job_progress(engine, job.id).is_being_listed

    listing.renew_listing(engine, job.id)

    assert job_progress(engine, job.id).is_being_listed
    with writing(engine) as connection:
        connection.execute(update(JobRow).values(lister="elsewhere:1:0.0"))
    with pytest.raises(LeaseLost):
        listing.renew_listing(engine, job.id)


def test_a_lister_that_died_here_is_replaced_at_once(engine: Engine) -> None:
    job = jobs.open_job(engine, SPEC)
    host = process_id.identity().split(":")[0]
    with writing(engine) as connection:
        connection.execute(update(JobRow).values(lister=f"{host}:999999999:0.00", lister_until=now_s() + 60))

    assert listing.begin_listing(engine, job.id)


def test_a_job_of_nothing_new_is_finished_when_listed(engine: Engine) -> None:
    listed(engine, photos(3))
    score_all(engine)

    second = listed(engine, photos(3), replace(SPEC, key="other"))

    assert job_progress(engine, second).state is JobState.FINISHED


def test_a_job_is_not_finished_while_it_is_being_listed(engine: Engine) -> None:
    job = jobs.open_job(engine, SPEC)
    listing.begin_listing(engine, job.id)
    listing.add_images(engine, job.id, photos(3))
    score_all(engine)
    assert job_progress(engine, job.id).state is JobState.ACTIVE

    listing.end_listing(engine, job.id)

    assert job_progress(engine, job.id).state is JobState.FINISHED


def test_jobs_are_found_by_number_name_or_as_the_latest(engine: Engine) -> None:
    with pytest.raises(JobNotFound, match="no job yet"):
        jobs.find_job(engine, None)
    first = listed(engine, photos(1), replace(SPEC, name="night"))
    second = listed(engine, photos(1), replace(SPEC, key="other"))

    assert jobs.find_job(engine, "night") == jobs.find_job(engine, str(first)) == first
    assert jobs.find_job(engine, None) == second
    with pytest.raises(JobNotFound, match="no job 77"):
        jobs.find_job(engine, "77")
    with pytest.raises(JobNotFound):
        jobs.find_job(engine, "\udcff")


def test_an_empty_job_leaves_no_trace(engine: Engine) -> None:
    job = jobs.open_job(engine, SPEC)
    listing.begin_listing(engine, job.id)

    listing.drop_empty(engine, job.id)

    with reading(engine) as connection:
        assert connection.execute(select(func.count()).select_from(JobRow)).scalar() == 0
        assert connection.execute(select(func.count()).select_from(ItemRow)).scalar() == 0


def bare(count: int) -> list[Photo]:
    return photos(count, "s3://b/", UNKNOWN_VERSION)


def test_an_image_of_unknown_version_is_scored_but_never_current(engine: Engine) -> None:
    listed(engine, photos(2, "s3://b/"))
    score_all(engine)

    second = listed(engine, bare(3), replace(SPEC, key="bare"))

    progress = job_progress(engine, second)
    assert (progress.queued, progress.skipped) == (3, 0)
    with reading(engine) as connection:
        current = connection.execute(select(ImageRow.uri, ImageRow.version).where(ImageRow.current)).all()
        assert current == [(photo.uri, photo.version) for photo in photos(2, "s3://b/")]
        assert connection.execute(select(func.count()).where(ImageRow.version == UNKNOWN_VERSION)).scalar() == 3
    assert [row.version for row in find_results(engine, ResultFilter(all_versions=True))] == ["1", "1"]


def test_an_image_of_unknown_version_is_in_a_job_once(engine: Engine) -> None:
    job = jobs.open_job(engine, SPEC)
    listing.begin_listing(engine, job.id)

    assert listing.add_images(engine, job.id, bare(2)).queued == 2
    assert listing.add_images(engine, job.id, bare(3)).queued == 1
    assert listing.add_images(engine, job.id, photos(4, "s3://b/")).queued == 1
    assert listing.add_images(engine, job.id, bare(4)).queued == 0


def test_failures_at_an_unknown_version_are_tried_again(engine: Engine) -> None:
    listed(engine, bare(1))
    score_all(engine, failing=(bare(1)[0].uri,))

    second = listed(engine, bare(1), replace(SPEC, key="again"))

    assert job_progress(engine, second).queued == 1


@pytest.mark.parametrize("found", [[*bare(1), *photos(1, "s3://b/")], [*photos(1, "s3://b/"), *bare(1)]])
def test_a_known_version_wins_over_an_unknown_one(engine: Engine, found: list[Photo]) -> None:
    listed(engine, found)

    with reading(engine) as connection:
        assert connection.execute(select(ImageRow.version, ImageRow.current)).all() == [("1", True)]


def test_uris_of_any_characters_are_kept_in_the_order_of_listing(engine: Engine) -> None:
    odd = ['s3://b/"quoted".jpg', "s3://b/back\\slash.jpg", "s3://b/tab\there.jpg", "s3://b/größe 🎞 %20'.jpg"]

    listed(engine, [Photo(uri) for uri in odd])

    (message,) = scheduling.stage_chunks(engine, QUEUE, ahead=1, lease_s=60)
    assert message.uris == odd
    with reading(engine) as connection:
        assert list(connection.execute(select(ImageRow.uri).order_by(ImageRow.id)).scalars()) == odd


def test_only_a_uri_that_is_too_long_is_left_out(engine: Engine) -> None:
    job = jobs.open_job(engine, SPEC)
    listing.begin_listing(engine, job.id)
    dice = random.Random(1)
    noise = "".join(f"%{dice.randrange(256):02X}" for _ in range(2000))  # no compression makes it shorter
    longest = Photo(("file:///" + noise)[: listing.MAX_URI_BYTES], "123456789012-1700000000000000000")

    added = listing.add_images(engine, job.id, [*photos(2), longest, replace(longest, uri=longest.uri + "x")])

    assert (added.queued, added.too_long) == (3, 1)


def test_a_large_listing_updates_the_statistics(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "LARGE", 1000)
    listed(engine, photos(1000))

    if engine.dialect.name == "postgresql":
        with reading(engine) as connection:
            for table in ("images", "chunks", "items"):
                query = text("SELECT reltuples FROM pg_class WHERE relname = :table")
                assert connection.execute(query, {"table": table}).scalar_one() > 0


def test_an_exhausted_pool_counts_as_an_outage(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/qsit.db"
    small = create_engine(url, poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.1)

    with reading(small), pytest.raises(DatabaseUnavailable, match="became free"), reading(small):
        pass
    small.dispose()
