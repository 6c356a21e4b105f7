"""From what the user names to a job."""

import io
import os
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine

from models import db
from models.queries.progress import Progress, job_progress
from producer import question_files, submit
from producer.submit import Request, opened
from qsit.errors import DatabaseUnavailable, SourceError, UsageError
from qsit.questions import BUILTIN_QUESTIONS, Question
from tests.support.programs import make_photos


def gone(error: DatabaseUnavailable) -> None:
    """A database that is away in these tests does not come back."""
    raise error


def job_of(engine: Engine, request: Request) -> Progress:
    with opened(engine, request, gone) as lister:
        lister.list(lambda _: None)
        return job_progress(engine, lister.job.id)


def listed_uris(engine: Engine) -> list[str]:
    from sqlalchemy import select

    from models.tables import ImageRow

    with db.reading(engine) as connection:
        return list(connection.execute(select(ImageRow.uri).order_by(ImageRow.uri)).scalars())


def test_a_folder_and_a_file_are_listed_once_each(engine: Engine, tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "photos", 5)

    progress = job_of(engine, Request((str(folder), str(folder / "00000.png")), model="demo"))

    assert (progress.is_listed, progress.listed, progress.queued) == (True, 5, 5)


def test_a_folder_is_the_same_source_however_it_is_written(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_photos(tmp_path / "photos", 3)
    monkeypatch.chdir(tmp_path)

    first = job_of(engine, Request((str(folder),), model="demo"))
    again = job_of(engine, Request(("photos/",), model="demo"))

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
    tabbed = tmp_path / "table.tsv"
    tabbed.write_text("id\twhere\n" + "".join(f"{index}\t{path}\n" for index, path in enumerate(paths)))
    request = Request(model="demo")

    for wanted in (
        replace(request, files_from=str(lines)),
        replace(request, files_from=str(null), null_separated=True),
        replace(request, files_from=str(table), column="where"),
        replace(request, files_from=str(tabbed), column="where"),
    ):
        assert job_of(engine, wanted).listed == 3, wanted
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(paths[:2]).encode())))
    assert job_of(engine, replace(request, files_from="-")).listed == 2


def test_a_listed_file_that_is_gone_costs_one_photo(engine: Engine, tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "photos", 2)
    lines = tmp_path / "lines"
    lines.write_text(f"{folder}/00000.png\n{folder}/gone.png\n{folder}/00001.png\n")

    assert job_of(engine, Request(files_from=str(lines), model="demo")).queued == 3


def test_a_list_of_another_content_is_another_job(engine: Engine, tmp_path: Path) -> None:
    folder = make_photos(tmp_path / "photos", 2)
    lines = tmp_path / "lines"
    lines.write_text(f"{folder}/00000.png\n")
    first = job_of(engine, Request(files_from=str(lines), model="demo"))
    lines.write_text(f"{folder}/00001.png\n")

    assert job_of(engine, Request(files_from=str(lines), model="demo")).job != first.job


def test_a_column_that_is_not_there_is_named_with_those_that_are(engine: Engine, tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("id,path\n1,x.jpg\n")

    with pytest.raises(UsageError, match="the list has id, path"):
        job_of(engine, Request(files_from=str(table), column="file", model="demo"))


def test_names_that_are_no_utf8_are_listed(engine: Engine, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    folder = make_photos(tmp_path / "photos", 1)
    (folder / "00000.png").rename(folder / name)
    lines = tmp_path / "lines"
    lines.write_bytes(os.fsencode(folder / name) + b"\n")

    assert job_of(engine, Request((str(folder),), model="demo")).queued == 1
    assert job_of(engine, Request(files_from=str(lines), model="demo")).listed == 1
    assert [uri.rsplit("/", 1)[1] for uri in listed_uris(engine)] == ["caf%E9.png"]


def test_nothing_named_and_nothing_found_are_told(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name a folder"):
        job_of(engine, Request(model="demo"))
    with pytest.raises(SourceError, match="there is no"):
        job_of(engine, Request((str(tmp_path / "none"),), model="demo"))
    with pytest.raises(SourceError, match="no photos found"):
        job_of(engine, Request((str(tmp_path),), model="demo"))


def test_an_interrupted_listing_is_taken_up_by_the_same_request(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("producer.submit.BATCH", 2)
    request = Request((str(make_photos(tmp_path / "photos", 7)),), model="demo")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with opened(engine, request, gone) as lister, pytest.raises(KeyboardInterrupt):
        lister.list(interrupt)
    half = job_progress(engine, lister.job.id)
    assert (half.is_listed, half.listed) == (False, 2)

    whole = job_of(engine, request)

    assert (whole.job, whole.is_listed, whole.listed, whole.queued) == (half.job, True, 7, 7)


def test_roots_are_the_folders_named_and_one_for_a_list(engine: Engine, tmp_path: Path) -> None:
    first, second = make_photos(tmp_path / "a" / "x", 1), make_photos(tmp_path / "a" / "y", 1)
    other = make_photos(tmp_path / "b", 1)
    lines = tmp_path / "lines"
    lines.write_text(f"{first}/00000.png\n{second}/00000.png\n")

    request = Request((str(other), str(first / "00000.png")), files_from=str(lines), model="demo")
    with opened(engine, request, gone) as lister:
        assert lister.roots() == [str(tmp_path / "a"), str(first), str(other)]


def test_names_that_are_too_long_for_an_index_are_told_and_cost_no_other(engine: Engine, tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["\xff" * 60] * 9)  # three bytes of URI for one of the path
    photos = make_photos(tmp_path / "photos", 2)
    make_photos(deep, 1)

    with opened(engine, Request((str(photos), str(tmp_path)), model="demo"), gone) as lister:
        lister.list(lambda _: None)
        progress = job_progress(engine, lister.job.id)

    assert (progress.is_listed, progress.queued) == (True, 2)
    assert lister.listing.unreadable == ["1 photo: the URI is longer than 2,500 bytes"]


KEY_BEFORE = "fb50b8c50e80657f51bd419cee395940cc15b3ce307ce103063c20165126e733"
"""Made by the version that had no questions, of /photos with the model demo."""
ASKING = Request(("/photos",), model="demo", questions=(BUILTIN_QUESTIONS["noise"], Question("Why?", "Why?")))


def key_of(request: Request) -> str:
    return submit._key(request, "demo", None)


def test_a_command_without_questions_keeps_the_key_that_it_had() -> None:
    assert key_of(Request(("/photos",), model="demo")) == KEY_BEFORE


def test_the_order_of_questions_makes_no_other_job_and_anything_else_of_them_does() -> None:
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


def test_the_same_command_finds_its_job_and_a_name_belongs_to_its_questions(engine: Engine, tmp_path: Path) -> None:
    folder = str(make_photos(tmp_path / "photos", 2))
    asking = replace(ASKING, sources=(folder,), ask_below=0.5)

    job = job_of(engine, asking).job

    assert job_of(engine, asking).job == job
    assert job_of(engine, replace(asking, ask_below=0.6)).job != job
    job_of(engine, replace(asking, name="night"))
    with pytest.raises(UsageError, match="night exists with other sources or options"):
        job_of(engine, replace(asking, name="night", questions=()))


def test_a_job_knows_whether_it_asks(engine: Engine, tmp_path: Path) -> None:
    folder = str(make_photos(tmp_path / "photos", 2))

    assert job_of(engine, replace(ASKING, sources=(folder,))).asks
    assert not job_of(engine, Request((folder,), model="demo")).asks


def test_the_ledger_keeps_the_longest_question_that_can_be_asked(engine: Engine, tmp_path: Path) -> None:
    folder = str(make_photos(tmp_path / "photos", 1))
    text = "美" * 828 + "??"

    asked = question_files.parse_questions([text], None)

    assert job_of(engine, Request((folder,), model="demo", questions=asked)).asks
    with pytest.raises(UsageError, match="more than 2,500 bytes"):
        question_files.parse_questions([text + "?"], None)
