"""Reading labels from tables and lists, and reporting what is wrong with them."""

import json
from pathlib import Path

import pytest

from producer.evaluation.labels import Columns, Label, read_labels
from producer.evaluation.report import RowSkip, Skipped
from qsit.errors import SourceError, UsageError

DEFAULT = Columns()
TWO = [Label("a.jpg", 3.5), Label("b c.jpg", 4.0)]


def read(folder: Path, content: str | bytes, columns: Columns = DEFAULT) -> tuple[list[Label], Skipped]:
    file = folder / "labels"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    skipped = Skipped(RowSkip, "row")
    return read_labels(str(file), columns, skipped), skipped


def occurred(skipped: Skipped) -> dict[str, int]:
    return {reason: number for reason, number in skipped.counts().items() if number}


@pytest.mark.parametrize(
    "content",
    [
        '[{"img_path": "a.jpg", "gt_score": "3.5"}, {"img_path": "b c.jpg", "gt_score": 4}]',  # Q-Bench, Q-Align
        '[{"id": "a.jpg->3.5", "image": "a.jpg", "conversations": []}, {"id": "b c.jpg->4"}]',  # Q-SiT
        '[{"id": "a.jpg->3.5", "image": "a.jpg", "gt_score": 3.5}, {"id": "b c.jpg->4"}]',  # Q-Align's test lists
        "\n img_path , gt_score \n\n a.jpg , 3.5 \nb c.jpg,4\n,\n",
    ],
)
def test_the_authors_files_need_no_options(tmp_path: Path, content: str) -> None:
    found, skipped = read(tmp_path, content)

    assert found == TWO
    assert occurred(skipped) == {}


@pytest.mark.parametrize(
    ("content", "columns"),
    [
        (  # KonIQ
            "image_name,c1,c2,MOS,SD\na.jpg,0,1,3.5,0.2\nb c.jpg,1,0,4,0.1\n",
            Columns("image_name", "MOS"),
        ),
        (  # SPAQ, saved by a spreadsheet
            "\ufeffImage name\tMOS\r\na.jpg\t3.5\r\nb c.jpg\t 4 \r\n",
            Columns("Image name", "MOS"),
        ),
        (  # KADID
            "dist_img,ref_img,dmos,var\na.jpg,r.png,3.5,1\nb c.jpg,r.png,4,1",
            Columns("dist_img", "dmos"),
        ),
        (  # AGIQA-3K
            'name,prompt,style,mos_quality,std_quality\na.jpg,x,y,3.5,1\nb c.jpg,"x, y",y,4,1\n',
            Columns("name", "mos_quality"),
        ),
        (
            '[{"path": "x", "image": "a.jpg", "mos": 1, "stars": "3.5"}, {"image": "b c.jpg", "stars": "4"}]',
            Columns("image", "stars"),
        ),
        (
            '[{"id": "x->1", "image": "a.jpg", "v": 3.5}, {"id": "x->1", "image": "b c.jpg", "v": 4}]',
            Columns("image", "v"),
        ),
    ],
)
def test_other_columns_are_named_by_options(tmp_path: Path, content: str, columns: Columns) -> None:
    found, skipped = read(tmp_path, content, columns)

    assert found == TWO
    assert occurred(skipped) == {}


def test_one_column_can_be_named_alone(tmp_path: Path) -> None:
    assert read(tmp_path, "img_path,mos\na.jpg,3.5\nb c.jpg,4\n", Columns(opinion="mos"))[0] == TWO
    assert read(tmp_path, "photo,gt_score\na.jpg,3.5\nb c.jpg,4\n", Columns(path="photo"))[0] == TWO


def test_the_image_of_a_q_sit_entry_has_the_folder(tmp_path: Path) -> None:
    entry = {"id": "a.jpg->68.7285714286", "image": "koniq/a.jpg", "conversations": [{"from": "human", "value": "?"}]}

    found, _ = read(tmp_path, json.dumps([entry]))

    assert found == [Label("koniq/a.jpg", 68.7285714286)]


@pytest.mark.parametrize(
    ("header", "columns", "option"),
    [
        ("path,gt_score", Columns(), "--path-column"),
        ("img_path,MOS", Columns(), "--score-column"),
        ("path,mos", Columns("Path", "mos"), "--path-column"),
        ("path,mos", Columns("path", "MOS"), "--score-column"),
        ("path,mos,mos", Columns("path", "mos"), "--score-column"),
    ],
)
def test_a_missing_or_double_column_is_refused(tmp_path: Path, header: str, columns: Columns, option: str) -> None:
    with pytest.raises(UsageError, match=option) as caught:
        read(tmp_path, f"{header}\na.jpg,b.jpg,3\n", columns)

    assert header.replace(",", ", ") in str(caught.value)


def test_rows_without_a_label_are_skipped_and_reported(tmp_path: Path) -> None:
    bad = ["n1,good", "n2,nan", "n3,inf", "n4,3;5", "n5,1e999"]
    rows = ["img_path,gt_score", "a.jpg,3.5", ",2", "short", "empty, ", *bad, "b c.jpg,4"]

    found, skipped = read(tmp_path, "\n".join(rows))

    assert found == TWO
    assert occurred(skipped) == {"no_path": 1, "no_label": 2, "not_a_number": 5}
    assert list(skipped.lines()) == [
        "1 row skipped (no photo is named): row 2",
        "2 rows skipped (no label): short, empty",
        "5 rows skipped (the label is not a number): n1, n2, n3, ...",
    ]


def test_entries_without_a_label_are_skipped(tmp_path: Path) -> None:
    odd = [7, None, {}, {"id": "c.jpg"}, {"image": "c.jpg"}, {"id": "c.jpg->"}, {"id": "c.jpg->x"}, {"id": "->3"}]
    found, skipped = read(tmp_path, json.dumps([{"id": "a.jpg->3.5"}, *odd, {"id": "b c.jpg->4"}]))
    assert found == TWO
    assert occurred(skipped) == {"no_path": 5, "no_label": 2, "not_a_number": 1}

    values = ["x", True, [3], None, 10**400]
    rows = [{"img_path": "c.jpg", "gt_score": value} for value in values]
    first, last = {"img_path": "a.jpg", "gt_score": 3.5}, {"img_path": 3, "gt_score": 1}
    found, skipped = read(tmp_path, json.dumps([first, *rows, last, 5]))
    assert found == [Label("a.jpg", 3.5)]
    assert occurred(skipped) == {"no_path": 2, "no_label": 1, "not_a_number": 4}


@pytest.mark.parametrize("content", ["img_path,gt_score\n", "[]"])
def test_a_file_without_rows_has_no_labels(tmp_path: Path, content: str) -> None:
    assert read(tmp_path, content)[0] == []


@pytest.mark.parametrize(
    "content", [b'{"a.jpg": 3}', b"[{", b"[" * 100_000, b'img_path,gt_score\n"a' + b"x" * 200_000 + b'",3\n']
)
def test_a_file_of_another_format_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(SourceError, match="cannot read the labels"):
        read(tmp_path, content)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff\xfep\0a\0t\0h\0"])
def test_a_file_without_a_header_lacks_the_column(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError, match="--path-column"):
        read(tmp_path, content)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    for name, words in ((str(tmp_path / "none"), "No such file"), (str(tmp_path), "Is a directory")):
        with pytest.raises(SourceError, match=words):
            read_labels(name, Columns(), Skipped(RowSkip, "row"))


def test_a_name_keeps_bytes_that_are_not_utf_8(tmp_path: Path) -> None:
    found, _ = read(tmp_path, b"img_path,gt_score\n\xff.jpg,3\n")

    assert found == [Label("\udcff.jpg", 3.0)]
