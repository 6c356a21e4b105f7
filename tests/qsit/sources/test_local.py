"""Local folders are listed in all their oddities, and only what was listed is read."""

import os
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest

from qsit.errors import ImageError, SourceError, WorkerFault
from qsit.sources.listing import Listing
from qsit.sources.photo import GONE, ListedPhoto
from qsit.sources.reader import Reader
from qsit.sources.source import parse_source
from qsit.sources.uris import path_of, uri_of
from qsit.states import Reason

CONTENT = b"a photo, as far as a listing knows"

not_as_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything, whatever its permissions")


def put(path: Path, content: bytes = CONTENT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def walk(source: str, listing: Listing | None = None) -> Iterator[ListedPhoto]:
    return parse_source(source).walk(listing or Listing())


def names(folder: Path, listing: Listing | None = None) -> list[str]:
    """What a folder's listing has, as paths within it, in order."""
    return [str(path_of(found.uri).relative_to(folder)) for found in walk(str(folder), listing)]


def version(path: Path) -> str:
    [found] = walk(str(path))
    return found.version


def read(uri: str, listed: str, roots: list[Path]) -> bytes:
    with Reader(list(map(str, roots))).opened(uri, listed) as photo:
        assert photo.version == listed
        return photo.read()


def fails(uri: str, listed: str, roots: list[Path]) -> ImageError:
    with pytest.raises(ImageError) as error:
        read(uri, listed, roots)
    assert "\n" not in str(error.value)
    return error.value


def test_a_listing_has_the_order_of_names_with_files_before_folders(tmp_path: Path) -> None:
    for name in (
        "b/2.jpg",
        "b/1.jpg",
        "a/z.jpg",
        "a/deep/1.jpg",
        "c.jpg",
        "a.jpg",
        "B.jpg",
        "é.jpg",
        "10.jpg",
        "9.jpg",
    ):
        put(tmp_path / name)

    assert names(tmp_path) == [
        "10.jpg",
        "9.jpg",
        "B.jpg",
        "a.jpg",
        "c.jpg",
        "é.jpg",
        "a/z.jpg",
        "a/deep/1.jpg",
        "b/1.jpg",
        "b/2.jpg",
    ]


def test_a_photo_is_listed_with_its_size_and_time(tmp_path: Path) -> None:
    photo = put(tmp_path / "a.jpg")
    os.utime(photo, ns=(1, 1234567890123456789))

    assert list(walk(str(tmp_path))) == [ListedPhoto(photo.as_uri(), f"{len(CONTENT)}-1234567890123456789")]


@pytest.mark.parametrize(
    "ending",
    [
        *("jpg", "jpeg", "jpe", "jfif", "png", "webp", "avif", "tif", "tiff"),
        *("gif", "bmp", "jp2", "j2k", "mpo", "heic", "heif", "JPG", "Jpeg"),
    ],
)
def test_photos_are_known_by_their_endings(tmp_path: Path, ending: str) -> None:
    put(tmp_path / f"a.{ending}")

    assert names(tmp_path) == [f"a.{ending}"]


def test_other_files_are_counted_by_their_endings(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.txt", "b.TXT", "sub/c.txt", "notes", "a.jpg.xmp"):
        put(tmp_path / name)
    listing = Listing()

    assert names(tmp_path, listing) == ["a.jpg"]
    assert listing.ignored == {".txt": 3, "no ending": 1, ".xmp": 1}


def test_files_of_systems_and_programs_are_skipped(tmp_path: Path) -> None:
    for name in (
        "@eaDir/a.jpg",
        "#recycle/a.jpg",
        "$RECYCLE.BIN/a.jpg",
        "System Volume Information/a.jpg",
        "Catalog Previews.lrdata/a.jpg",
        ".hidden/a.jpg",
        ".thumbnails/a.jpg",
        "._x.jpg",
        ".a.jpg",
        "Thumbs.db",
        "sub/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg",
    ):
        put(tmp_path / name)
    put(tmp_path / "sub/kept.jpg")
    listing = Listing()

    assert names(tmp_path, listing) == ["sub/kept.jpg"]
    assert listing.ignored == {}


def test_a_hidden_folder_named_as_the_source_is_listed(tmp_path: Path) -> None:
    put(tmp_path / ".secret/a.jpg")

    assert names(tmp_path / ".secret") == ["a.jpg"]


def test_globs_exclude_by_name_and_by_path(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.gif", "thumbs/a.jpg", "2023/raw/a.jpg", "2023/out/a.jpg", "raw/a.jpg"):
        put(tmp_path / name)

    assert names(tmp_path, Listing(exclude=["*.gif", "thumbs"])) == [
        "a.jpg",
        "2023/out/a.jpg",
        "2023/raw/a.jpg",
        "raw/a.jpg",
    ]
    assert names(tmp_path, Listing(exclude=[f"{tmp_path}/2023/raw"])) == [
        "a.gif",
        "a.jpg",
        "2023/out/a.jpg",
        "raw/a.jpg",
        "thumbs/a.jpg",
    ]
    assert names(tmp_path, Listing(exclude=["*/2023/*"])) == ["a.gif", "a.jpg", "raw/a.jpg", "thumbs/a.jpg"]
    assert names(tmp_path, Listing(exclude=["A.JPG"])).count("a.jpg") == 1


def test_loops_of_links_come_to_an_end(tmp_path: Path) -> None:
    put(tmp_path / "sub/a.jpg")
    (tmp_path / "sub/up").symlink_to("..")
    (tmp_path / "sub/self").symlink_to(".")
    (tmp_path / "round").symlink_to("round")

    first_few = list(islice(walk(str(tmp_path)), 5))

    assert [found.uri for found in first_few] == [uri_of(tmp_path / "sub/a.jpg")]


def test_a_folder_that_is_linked_twice_is_listed_once(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere/a.jpg")
    library = tmp_path / "library"
    library.mkdir()
    (library / "one").symlink_to("../elsewhere")
    (library / "two").symlink_to("../elsewhere")

    assert names(library) == ["one/a.jpg"]


def test_linked_photos_are_listed_under_the_name_of_the_link(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere/a.jpg")
    library = tmp_path / "library"
    library.mkdir()
    (library / "link.jpg").symlink_to("../elsewhere/a.jpg")

    assert names(library) == ["link.jpg"]


def test_a_broken_link_is_listed_and_fails(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "round.jpg").symlink_to("round.jpg")
    (tmp_path / "gone.txt").symlink_to("nowhere.txt")

    found = list(walk(str(tmp_path)))

    assert [one.uri for one in found] == [uri_of(tmp_path / "gone.jpg"), uri_of(tmp_path / "round.jpg")]
    assert fails(found[0].uri, found[0].version, [tmp_path]).reason is Reason.MISSING
    assert fails(found[1].uri, found[1].version, [tmp_path]).reason is Reason.UNREADABLE


def test_a_folder_named_like_a_photo_is_walked(tmp_path: Path) -> None:
    put(tmp_path / "x.jpg/inside.jpg")

    assert names(tmp_path) == ["x.jpg/inside.jpg"]


@pytest.mark.parametrize(
    "name",
    [
        *(b"\xff.jpg", b"100%.jpg", b"%41.jpg", b"a b.jpg", b"a#b.jpg"),
        *(b"a?b=c.jpg", b"a:b;c&d.jpg", b"a\nb.jpg", "é☺.jpg".encode()),
    ],
)
def test_names_of_any_bytes_survive_in_a_uri(tmp_path: Path, name: bytes) -> None:
    path = os.fsencode(tmp_path) + b"/" + name
    try:
        with open(path, "wb") as file:
            file.write(CONTENT)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")

    [found] = walk(str(tmp_path))

    assert found.uri.isascii()
    assert found.uri.isprintable()
    assert " " not in found.uri
    assert unquote_to_bytes(found.uri) == b"file://" + path
    assert path_of(found.uri) == Path(os.fsdecode(path))
    assert read(found.uri, found.version, [tmp_path]) == CONTENT


@pytest.mark.parametrize("name", ["photo", "photo.raw", ".photo.jpg", "Thumbs.db"])
def test_a_file_named_as_the_source_is_listed_whatever_its_ending(tmp_path: Path, name: str) -> None:
    photo = put(tmp_path / name)

    [found] = walk(str(photo), Listing(exclude=["*"]))

    assert found.uri == uri_of(photo)
    assert read(found.uri, found.version, [tmp_path]) == CONTENT


def test_a_source_may_be_a_file_uri(tmp_path: Path) -> None:
    photo = put(tmp_path / "a b.jpg")

    assert [found.uri for found in walk(tmp_path.as_uri())] == [photo.as_uri()]
    assert [found.uri for found in walk(photo.as_uri())] == [photo.as_uri()]


def test_relative_paths_and_home_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = put(tmp_path / "sub/a.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))

    for source in ("sub", "./sub/", "sub/../sub", "~/sub"):
        assert [found.uri for found in walk(source)] == [photo.as_uri()]


def test_links_in_the_name_of_a_source_are_kept(tmp_path: Path) -> None:
    put(tmp_path / "disk7/a.jpg")
    (tmp_path / "photos").symlink_to("disk7")

    assert [found.uri for found in walk(str(tmp_path / "photos"))] == [uri_of(tmp_path / "photos/a.jpg")]


@pytest.mark.parametrize("name", ["nowhere", "file.jpg/below", "x" * 300, "a\0b"])
def test_a_source_that_does_not_exist_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    put(tmp_path / "file.jpg")

    with pytest.raises(SourceError) as refused:
        list(walk(f"{tmp_path}/{name}"))

    assert str(refused.value).startswith("cannot read")
    assert "\n" not in str(refused.value)


@not_as_root
def test_an_unreadable_folder_is_noted_and_skipped(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "locked/b.jpg")
    put(tmp_path / "open/c.jpg")
    (tmp_path / "locked").chmod(0)
    listing = Listing()

    listed = names(tmp_path, listing)
    (tmp_path / "locked").chmod(0o700)

    assert listed == ["a.jpg", "open/c.jpg"]
    assert listing.unreadable == [f"{tmp_path / 'locked'}: Permission denied"]


@not_as_root
def test_a_source_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)

    with pytest.raises(SourceError, match=r"cannot list .*locked: Permission denied"):
        list(walk(str(locked)))


@not_as_root
def test_entries_without_permission_are_noted(tmp_path: Path) -> None:
    put(tmp_path / "names only/sub/a.jpg")
    (tmp_path / "names only").chmod(0o400)
    listing = Listing()

    listed = names(tmp_path, listing)
    (tmp_path / "names only").chmod(0o700)

    assert listed == []
    assert listing.unreadable == [f"{tmp_path / 'names only/sub'}: Permission denied"]


def test_a_folder_deleted_during_the_listing_is_noted(tmp_path: Path) -> None:
    put(tmp_path / "z.jpg")
    gone = put(tmp_path / "sub/a.jpg")
    listing = Listing()

    found = walk(str(tmp_path), listing)
    first = next(found)
    gone.unlink()
    gone.parent.rmdir()

    assert first.uri == uri_of(tmp_path / "z.jpg")
    assert list(found) == []
    assert listing.unreadable == [f"{tmp_path / 'sub'}: No such file or directory"]


def test_deep_folders_are_walked_to_the_bottom(tmp_path: Path) -> None:
    bottom = tmp_path.joinpath(*["d"] * 200)
    put(bottom / "a.jpg")

    [found] = walk(str(tmp_path))

    assert path_of(found.uri) == bottom / "a.jpg"


def test_a_listing_streams(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        put(tmp_path / folder / "1.jpg")
    found = walk(str(tmp_path))
    next(found)

    put(tmp_path / "b/2.jpg")

    assert [path_of(photo.uri).name for photo in found] == ["1.jpg", "2.jpg"]


def test_a_listed_photo_is_read(tmp_path: Path) -> None:
    photo = put(tmp_path / "sub/a.jpg")

    assert read(uri_of(photo), version(photo), [Path("/nowhere"), tmp_path]) == CONTENT


def test_an_empty_file_is_read_as_it_is(tmp_path: Path) -> None:
    photo = put(tmp_path / "a.jpg", b"")

    assert read(uri_of(photo), version(photo), [tmp_path]) == b""


def test_a_photo_that_is_gone_is_missing(tmp_path: Path) -> None:
    photo = put(tmp_path / "sub/a.jpg")
    put(tmp_path / "other.jpg")
    listed = version(photo)
    photo.unlink()

    assert fails(uri_of(photo), listed, [tmp_path]).reason is Reason.MISSING

    photo.parent.rmdir()
    assert fails(uri_of(photo), listed, [tmp_path]).reason is Reason.MISSING


def test_a_root_that_is_empty_may_be_a_mount_point_without_its_mount(tmp_path: Path) -> None:
    root = tmp_path / "mount point"
    root.mkdir()
    before_mounting = Reader([str(root)])
    of_a_private_run = Reader([str(root)], mounted=True)

    with pytest.raises(WorkerFault, match="is it mounted"), before_mounting.opened(uri_of(root / "a.jpg"), "1-1"):
        pass
    with pytest.raises(ImageError, match="gone"), of_a_private_run.opened(uri_of(root / "a.jpg"), "1-1"):
        pass

    photo = put(root / "a.jpg")
    with before_mounting.opened(uri_of(photo), version(photo)) as opened:
        assert opened.read() == CONTENT
    with pytest.raises(ImageError, match="gone"), before_mounting.opened(uri_of(root / "b.jpg"), "1-1"):
        pass
    photo.unlink()
    with pytest.raises(ImageError, match="gone"), before_mounting.opened(uri_of(photo), "1-1"):
        pass


def rewritten(photo: Path) -> None:
    photo.write_bytes(CONTENT + b"!")


def touched(photo: Path) -> None:
    os.utime(photo, ns=(1, 1))


@pytest.mark.parametrize("change", [rewritten, touched])
def test_a_photo_that_changed_is_not_read(tmp_path: Path, change: Callable[[Path], None]) -> None:
    photo = put(tmp_path / "a.jpg")
    listed = version(photo)
    change(photo)

    assert fails(uri_of(photo), listed, [tmp_path]).reason is Reason.CHANGED


def test_a_folder_is_not_a_photo(tmp_path: Path) -> None:
    folder = tmp_path / "a.jpg"
    folder.mkdir()
    descriptors = set(os.listdir("/dev/fd"))

    assert fails(uri_of(folder), "1-1", [tmp_path]).reason is Reason.NOT_AN_IMAGE
    assert set(os.listdir("/dev/fd")) == descriptors


def test_a_named_pipe_is_not_a_photo_and_does_not_block(tmp_path: Path) -> None:
    pipe = tmp_path / "a.jpg"
    os.mkfifo(pipe)
    listed = version(pipe)
    outcome: list[ImageError] = []
    reader = threading.Thread(target=lambda: outcome.append(fails(uri_of(pipe), listed, [tmp_path])), daemon=True)

    reader.start()
    reader.join(30)

    assert [error.reason for error in outcome] == [Reason.NOT_AN_IMAGE]


def test_a_photo_below_a_file_cannot_be_opened(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")

    assert fails(uri_of(tmp_path / "a.jpg/b.jpg"), "1-1", [tmp_path]).reason is Reason.UNREADABLE


@not_as_root
def test_a_photo_without_permission_is_unreadable(tmp_path: Path) -> None:
    photo = put(tmp_path / "a.jpg")
    listed = version(photo)
    photo.chmod(0)

    error = fails(uri_of(photo), listed, [tmp_path])

    assert error.reason is Reason.UNREADABLE
    assert "Permission denied" in str(error)


def test_a_link_within_the_roots_is_followed(tmp_path: Path) -> None:
    put(tmp_path / "two/a.jpg")
    (tmp_path / "one").mkdir()
    link = tmp_path / "one/link.jpg"
    link.symlink_to("../two/a.jpg")

    assert read(uri_of(link), version(link), [tmp_path / "one", tmp_path / "two"]) == CONTENT


@pytest.mark.parametrize("link", ["link.jpg", "folder/a.jpg"])
def test_a_link_out_of_the_roots_is_not_followed(tmp_path: Path, link: str) -> None:
    secret = put(tmp_path / "secrets/a.jpg")
    root = tmp_path / "photos"
    root.mkdir()
    (root / "link.jpg").symlink_to(secret)
    (root / "folder").symlink_to(secret.parent)

    error = fails(uri_of(root / link), version(secret), [root])

    assert error.reason is Reason.OUTSIDE
    assert str(secret) in str(error)


@pytest.mark.parametrize("has_proc", [True, False])
def test_a_folder_that_becomes_a_link_while_a_photo_is_opened_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_proc: bool
) -> None:
    root = tmp_path / "photos"
    photo = put(root / "sub/a.jpg", b"photo")
    secret = put(tmp_path / "secrets/a.jpg", b"other")
    os.utime(secret, ns=(photo.stat().st_mtime_ns, photo.stat().st_mtime_ns))
    listed = version(photo)
    really_open, really_readlink = os.open, os.readlink

    def swap_and_open(path: str, flags: int) -> int:
        photo.parent.rename(tmp_path / "moved")
        photo.parent.symlink_to(secret.parent)
        return really_open(path, flags)

    def readlink(path: str) -> str:
        if path.startswith("/proc/") and not has_proc:
            raise FileNotFoundError
        return really_readlink(path)

    monkeypatch.setattr(os, "open", swap_and_open)
    monkeypatch.setattr(os, "readlink", readlink)
    descriptors = set(os.listdir("/dev/fd"))

    assert fails(uri_of(photo), listed, [root]).reason is Reason.OUTSIDE
    assert set(os.listdir("/dev/fd")) == descriptors


def test_without_proc_a_photo_is_opened_by_its_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = put(tmp_path / "a.jpg")
    really_readlink, really_open = os.readlink, os.open

    def readlink(path: str) -> str:
        if path.startswith("/proc/"):
            raise FileNotFoundError
        return really_readlink(path)

    monkeypatch.setattr(os, "readlink", readlink)
    listed = version(photo)
    assert read(uri_of(photo), listed, [tmp_path]) == CONTENT

    def open_and_replace(path: str, flags: int) -> int:
        descriptor = really_open(path, flags)
        os.replace(put(tmp_path / "new.jpg"), photo)
        return descriptor

    monkeypatch.setattr(os, "open", open_and_replace)
    assert fails(uri_of(photo), listed, [tmp_path]).reason is Reason.CHANGED


def test_of_nested_roots_the_inner_one_must_be_mounted(tmp_path: Path) -> None:
    inner = tmp_path / "nas"
    inner.mkdir()

    with pytest.raises(WorkerFault, match="nas is empty; is it mounted"):
        read(uri_of(inner / "a.jpg"), "1-1", [tmp_path, inner])


def test_a_file_that_did_not_exist_when_listed_is_missing_even_without_its_root(tmp_path: Path) -> None:
    folder = tmp_path / "nowhere"

    assert fails(uri_of(folder / "a.jpg"), GONE, [folder]).reason is Reason.MISSING


def test_a_root_may_be_a_link(tmp_path: Path) -> None:
    photo = put(tmp_path / "disk7/a.jpg")
    root = tmp_path / "photos"
    root.symlink_to("disk7")

    assert read(uri_of(root / "a.jpg"), version(photo), [root]) == CONTENT


def test_a_folder_whose_name_begins_like_a_root_is_not_under_it(tmp_path: Path) -> None:
    photo = put(tmp_path / "photos-private/a.jpg")
    (tmp_path / "photos").mkdir()

    with pytest.raises(WorkerFault, match="under none of this worker's roots"):
        read(uri_of(photo), version(photo), [tmp_path / "photos"])


def test_without_roots_nothing_is_read(tmp_path: Path) -> None:
    photo = put(tmp_path / "a.jpg")

    with pytest.raises(WorkerFault, match="QSIT_ROOTS"):
        read(uri_of(photo), version(photo), [])


def test_a_path_with_dots_does_not_leave_the_roots(tmp_path: Path) -> None:
    photo = put(tmp_path / "a.jpg")
    (tmp_path / "root/sub").mkdir(parents=True)

    for climbing in (
        "root/../a.jpg",
        "root/sub/../../a.jpg",
        "root/sub/%2E%2E/%2e%2e/a.jpg",
        "root/sub%2F..%2F../a.jpg",
    ):
        with pytest.raises(WorkerFault):
            read(f"{uri_of(tmp_path)}/{climbing}", version(photo), [tmp_path / "root"])


@pytest.mark.parametrize("name", ["not mounted", "not mounted/deeper", "x" * 300])
def test_a_root_that_does_not_exist_is_attributed_to_the_worker(tmp_path: Path, name: str) -> None:
    root = tmp_path / name

    with pytest.raises(WorkerFault) as fault:
        read(uri_of(root / "a.jpg"), "1-1", [root])

    assert str(root) in str(fault.value)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    "uri", ["ftp://bucket/a.jpg", "http://example.org/a.jpg", "/photos/a.jpg", "FILE:///photos/a.jpg"]
)
def test_other_uris_are_attributed_to_the_worker(uri: str) -> None:
    with pytest.raises(WorkerFault, match="this worker reads no"):
        read(uri, "1-1", [Path("/")])


def test_a_file_with_too_many_bytes_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = put(tmp_path / "a.jpg")
    monkeypatch.setattr("qsit.sources.photo.MAX_BYTES", len(CONTENT))
    assert read(uri_of(photo), version(photo), [tmp_path]) == CONTENT

    monkeypatch.setattr("qsit.sources.photo.MAX_BYTES", len(CONTENT) - 1)
    error = fails(uri_of(photo), version(photo), [tmp_path])

    assert error.reason is Reason.TOO_LARGE
    assert f"{len(CONTENT)} bytes" in str(error)


def test_a_large_sparse_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    photo = tmp_path / "a.jpg"
    with photo.open("wb") as file:
        file.truncate(10**12)

    assert fails(uri_of(photo), version(photo), [tmp_path]).reason is Reason.TOO_LARGE
