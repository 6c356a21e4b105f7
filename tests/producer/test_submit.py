"""From sources to a job in the ledger."""

import io
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select, update

from models import db
from models.queries.progress import Progress, job_progress
from models.tables import ImageRow, JobRow
from producer import question_files, submit
from producer.listing import lease
from producer.listing import lister as lister_module
from producer.submit import Request, opened
from qsit.errors import DatabaseUnavailable, LeaseLost, SourceError, UsageError
from qsit.questions import BUILTIN_QUESTIONS, Question
from qsit.sources.listing import Listing
from qsit.sources.local_source import LocalSource
from qsit.sources.photo import ListedPhoto
from qsit.sources.source import parse_source
from tests.support.programs import make_photos, until


def gone(error: DatabaseUnavailable) -> None:
    """A database that is away in these tests does not come back."""
    raise error


def request_for(*sources: str | Path, **options: Any) -> Request:
    return Request(tuple(parse_source(str(source)) for source in sources), **{"model": "demo"} | options)


def job_of(engine: Engine, request: Request) -> Progress:
    with opened(engine, request, gone) as lister:
        lister.list(lambda _: None)
        return job_progress(engine, lister.job.id)


def listed_uris(engine: Engine) -> list[str]:
    with db.reading(engine) as connection:
        return list(connection.execute(select(ImageRow.uri).order_by(ImageRow.uri)).scalars())


def test_a_folder_and_a_file_are_listed_once_each(engine: Engine, tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "photos", 5)

    progress = job_of(engine, request_for(folder, folder / "00000.png"))

    assert (progress.is_listed, progress.listed, progress.queued) == (True, 5, 5)


def test_a_folder_is_the_same_source_however_it_is_written(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_photos(tmp_path / "photos", 3)
    monkeypatch.chdir(tmp_path)

    first = job_of(engine, request_for(folder))
    again = job_of(engine, request_for("photos/"))

    assert first.job == again.job


def test_lists_are_read_in_every_form(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_photos(tmp_path / "photos", 3)
    paths = [str(path) for path in sorted(folder.iterdir())]
    lines = tmp_path / "lines"
    lines.write_text("\n".join(paths) + "\n\n")
    null = tmp_path / "null"
    null.write_bytes(b"\0".join(map(os.fsencode, paths)))
    table = tmp_path / "table.csv"
    table.write_text("id,where\n" + "".join(f'{index},"{path}"\n' for index, path in enumerate(paths)))
    request = request_for()

    for wanted in (
        replace(request, files_from=str(lines)),
        replace(request, files_from=str(null), null_separated=True),
        replace(request, files_from=str(table), column="where"),
    ):
        assert job_of(engine, wanted).listed == 3, wanted
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(paths[:2]).encode())))
    assert job_of(engine, replace(request, files_from="-")).listed == 2


def test_a_listed_file_that_is_gone_costs_one_photo(engine: Engine, tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "photos", 2)
    lines = tmp_path / "lines"
    lines.write_text(f"{folder}/00000.png\n{folder}/gone.png\n{folder}/00001.png\n")

    assert job_of(engine, request_for(files_from=str(lines))).queued == 3


def test_a_list_with_other_content_is_another_job(engine: Engine, tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "photos", 2)
    lines = tmp_path / "lines"
    lines.write_text(f"{folder}/00000.png\n")
    first = job_of(engine, request_for(files_from=str(lines)))
    lines.write_text(f"{folder}/00001.png\n")

    assert job_of(engine, request_for(files_from=str(lines))).job != first.job


def test_a_missing_column_is_refused_with_the_names_of_the_others(engine: Engine, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("id,path\n1,x.jpg\n")

    with pytest.raises(UsageError, match="the list has id, path"):
        job_of(engine, request_for(files_from=str(table), column="file"))


def test_names_that_are_not_utf8_are_listed(engine: Engine, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    folder = make_photos(tmp_path / "photos", 1)
    (folder / "00000.png").rename(folder / name)
    lines = tmp_path / "lines"
    lines.write_bytes(os.fsencode(folder / name) + b"\n")

    assert job_of(engine, request_for(folder)).queued == 1
    assert job_of(engine, request_for(files_from=str(lines))).listed == 1
    assert [uri.rsplit("/", 1)[1] for uri in listed_uris(engine)] == ["caf%E9.png"]


def test_a_request_without_sources_or_photos_is_refused(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name a folder"):
        job_of(engine, request_for())
    with pytest.raises(SourceError, match="cannot read"):
        job_of(engine, request_for(tmp_path / "none"))
    with pytest.raises(SourceError, match="no photos found"):
        job_of(engine, request_for(tmp_path))


def test_the_same_request_continues_an_interrupted_listing(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer.listing.lister.BATCH", 2)
    request = request_for(make_photos(tmp_path / "photos", 7))

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with opened(engine, request, gone) as lister, pytest.raises(KeyboardInterrupt):
        lister.list(interrupt)
    half = job_progress(engine, lister.job.id)
    assert (half.is_listed, half.listed) == (False, 2)

    whole = job_of(engine, request)

    assert (whole.job, whole.is_listed, whole.listed, whole.queued) == (half.job, True, 7, 7)


@dataclass(frozen=True)
class SlowSource(LocalSource):
    """Yields one photo, and ends when `end` returns."""

    end: Callable[[], object]

    def check(self, _: Listing) -> None:
        """Always passes."""

    def walk(self, _: Listing, *, of_list: bool = False) -> Iterator[ListedPhoto]:
        yield ListedPhoto("file:///photos/a.jpg", "1-1")
        self.end()


def test_photos_are_queued_while_their_source_is_slow(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lister_module, "FLUSH_S", 0.01)
    is_queued = threading.Event()

    def wait_for_the_queue() -> None:
        assert is_queued.wait(60)

    source = SlowSource(Path("/photos"), wait_for_the_queue)

    with opened(engine, Request((source,), model="demo"), gone) as lister:
        assert lister.list(lambda queued: is_queued.set())

    assert job_progress(engine, lister.job.id).queued == 1


def lister_until(engine: Engine) -> float:
    with db.reading(engine) as connection:
        return float(connection.execute(select(JobRow.lister_until)).scalar_one())


def test_a_lister_keeps_its_lease_while_its_source_is_slow(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.01)
    monkeypatch.setattr(lister_module, "FLUSH_S", 3600.0)

    def wait_for_renewal() -> None:
        began = lister_until(engine)
        until(lambda: lister_until(engine) > began)

    job_of(engine, Request((SlowSource(Path("/photos"), wait_for_renewal),), model="demo"))


def test_a_lister_that_lost_its_lease_does_not_end_the_listing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_S", 0.01)
    monkeypatch.setattr(lister_module, "FLUSH_S", 0.01)
    is_queued = threading.Event()

    def lose_lease() -> None:
        assert is_queued.wait(60)
        with db.writing(engine) as connection:
            connection.execute(update(JobRow).values(lister="another:1:1"))
        until(lambda: not any(thread.name == "renew lister's lease" for thread in threading.enumerate()))

    request = Request((SlowSource(Path("/photos"), lose_lease),), model="demo")
    with opened(engine, request, gone) as lister, pytest.raises(LeaseLost):
        lister.list(lambda _: is_queued.set())

    progress = job_progress(engine, lister.job.id)
    assert (progress.is_listed, progress.queued) == (False, 1)


def test_entries_of_a_list_that_are_no_sources_cost_only_themselves(engine: Engine, tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "photos", 1)
    lines = tmp_path / "lines"
    lines.write_bytes(b"s3://photos/a\0b.jpg\n/a\0b.jpg\ns3://\ns3://photos/\xff\nhttp://example.org/a.jpg\n")
    with lines.open("a") as file:
        file.write(f"{folder}\n")

    with opened(engine, request_for(files_from=str(lines)), gone) as lister:
        lister.list(lambda _: None)

    assert job_progress(engine, lister.job.id).listed == 1
    assert len(lister.listing.unreadable) == 5


def test_roots_are_the_folders_named_and_those_of_a_list(engine: Engine, tmp_path: Path) -> None:
    first, second = make_photos(tmp_path / "a" / "x", 1), make_photos(tmp_path / "a" / "y", 1)
    other = make_photos(tmp_path / "b", 1)
    lines = tmp_path / "lines"
    lines.write_text(f"{first}/00000.png\n{second}/00000.png\n")

    request = request_for(other, first / "00000.png", files_from=str(lines))
    with opened(engine, request, gone) as lister:
        assert lister.roots() == [str(first), str(second), str(other)]


def test_names_too_long_for_an_index_are_reported_and_cost_only_themselves(engine: Engine, tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["\xff" * 60] * 9)  # three bytes of URI for one of the path
    photos = make_photos(tmp_path / "photos", 2)
    make_photos(deep, 1)

    with opened(engine, request_for(photos, tmp_path), gone) as lister:
        lister.list(lambda _: None)
        progress = job_progress(engine, lister.job.id)

    assert (progress.is_listed, progress.queued) == (True, 2)
    assert lister.listing.unreadable == ["1 photo: the URI is longer than 2,500 bytes"]


KEY_BEFORE = "fb50b8c50e80657f51bd419cee395940cc15b3ce307ce103063c20165126e733"
"""Made by the version that had no questions, of /photos with the model demo."""
ASKING = request_for("/photos", questions=(BUILTIN_QUESTIONS["noise"], Question("Why?", "Why?")))


def key_of(request: Request) -> str:
    return submit._make_key(request, "demo", None)


def test_a_request_without_questions_keeps_its_key() -> None:
    assert key_of(request_for("/photos")) == KEY_BEFORE


def test_a_job_depends_on_its_questions_but_not_on_their_order() -> None:
    noise, why = ASKING.questions
    others = (
        replace(ASKING, questions=()),
        replace(ASKING, questions=(noise,)),
        replace(ASKING, questions=(noise, replace(why, text="How?"))),
        replace(ASKING, questions=(noise, replace(why, name="reason"))),
        replace(ASKING, questions=(noise, replace(why, choices=("a", "b")))),
        replace(ASKING, questions=(noise, replace(why, max_new_tokens=50))),
        replace(ASKING, ask_below=0.5),
        replace(ASKING, ask_below=0.0),
    )

    assert key_of(replace(ASKING, questions=(why, noise))) == key_of(ASKING)
    assert len({key_of(request) for request in (ASKING, *others)}) == 1 + len(others)


def test_the_same_request_finds_its_job_and_a_name_belongs_to_its_questions(engine: Engine, tmp_path: Path) -> None:
    folder = str(make_photos(tmp_path / "photos", 2))
    asking = replace(ASKING, sources=(parse_source(folder),), ask_below=0.5)

    job = job_of(engine, asking).job

    assert job_of(engine, asking).job == job
    assert job_of(engine, replace(asking, ask_below=0.6)).job != job
    job_of(engine, replace(asking, name="night"))
    with pytest.raises(UsageError, match="night exists with other sources or options"):
        job_of(engine, replace(asking, name="night", questions=()))


def test_a_job_knows_whether_it_asks(engine: Engine, tmp_path: Path) -> None:
    folder = str(make_photos(tmp_path / "photos", 2))

    assert job_of(engine, replace(ASKING, sources=(parse_source(folder),))).asks
    assert not job_of(engine, request_for(folder)).asks


def test_the_ledger_keeps_the_longest_question_that_can_be_asked(engine: Engine, tmp_path: Path) -> None:
    folder = str(make_photos(tmp_path / "photos", 1))
    text = "美" * 828 + "??"

    asked = question_files.parse_questions([text], None)

    assert job_of(engine, request_for(folder, questions=asked)).asks
    with pytest.raises(UsageError, match="more than 2,500 bytes"):
        question_files.parse_questions([text + "?"], None)
