"""What `qsit score` and `qsit submit` say at their end."""

import os
from dataclasses import replace
from typing import Any

import pytest

from models.ledger.jobs import OpenedJob
from models.queries.progress import Progress
from producer import summary
from qsit.sources.listing import Listing
from qsit.sources.uris import uri_of
from qsit.states import JobState, Reason
from tests.support.records import HOSTILE, PROGRESS, RESULT

JOB = OpenedJob(7, "m", "r", "p", is_new=True, is_listed=True, state=JobState.ACTIVE)


def summary_of(progress: Progress, scored_now: int = 1087, **options: Any) -> str:
    lines = summary.summary(progress, scored_now, 10.0, [RESULT], [], {Reason.CORRUPT: 10}, "sqlite:///x", **options)
    return "\n".join(lines)


def test_the_summary_has_counts_reasons_and_the_next_commands() -> None:
    text = summary_of(PROGRESS, command="X=y qsit")

    assert "1,200 photos: 1,087 scored, 100 skipped" in text
    assert "109 per second" in text
    assert "10 corrupt" in text
    assert "X=y qsit failures 7" in text
    assert "X=y qsit results" in text
    assert "answers" not in text


def test_the_summary_shows_scores_on_the_chosen_scale() -> None:
    assert "2.000  Bad        /p/a b.jpg" in summary_of(PROGRESS, scale="1-5")


def test_the_summary_counts_answers() -> None:
    asking = replace(PROGRESS, asks=True)

    assert "100 skipped (have their score and answers)" in summary_of(asking, answers=2174)
    assert "2,174 answers" in summary_of(asking, answers=2174)
    assert "qsit results --job 7 --answers" in summary_of(asking, answers=2174)
    assert "no new answers" in summary_of(asking, answers=0)


def test_the_summary_says_when_there_was_nothing_to_do() -> None:
    done = replace(PROGRESS, scored=0, failed=0)

    assert "nothing to do" not in summary_of(PROGRESS)
    assert "nothing to do: every photo was scored or tried before" in summary_of(done, 0)
    assert "every photo was scored and asked about or tried before" in summary_of(replace(done, asks=True), 0)


def test_the_summary_warns_of_the_demo_model() -> None:
    assert "no substitute" in summary_of(replace(PROGRESS, model="demo"))
    assert "no substitute" not in summary_of(PROGRESS)


def test_a_hostile_file_name_forges_no_line_of_the_summary() -> None:
    worst = replace(RESULT, uri=uri_of(os.fsencode("/p/" + HOSTILE)))

    lines = list(summary.summary(PROGRESS, 1, 1.0, [worst], [], {}, "sqlite:///x"))

    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(("left_out", "more"), [(6, "1 further entry"), (8, "3 further entries")])
def test_a_listing_names_five_entries_that_it_could_not_list_and_counts_the_others(left_out: int, more: str) -> None:
    listing = Listing()
    listing.unreadable += [f"s3://bucket/{number}: the key is not UTF-8" for number in range(left_out)]

    lines = list(summary.listing_notes(JOB, listing, listed=True))

    assert lines[:5] == [f"could not list s3://bucket/{number}: the key is not UTF-8" for number in range(5)]
    assert lines[5:] == [f"could not list {more}"]


def test_a_listing_counts_the_files_that_it_skipped() -> None:
    listing = Listing()
    listing.ignored.update({".txt": 3, ".mov": 2})

    [line] = summary.listing_notes(JOB, listing, listed=True)

    assert "3 .txt, 2 .mov" in line


def test_a_job_that_was_listed_before_is_mentioned() -> None:
    found = replace(JOB, is_new=False)

    assert list(summary.listing_notes(found, Listing(), listed=True)) == []
    [line] = summary.listing_notes(found, Listing(), listed=False)
    assert "without photos added since" in line
    [line] = summary.listing_notes(replace(found, is_listed=False), Listing(), listed=False)
    assert "another process" in line
