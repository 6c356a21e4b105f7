"""What users name is parsed once, into a source with one name."""

import os
from pathlib import Path

import pytest

from qsit.errors import SourceError
from qsit.sources.local_source import LocalSource
from qsit.sources.s3_source import S3Source
from qsit.sources.source import Source, parse_below, parse_source, parse_uri_pattern
from qsit.sources.uris import uri_of


@pytest.mark.parametrize(
    ("text", "source", "name"),
    [
        ("/photos/../other/", LocalSource(Path("/other")), "/other"),
        ("//photos", LocalSource(Path("/photos")), "/photos"),
        ("file:///photos/a%20b", LocalSource(Path("/photos/a b")), "/photos/a b"),
        ("photos", LocalSource(Path.cwd() / "photos"), str(Path.cwd() / "photos")),
        ("~/photos", LocalSource(Path.home() / "photos"), str(Path.home() / "photos")),
        ("/photos/\udcff", LocalSource(Path("/photos/\udcff")), "/photos/\udcff"),
        ("s3://bucket", S3Source("bucket", ""), "s3://bucket"),
        ("s3://bucket/", S3Source("bucket", ""), "s3://bucket"),
        ("s3://bucket/a//b*", S3Source("bucket", "a//b*"), "s3://bucket/a//b*"),
    ],
)
def test_a_source_has_an_absolute_name(text: str, source: Source, name: str) -> None:
    assert parse_source(text) == source
    assert source.name == name
    assert parse_source(name) == source


@pytest.mark.parametrize(
    "text",
    [
        *("gs://bucket/photos", "http://example.org/a.jpg", "/photos/a\0b.jpg", "/\ud800", "s3://photos/a\0b.jpg"),
        *("s3://", "s3:///key", "s3://b", "s3://bucket name/x", "s3://bucket/\udcff.jpg"),
    ],
)
def test_anything_else_is_refused_in_one_line(text: str) -> None:
    for parse in (parse_source, parse_uri_pattern):
        with pytest.raises(SourceError) as refused:
            parse(text)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("exists", [True, False])
def test_a_pattern_is_the_same_whether_or_not_the_folder_exists(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "20 24"
    if exists:
        folder.mkdir()

    assert parse_uri_pattern(str(folder)) == uri_of(folder)
    assert parse_uri_pattern(f"{folder}/") == uri_of(folder) + "/"
    assert parse_uri_pattern(f"{folder}*") == uri_of(folder) + "*"
    assert parse_uri_pattern(f"{folder}/*") == uri_of(folder) + "/*"
    assert parse_uri_pattern(folder.as_uri()) == uri_of(folder)


def test_patterns_of_whole_trees() -> None:
    assert parse_uri_pattern("/") == parse_uri_pattern("//") == "file:///"
    assert parse_uri_pattern("/*") == "file:///*"
    assert parse_uri_pattern("*") == uri_of(os.getcwd()) + "/*"
    assert parse_uri_pattern("s3://bucket") == "s3://bucket"
    assert parse_uri_pattern("s3://bucket/2024") == "s3://bucket/2024"
    assert parse_uri_pattern("s3://bucket/2024*") == "s3://bucket/2024*"


@pytest.mark.parametrize(
    ("text", "folder", "name"),
    [
        ("a/b.jpg", "/photos", "/photos/a/b.jpg"),
        ("../~b.jpg", "/photos", "/~b.jpg"),
        ("b.jpg", "/", "/b.jpg"),
        ("a b.jpg", "s3://bucket/photos/", "s3://bucket/photos/a b.jpg"),
        ("/other/b.jpg", "s3://bucket", "/other/b.jpg"),
        ("s3://bucket/b.jpg", "/photos", "s3://bucket/b.jpg"),
        ("file:///other/b%20.jpg", "/photos", "/other/b .jpg"),
    ],
)
def test_only_a_relative_path_is_below_the_folder(text: str, folder: str, name: str) -> None:
    assert parse_below(text, parse_source(folder)).name == name
