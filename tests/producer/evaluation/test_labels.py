"""Reading labels: tables, lists, and what is wrong with them."""

import json
from pathlib import Path

import pytest

from producer.evaluation import labels
from producer.evaluation.labels import Columns, Label
from producer.evaluation.skipped import LeftOut
from qsit.errors import SourceError, UsageError

GUESSED = Columns()


def read(
    folder: Path, content: str | bytes, name: str = "labels", columns: Columns = GUESSED
) -> tuple[list[Label], LeftOut]:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    left_out = LeftOut(labels.REASONS, "row")
    return labels.read(str(file), columns, left_out), left_out


TWO = [Label("a.jpg", 3.5), Label("b c.jpg", 4.0)]


@pytest.mark.parametrize(
    "content",
    [
        "image_name,c1,c2,MOS,SD\na.jpg,0,1,3.5,0.2\nb c.jpg,1,0,4,0.1\n",  # KonIQ
        "\ufeffImage name\tMOS\r\na.jpg\t3.5\r\nb c.jpg\t 4 \r\n",  # SPAQ, saved by a spreadsheet
        "dist_img,ref_img,dmos,var\na.jpg,r.png,3.5,1\nb c.jpg,r.png,4,1",  # KADID
        'name,prompt,style,mos_quality,std_quality,mos_align\na.jpg,x,y,3.5,1,9\nb c.jpg,"x, y",y,4,1,9\n',  # AGIQA-3K
        "\n path , score \n\n a.jpg , 3.5 \nb c.jpg,4\n,\n",
        '[{"img_path": "a.jpg", "gt_score": "3.5"}, {"img_path": "b c.jpg", "gt_score": 4}]',  # Q-Bench, Q-Align
        '[{"id": "a.jpg->3.5", "image": "a.jpg", "conversations": []}, {"id": "b c.jpg->4"}]',  # Q-SiT
    ],
)
def test_files_as_datasets_have_them(tmp_path: Path, content: str) -> None:
    found, left_out = read(tmp_path, content)

    assert found == TWO
    assert list(left_out.lines()) == []


def test_the_list_of_q_sit_names_the_folder_too(tmp_path: Path) -> None:
    entry = {"id": "a.jpg->68.7285714286", "image": "koniq/a.jpg", "conversations": [{"from": "human", "value": "?"}]}

    found, _ = read(tmp_path, json.dumps([entry]))

    assert found == [Label("koniq/a.jpg", 68.7285714286)]


@pytest.mark.parametrize(
    ("header", "columns", "words"),
    [
        ("path,image,mos", Columns(), "more than one column may have the photos; name it with --path-column: "),
        ("path,mos,dmos", Columns(), "more than one column may have the opinions; name it with --score-column: "),
        ("photo,mos", Columns(), "no column is plainly the one with the photos; name it with --path-column: "),
        ("path,stars", Columns(), "no column is plainly the one with the opinions; name it with --score-column: "),
        ("path,mos", Columns(path="Path"), "--path-column Path: the labels have path, mos"),
        ("path,mos", Columns(opinion="MOS"), "--score-column MOS: the labels have path, mos"),
        ("path,mos,mos", Columns(opinion="mos"), "--score-column mos: the labels have path, mos, mos"),
    ],
)
def test_columns_that_are_not_plain_are_asked_for(tmp_path: Path, header: str, columns: Columns, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, f"{header}\na.jpg,b.jpg,3\n", columns=columns)

    assert str(caught.value).startswith(words)
    assert header.replace(",", ", ") in str(caught.value)


@pytest.mark.parametrize("form", ["csv", "json"])
def test_columns_can_be_named(tmp_path: Path, form: str) -> None:
    rows = [["path", "image", "mos", "stars"], ["x", "a.jpg", "1", "3.5"], ["y", "b c.jpg", "1", "4"]]
    content = "\n".join(map(",".join, rows))
    if form == "json":
        content = json.dumps([dict(zip(rows[0], row, strict=True)) for row in rows[1:]])

    found, _ = read(tmp_path, content, columns=Columns("image", "stars"))

    assert found == TWO


def test_the_columns_of_q_sits_list_can_be_named_too(tmp_path: Path) -> None:
    found, _ = read(tmp_path, '[{"id": "x->1", "image": "a.jpg", "v": 3.5}]', columns=Columns("image", "v"))

    assert found == [Label("a.jpg", 3.5)]


def test_rows_that_are_no_labels_are_counted_and_told(tmp_path: Path) -> None:
    bad = ["n1,good", "n2,nan", "n3,inf", "n4,3;5", "n5,1e999"]
    found, left_out = read(tmp_path, "\n".join(["path,mos", "a.jpg,3.5", ",2", "short", "empty, ", *bad, "b c.jpg,4"]))

    assert found == TWO
    assert left_out.counts() == {"no_path": 1, "no_label": 2, "not_a_number": 5}
    assert list(left_out.lines()) == [
        "1 row left out, no photo is named: row 2",
        "2 rows left out, there is no label: short, empty",
        "5 rows left out, the label is no number: n1, n2, n3, ...",
    ]


def test_entries_that_are_no_labels_are_counted_too(tmp_path: Path) -> None:
    odd = [7, None, {}, {"id": "c.jpg"}, {"image": "c.jpg"}, {"id": "c.jpg->"}, {"id": "c.jpg->x"}, {"id": "->3"}]
    found, left_out = read(tmp_path, json.dumps([{"id": "a.jpg->3.5"}, *odd, {"id": "b c.jpg->4"}]))
    assert found == TWO
    assert left_out.counts() == {"no_path": 5, "no_label": 2, "not_a_number": 1}

    values = ["x", True, [3], None, 10**400]
    rows = [{"path": "c.jpg", "mos": value} for value in values]
    found, left_out = read(tmp_path, json.dumps([{"path": "a.jpg", "mos": 3.5}, *rows, {"path": 3, "mos": 1}, 5]))
    assert found == [Label("a.jpg", 3.5)]
    assert left_out.counts() == {"no_path": 2, "no_label": 1, "not_a_number": 4}


@pytest.mark.parametrize("content", ["path,mos\n", "[]"])
def test_no_rows_are_no_labels(tmp_path: Path, content: str) -> None:
    assert read(tmp_path, content)[0] == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a.jpg": 3}', "it is JSON, but no list"),
        (b"[{", "Expecting property name"),
        (b"[" * 100_000, "recursion"),
        (b'path,mos\n"a' + b"x" * 200_000 + b'",3\n', "field larger than field limit"),
    ],
)
def test_what_is_no_file_of_labels_is_told_in_a_line(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(SourceError, match="cannot read the labels .*" + words):
        read(tmp_path, content)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", b"\xff\xfep\0a\0t\0h\0"])
def test_what_has_no_header_is_asked_for_its_columns(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError, match="no column is plainly the one with the photos"):
        read(tmp_path, content)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    for name, words in ((str(tmp_path / "none"), "No such file"), (str(tmp_path), "Is a directory")):
        with pytest.raises(SourceError, match=words):
            labels.read(name, Columns(), LeftOut(labels.REASONS, "row"))


def test_names_in_any_bytes_are_kept(tmp_path: Path) -> None:
    found, _ = read(tmp_path, b"path,mos\n\xff.jpg,3\n")

    assert found == [Label("\udcff.jpg", 3.0)]
