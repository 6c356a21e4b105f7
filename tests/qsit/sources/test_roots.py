"""What a worker must be allowed to read for a list: few folders, each on one device, and never all of the machine."""

import os
from pathlib import Path

import pytest

from qsit.sources.roots import MAX_ROOTS, collect_roots, widen


def photo(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return str(path)


def test_photos_in_two_trees_have_two_roots(tmp_path: Path) -> None:
    entries = [photo(tmp_path / "home/me/a.jpg"), photo(tmp_path / "nas/b.jpg")]

    assert collect_roots(entries) == {str(tmp_path / "home/me"), str(tmp_path / "nas")}
    assert collect_roots(["/no/such/a.jpg", "/mnt/b.jpg"]) == {"/no/such", "/mnt"}


def test_the_folder_that_a_listed_link_leads_to_is_a_root(tmp_path: Path) -> None:
    target = photo(tmp_path / "elsewhere/a.jpg")
    link = tmp_path / "links/a.jpg"
    link.parent.mkdir()
    link.symlink_to(target)

    assert collect_roots([str(link)]) == {str(tmp_path / "links"), str(tmp_path / "elsewhere")}


def test_objects_of_a_list_have_their_buckets_and_bad_entries_have_none(tmp_path: Path) -> None:
    entries = ["s3://one/a.jpg", "s3://one/b/c.jpg", "s3://two/d*", "s3://", "gs://three/e.jpg", str(tmp_path)]

    assert collect_roots(entries) == {"s3://one", "s3://two", str(tmp_path)}


def test_the_roots_of_many_folders_are_their_mounts_or_two_parts_of_their_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "ismount", lambda path: path in ("/", "/mnt/nas"))
    few = {f"/home/me/{number}" for number in range(MAX_ROOTS)}
    many = few | {f"/mnt/nas/{number}/deep" for number in range(MAX_ROOTS)} | {"/photos"}

    assert collect_roots(f"{folder}/a.jpg" for folder in few) == few
    assert collect_roots(f"{folder}/a.jpg" for folder in many) == {"/home/me", "/mnt/nas", "/photos"}


def test_only_a_photo_in_the_root_folder_makes_that_a_root() -> None:
    assert widen("/") == "/"
    assert widen("/no/such/folder/at/all") == "/no/such"
