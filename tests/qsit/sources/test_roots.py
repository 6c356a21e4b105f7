"""What a worker must be allowed to read for a list: few folders, each on one device, and never all of the machine."""

import os
from pathlib import Path

import pytest

from qsit.sources import roots
from qsit.sources.roots import MAX_ROOTS, collect_roots, merge_folders


def photo(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return str(path)


def test_photos_in_two_trees_have_two_roots(tmp_path: Path) -> None:
    entries = [photo(tmp_path / "home/me/a.jpg"), photo(tmp_path / "nas/b.jpg"), photo(tmp_path / "nas/deep/c.jpg")]

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


def test_many_folders_are_merged_into_their_parents(tmp_path: Path) -> None:
    library, others = str(tmp_path / "library"), str(tmp_path / "others")
    folders = {f"{library}/{year}/{day}" for year in range(5) for day in range(MAX_ROOTS)}

    assert merge_folders(folders | {others}) == {others, *(f"{library}/{year}" for year in range(5))}
    assert merge_folders(set(sorted(folders)[:MAX_ROOTS])) == set(sorted(folders)[:MAX_ROOTS])


def test_the_root_folder_contains_no_other_unless_it_is_listed() -> None:
    folders = {f"/{number}" for number in range(2 * MAX_ROOTS)}

    assert merge_folders(folders) == folders
    assert merge_folders(folders | {"/"}) == {"/"}


def test_a_folder_on_another_device_keeps_its_root(monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = ("/mnt/nas", "/mnt/usb")

    def device_of(folder: str, _: dict[str, int]) -> int:
        return next((number for number, mount in enumerate(mounts, 1) if f"{folder}/".startswith(f"{mount}/")), 0)

    monkeypatch.setattr(roots, "_device_of", device_of)
    nas = {f"/mnt/nas/{number}" for number in range(MAX_ROOTS)}

    assert merge_folders({"/mnt", "/mnt/here", "/mnt/nas/1", "/mnt/usb"}) == {"/mnt", "/mnt/nas/1", "/mnt/usb"}
    assert merge_folders({*nas, "/mnt/usb", "/mnt/here"}) == {"/mnt/nas", "/mnt/usb", "/mnt/here"}


def test_a_folder_that_does_not_exist_counts_to_the_device_of_its_nearest_parent(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 1500)

    assert roots._device_of(str(deep), {}) == os.stat(tmp_path).st_dev
