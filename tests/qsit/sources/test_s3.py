"""Objects in S3 are listed with their odd keys and opened at the listed version, and every error is classified."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from qsit.errors import ImageError, SourceError, WorkerFault
from qsit.sources import s3_client, s3_reader
from qsit.sources.listing import Listing
from qsit.sources.photo import ListedPhoto
from qsit.sources.reader import Reader
from qsit.sources.source import parse_source
from qsit.states import UNKNOWN_VERSION, Reason
from tests.support import s3_servers
from tests.support.s3_servers import KEYS, NO_OTHERS, Answer, Moto, cut, refused, reset, silent, stalled

CONTENT = bytes(range(256)) * 1024
BUSY = refused(503, "SlowDown", "Please reduce your request rate.")


@pytest.fixture(scope="module")
def server() -> Iterator[Moto]:
    server = Moto()
    yield server
    server.close()


@pytest.fixture
def moto(server: Moto) -> Moto:
    server.reset()
    server.client.create_bucket(Bucket="photos")
    server.asked.clear()
    return server


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (KEYS | NO_OTHERS).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setattr(s3_client, "MAX_ATTEMPTS", 2)
    monkeypatch.setattr(s3_reader, "MAX_ATTEMPTS", 2)


def put(moto: Moto, key: str, content: bytes = CONTENT) -> str:
    """The URI of a new object."""
    moto.client.put_object(Bucket="photos", Key=key, Body=content)
    return f"s3://photos/{key}"


def listed(moto: Moto, source: str, listing: Listing | None = None, *, of_list: bool = False) -> list[str]:
    listing = listing or Listing(endpoint_url=moto.url)
    return [found.uri for found in parse_source(source).walk(listing, of_list=of_list)]


def version(moto: Moto, uri: str) -> str:
    [found] = parse_source(uri).walk(Listing(endpoint_url=moto.url))
    return found.version


def reader(moto: Moto, *roots: str) -> Reader:
    return Reader(roots or ("s3://photos",), endpoint_url=moto.url, connections=2)


def read(opener: Reader, uri: str, listed_version: str) -> bytes:
    with opener.opened(uri, listed_version) as photo:
        return photo.read()


def objects_asked(moto: Moto) -> int:
    return sum(method == "GET" and path.count("/") > 1 for method, path in moto.asked)


# listing


def test_a_bucket_is_listed_with_all_below_in_the_order_of_keys(moto: Moto) -> None:
    for key in ("b/2.jpg", "b/1.JPG", "a.jpg", "b/deep/er/x.heic", "z.png"):
        put(moto, key)

    everything = ["a.jpg", "b/1.JPG", "b/2.jpg", "b/deep/er/x.heic", "z.png"]
    for source in ("s3://photos", "s3://photos/"):
        assert listed(moto, source) == [f"s3://photos/{key}" for key in everything]


def test_a_source_is_an_object_or_a_folder_but_not_a_prefix(moto: Moto) -> None:
    for key in ("night/1.jpg", "night/2.jpg", "night-private/3.jpg", "night.jpg", "nightly.jpg"):
        put(moto, key)

    assert listed(moto, "s3://photos/night") == ["s3://photos/night/1.jpg", "s3://photos/night/2.jpg"]
    assert listed(moto, "s3://photos/night/") == ["s3://photos/night/1.jpg", "s3://photos/night/2.jpg"]
    assert listed(moto, "s3://photos/night.jpg") == ["s3://photos/night.jpg"]
    assert listed(moto, "s3://photos/nig") == []


def test_a_star_at_the_end_makes_a_source_a_prefix(moto: Moto) -> None:
    for key in ("2024-01/a.jpg", "2024-02/b.jpg", "2025-01/c.jpg", "x/IMG_1.jpg", "x/IMG_2.jpg", "x/PANO_1.jpg"):
        put(moto, key)

    assert listed(moto, "s3://photos/2024-*") == ["s3://photos/2024-01/a.jpg", "s3://photos/2024-02/b.jpg"]
    assert listed(moto, "s3://photos/x/IMG_*") == ["s3://photos/x/IMG_1.jpg", "s3://photos/x/IMG_2.jpg"]


def test_an_object_named_as_the_source_is_listed_whatever_its_ending(moto: Moto) -> None:
    uri = put(moto, "scans/.page one")

    assert listed(moto, uri, Listing(exclude=["*"], endpoint_url=moto.url)) == [uri]


def test_other_objects_are_ignored_and_counted(moto: Moto) -> None:
    for key in (
        *("a.jpg", "a.txt", "a.jpg.xmp", "sub/", "sub/b.jpg", ".trash/c.jpg", "sub/@eaDir/d.jpg/thumb.jpg"),
        *("sub/.hidden.jpg", "raw/e.jpg", "sub/f.gif", "2023/raw/g.jpg"),
    ):
        put(moto, key)
    listing = Listing(exclude=["raw", "*.gif", "s3://photos/2023/*"], endpoint_url=moto.url)

    assert listed(moto, "s3://photos", listing) == ["s3://photos/a.jpg", "s3://photos/sub/b.jpg"]
    assert listing.ignored == {".txt": 1, ".xmp": 1}


def test_a_hidden_folder_named_as_the_source_is_listed(moto: Moto) -> None:
    put(moto, ".secret/a.jpg")

    assert listed(moto, "s3://photos/.secret") == ["s3://photos/.secret/a.jpg"]


@pytest.mark.parametrize(
    "key", ["a b.jpg", "100%.jpg", "%41.jpg", "a+b.jpg", "a?b=c.jpg", "a#b.jpg", "é☺.jpg", "x//y.jpg", "a&<b>.jpg"]
)
def test_odd_keys_are_listed_and_read_as_they_are(moto: Moto, key: str) -> None:
    put(moto, key)

    [found] = parse_source("s3://photos").walk(Listing(endpoint_url=moto.url))

    assert found.uri == f"s3://photos/{key}"
    assert read(reader(moto), found.uri, found.version) == CONTENT


def test_the_version_is_the_etag_and_the_size_and_follows_the_content(moto: Moto) -> None:
    uri = put(moto, "a.jpg", b"one")
    first = version(moto, uri)
    put(moto, "a.jpg", b"two")
    second = version(moto, uri)
    put(moto, "a.jpg", b"one")

    assert first == "f97c5d29941bfb1b2fdab0874906ab82-3"
    assert second != first
    assert version(moto, uri) == first


def test_a_key_in_a_list_is_listed_without_a_request(moto: Moto) -> None:
    listing = Listing(endpoint_url=moto.url)

    found = list(parse_source("s3://photos/no/such.key").walk(listing, of_list=True))

    assert found == [ListedPhoto("s3://photos/no/such.key", UNKNOWN_VERSION)]
    assert moto.asked == []


def test_a_folder_in_a_list_is_listed(moto: Moto) -> None:
    uri = put(moto, "sub/a.jpg")

    assert listed(moto, "s3://photos/sub/", of_list=True) == [uri]


def test_more_than_a_page_is_listed(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    uris = [put(moto, f"{number}.jpg") for number in range(8)]
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
    moto.asked.clear()

    assert listed(moto, "s3://photos") == uris
    assert len(moto.asked) == 3


@pytest.mark.parametrize(
    "source", ["s3://", "s3:///key", "s3://b", "s3://under/../", "s3://bucket name/x", "s3://bucket/\udcff.jpg"]
)
def test_an_invalid_s3_uri_is_refused_in_one_line(source: str) -> None:
    with pytest.raises(SourceError) as refused_source:
        list(parse_source(source).walk(Listing()))

    assert "\n" not in str(refused_source.value)


LISTING_ERRORS: dict[str, tuple[Answer, str]] = {
    "access denied": (refused(403, "AccessDenied"), "needs the permission s3:ListBucket"),
    "no such bucket": (refused(404, "NoSuchBucket"), "has no s3://photos"),
    "expired": (refused(400, "ExpiredToken"), "have expired; renew them"),
    "unknown key": (refused(403, "InvalidAccessKeyId"), "refuses the credentials"),
    "another region": (refused(301, "PermanentRedirect"), "set AWS_REGION"),
    "malformed region": (refused(400, "AuthorizationHeaderMalformed"), "set AWS_REGION"),
    "busy": (BUSY, "asks to slow down"),
    "broken": (refused(500, "InternalError"), "failed on s3://photos .InternalError"),
    "reset": (reset, "does not answer"),
}


@pytest.mark.parametrize("name", LISTING_ERRORS)
def test_an_error_on_listing_says_what_to_do(moto: Moto, name: str) -> None:
    moto.always, words = LISTING_ERRORS[name]

    for use in (
        lambda: parse_source("s3://photos/x").check(Listing(endpoint_url=moto.url)),
        lambda: listed(moto, "s3://photos"),
    ):
        with pytest.raises(SourceError, match=words) as refused_source:
            use()
        assert "\n" not in str(refused_source.value)


def test_an_error_between_two_pages_ends_the_listing(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        put(moto, f"{number}.jpg")
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "2")
    walk = parse_source("s3://photos").walk(Listing(endpoint_url=moto.url))
    next(walk)
    moto.always = refused(403, "AccessDenied")

    with pytest.raises(SourceError, match="denied"):
        list(walk)


def test_listing_is_retried_when_s3_is_busy(moto: Moto) -> None:
    uri = put(moto, "a.jpg")
    moto.spoil = [BUSY]

    assert listed(moto, "s3://photos") == [uri]


# reading


def test_only_objects_under_a_root_are_read(moto: Moto) -> None:
    uris = [put(moto, key) for key in ("night/a.jpg", "night-private/b.jpg", "night")]
    versions = [f"{version(moto, uri)}" for uri in (uris[0], uris[1])]

    assert read(reader(moto, "s3://photos/night"), uris[0], versions[0]) == CONTENT
    moto.asked.clear()
    for roots in (("s3://photos/night",), ("s3://photo",), ("s3://photos-2", "/photos"), ("/",)):
        with pytest.raises(WorkerFault, match="none of this worker's roots"):
            read(reader(moto, *roots), uris[1], versions[1])
    assert moto.asked == []


def test_an_unknown_version_is_found_before_the_body_is_read(moto: Moto) -> None:
    uri = put(moto, "a.jpg")

    with reader(moto).opened(uri, UNKNOWN_VERSION) as photo:
        assert photo.version == version(moto, uri)
        assert photo.read() == CONTENT


@pytest.mark.parametrize("honours_conditions", [True, False])
def test_an_object_that_changed_is_not_read(moto: Moto, honours_conditions: bool) -> None:
    uri = put(moto, "a.jpg", b"one")
    listed_version = version(moto, uri)
    put(moto, "a.jpg", b"two")
    if not honours_conditions:

        def careless(environ: dict[str, object], start: object, really: Callable[[], list[bytes]]) -> list[bytes]:
            environ.pop("HTTP_IF_MATCH")
            return really()

        moto.always = careless

    with pytest.raises(ImageError) as error:
        read(reader(moto), uri, listed_version)
    assert error.value.reason is Reason.CHANGED


def test_an_object_of_too_many_bytes_is_refused_before_its_body(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = put(moto, "a.jpg")
    monkeypatch.setattr("qsit.sources.photo.MAX_BYTES", len(CONTENT) - 1)

    with pytest.raises(ImageError) as error:
        read(reader(moto), uri, version(moto, uri))
    assert error.value.reason is Reason.TOO_LARGE


def deleted(moto: Moto) -> None:
    moto.client.delete_object(Bucket="photos", Key="a.jpg")


def deleted_in_a_versioned_bucket(moto: Moto) -> None:
    moto.client.put_bucket_versioning(Bucket="photos", VersioningConfiguration={"Status": "Enabled"})
    moto.client.delete_object(Bucket="photos", Key="a.jpg")


def archived(moto: Moto) -> None:
    moto.client.put_object(Bucket="photos", Key="a.jpg", Body=CONTENT, StorageClass="GLACIER")


def always(answer: Answer) -> Callable[[Moto], None]:
    def spoil(moto: Moto) -> None:
        moto.always = answer

    return spoil


ERRORS: dict[str, tuple[Callable[[Moto], None], Reason | None, str]] = {
    "deleted": (deleted, Reason.MISSING, "is gone"),
    "deleted in a versioned bucket": (deleted_in_a_versioned_bucket, Reason.MISSING, "is gone"),
    "archived": (archived, Reason.UNREADABLE, "restore it first"),
    "key too long": (always(refused(400, "KeyTooLongError")), Reason.UNREADABLE, "key is not valid"),
    "no such bucket": (always(refused(404, "NoSuchBucket")), None, "has no s3://photos"),
    "access denied": (always(refused(403, "AccessDenied")), None, "needs the permission s3:GetObject"),
    "expired": (always(refused(400, "ExpiredToken")), None, "have expired; renew them"),
    "unknown key": (always(refused(403, "InvalidAccessKeyId")), None, "refuses the credentials"),
    "wrong secret": (always(refused(403, "SignatureDoesNotMatch")), None, "refuses the credentials"),
    "another region": (always(refused(301, "PermanentRedirect")), None, "set AWS_REGION"),
    "malformed region": (always(refused(400, "AuthorizationHeaderMalformed")), None, "set AWS_REGION"),
    "busy": (always(BUSY), None, "asks to slow down"),
    "broken": (always(refused(500, "InternalError")), None, "InternalError"),
    "reset": (always(reset), None, "does not answer"),
    "silent": (always(silent(0.6)), None, "does not answer"),
    "cut": (always(cut), None, "does not answer"),
    "stalled": (always(stalled(0.6)), None, "does not answer"),
}
"""What happens to an object after it was listed; its reason, or None for a fault of the worker; part of the message."""


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_is_attributed_to_the_photo_or_the_worker(
    moto: Moto, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    happens, reason, words = ERRORS[name]
    monkeypatch.setattr(s3_client, "READ_TIMEOUT_S", 0.3)
    uri = put(moto, "a.jpg")
    listed_version = version(moto, uri)
    happens(moto)

    with pytest.raises(WorkerFault if reason is None else ImageError, match=words) as error:
        read(reader(moto), uri, listed_version)

    assert "\n" not in str(error.value)
    if isinstance(error.value, ImageError):
        assert error.value.reason is reason


TRANSIENT: dict[str, Answer] = {
    "busy": BUSY,
    "broken": refused(500, "InternalError"),
    "reset": reset,
    "cut": cut,
    "silent": silent(0.6),
    "stalled": stalled(0.6),
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_transient_errors_are_retried(moto: Moto, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(s3_client, "READ_TIMEOUT_S", 0.3)
    uri = put(moto, "a.jpg")
    listed_version = version(moto, uri)
    moto.spoil = [TRANSIENT[name]]

    assert read(reader(moto), uri, listed_version) == CONTENT
    assert moto.spoil == []


def test_a_retried_body_has_the_same_version(moto: Moto) -> None:
    uri = put(moto, "a.jpg")
    opener = reader(moto)
    moto.spoil = [cut]

    with opener.opened(uri, UNKNOWN_VERSION) as photo:
        put(moto, "a.jpg", CONTENT[::-1])
        with pytest.raises(ImageError) as error:
            photo.read()

    assert error.value.reason is Reason.CHANGED


def test_a_slow_body_is_attributed_to_the_worker(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_reader, "READ_LIMIT_S", 0.2)
    monkeypatch.setattr(s3_reader, "MIN_BYTES_PER_S", 10**9)
    uri = put(moto, "a.jpg")
    moto.always = stalled(0.5)

    with pytest.raises(WorkerFault, match="S3 is slow"):
        read(reader(moto), uri, UNKNOWN_VERSION)


def only(key: str, answer: Answer) -> Answer:
    """Spoils what is asked of one object."""

    def spoil(environ: dict[str, Any], start: Callable[..., Any], answered: Callable[[], Any]) -> Any:
        return answer(environ, start, answered) if environ["PATH_INFO"].endswith(f"/{key}") else answered()

    return spoil


@pytest.mark.parametrize("has_read_another", [True, False])
@pytest.mark.parametrize("code", ["AccessDenied", "InvalidRequest", "KMS.DisabledException", "MethodNotAllowed"])
def test_a_refused_object_is_unreadable_if_s3_returns_others(moto: Moto, has_read_another: bool, code: str) -> None:
    good, bad = put(moto, "a/1.jpg"), put(moto, "a/2.jpg")
    opener = reader(moto)
    if has_read_another:
        read(opener, good, UNKNOWN_VERSION)
    moto.always = only("2.jpg", refused(403, code))

    with pytest.raises(ImageError) as error:
        read(opener, bad, UNKNOWN_VERSION)
    assert error.value.reason is Reason.UNREADABLE
    assert code in str(error.value)
    assert read(opener, good, UNKNOWN_VERSION) == CONTENT


def test_a_lost_permission_is_attributed_to_the_worker(moto: Moto) -> None:
    uris = [put(moto, f"{number}.jpg") for number in range(3)]
    opener = reader(moto)
    read(opener, uris[0], UNKNOWN_VERSION)
    moto.always = refused(403, "AccessDenied")

    for uri in uris[1:]:
        with pytest.raises(WorkerFault, match="s3:GetObject"):
            read(opener, uri, UNKNOWN_VERSION)


def test_objects_outside_the_roots_are_not_probed(moto: Moto) -> None:
    put(moto, "a/1.jpg")
    bad = put(moto, "a/2.jpg")
    moto.always = only("2.jpg", refused(403, "AccessDenied"))
    moto.asked.clear()

    with pytest.raises(WorkerFault):
        read(reader(moto, bad), bad, UNKNOWN_VERSION)
    assert not any(path.endswith("1.jpg") for _, path in moto.asked)


@pytest.mark.parametrize("name", ["broken", "cut", "reset"])
def test_an_object_that_fails_repeatedly_is_unreadable_if_s3_returns_others(moto: Moto, name: str) -> None:
    good, bad = put(moto, "1.jpg"), put(moto, "2.jpg")
    opener = reader(moto)
    moto.always = only("2.jpg", TRANSIENT[name])

    for _ in range(s3_reader.MAX_OBJECT_ATTEMPTS - 1):
        with pytest.raises(WorkerFault):
            read(opener, bad, UNKNOWN_VERSION)
        assert read(opener, good, UNKNOWN_VERSION) == CONTENT
    with pytest.raises(ImageError) as error:
        read(opener, bad, UNKNOWN_VERSION)
    assert error.value.reason is Reason.UNREADABLE


def test_a_success_resets_the_failures_of_an_object(moto: Moto) -> None:
    good, flaky = put(moto, "1.jpg"), put(moto, "2.jpg")
    opener = reader(moto)
    read(opener, good, UNKNOWN_VERSION)

    for _ in range(2):
        moto.always = only("2.jpg", reset)
        for _ in range(s3_reader.MAX_OBJECT_ATTEMPTS - 1):
            with pytest.raises(WorkerFault):
                read(opener, flaky, UNKNOWN_VERSION)
        moto.always = None
        assert read(opener, flaky, UNKNOWN_VERSION) == CONTENT


def headless(environ: object, start: Callable[..., Any], answered: object) -> list[bytes]:
    """A page of something that is not S3."""
    start("200 OK", [("Content-Type", "text/html"), ("Content-Length", "5")])
    return [b"hello"]


def test_a_server_that_does_not_speak_s3_is_reported(moto: Moto) -> None:
    moto.always = headless

    with pytest.raises(WorkerFault, match="is it an S3 server"):
        read(reader(moto), "s3://photos/a.jpg", UNKNOWN_VERSION)
    with pytest.raises(SourceError, match="S3 at"):
        listed(moto, "s3://photos")


def test_an_incomplete_listing_is_an_error(moto: Moto) -> None:
    page = (
        b"<ListBucketResult><IsTruncated>true</IsTruncated><Contents><Key>a.jpg</Key><Size>1</Size>"
        b"<ETag>x</ETag></Contents></ListBucketResult>"
    )

    def first_version_only(environ: object, start: Callable[..., Any], answered: object) -> list[bytes]:
        start("200 OK", [("Content-Type", "application/xml"), ("Content-Length", str(len(page)))])
        return [page]

    moto.always = first_version_only

    with pytest.raises(SourceError, match="must speak ListObjectsV2"):
        listed(moto, "s3://photos")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("AWS_METADATA_SERVICE_TIMEOUT", "soon"),
        ("AWS_ENDPOINT_URL_S3", "nonsense"),
        ("AWS_CA_BUNDLE", "/no/bundle"),
        ("AWS_DEFAULT_REGION", "no region!"),
        ("AWS_MAX_ATTEMPTS", "many"),
    ],
)
def test_bad_settings_of_boto3_fail_no_photo(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", value if variable == "AWS_ENDPOINT_URL_S3" else "https://127.0.0.1:9")

    with pytest.raises(SourceError) as refused_source:
        parse_source("s3://photos").check(Listing())
    with pytest.raises(WorkerFault):
        read(Reader(["s3://photos"]), "s3://photos/a.jpg", UNKNOWN_VERSION)
    assert "\n" not in str(refused_source.value)


def test_a_message_of_many_lines_is_reported_in_one(moto: Moto) -> None:
    moto.always = refused(403, "AccessDenied", "first\nsecond\n\n  third")

    with pytest.raises(SourceError, match="first second third"):
        listed(moto, "s3://photos")


def test_an_unreachable_bucket_gets_no_requests_for_a_while(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    uri, other = put(moto, "a.jpg"), put(moto, "b.jpg")
    versions = version(moto, uri), version(moto, other)
    monkeypatch.setattr(s3_reader, "BUCKET_BACKOFF_S", 0.5)
    opener = reader(moto)
    moto.always = BUSY
    with pytest.raises(WorkerFault):
        read(opener, uri, versions[0])
    moto.always = None
    moto.asked.clear()

    with pytest.raises(WorkerFault, match="slow down"):
        read(opener, other, versions[1])
    assert moto.asked == []
    time.sleep(0.5)

    assert read(opener, other, versions[1]) == CONTENT


def test_a_running_worker_finds_renewed_credentials(
    moto: Moto, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "credentials"
    log = tmp_path / "log"
    monkeypatch.setattr(s3_reader, "BUCKET_BACKOFF_S", 0.0)
    for name in KEYS:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))

    def write(secret: str) -> None:
        file.write_text(
            f"[default]\naws_access_key_id = {KEYS['AWS_ACCESS_KEY_ID']}\naws_secret_access_key = {secret}\n"
        )

    (tmp_path / "root" / "photos").mkdir(parents=True)
    (tmp_path / "root" / "photos" / "a.jpg").write_bytes(CONTENT)
    with s3_servers.rclone(tmp_path / "root", log) as url:
        opener = Reader(["s3://photos"], endpoint_url=url)
        write("NO LONGER GOOD")
        with pytest.raises(WorkerFault, match="refuses the credentials"):
            read(opener, "s3://photos/a.jpg", UNKNOWN_VERSION)
        write(KEYS["AWS_SECRET_ACCESS_KEY"])

        assert read(opener, "s3://photos/a.jpg", UNKNOWN_VERSION) == CONTENT


def test_missing_credentials_and_profiles_are_reported(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name)

    with pytest.raises(SourceError, match=r"no credentials .* set AWS_ACCESS_KEY_ID"):
        parse_source("s3://photos").check(Listing(endpoint_url=moto.url))
    with pytest.raises(WorkerFault, match="no credentials"):
        read(reader(moto), "s3://photos/a.jpg", UNKNOWN_VERSION)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(SourceError, match="nobody"):
        parse_source("s3://photos").check(Listing(endpoint_url=moto.url))


def test_a_server_that_does_not_answer_is_reported() -> None:
    nowhere = "http://127.0.0.1:9"

    with pytest.raises(SourceError, match=f"S3 at {nowhere} does not answer"):
        parse_source("s3://photos").check(Listing(endpoint_url=nowhere))
    with pytest.raises(WorkerFault, match=f"S3 at {nowhere} does not answer") as fault:
        read(Reader(["s3://photos"], endpoint_url=nowhere), "s3://photos/a.jpg", UNKNOWN_VERSION)
    assert "a.jpg" not in str(fault.value), "all photos make one notice"


@pytest.mark.parametrize("uri", ["s3://photos", "s3://photos/", "s3://", "s3://photos/\udcff"])
def test_a_uri_without_an_object_makes_no_request(moto: Moto, uri: str) -> None:
    with pytest.raises((SourceError, ImageError, WorkerFault)):
        read(reader(moto), uri, UNKNOWN_VERSION)
    assert objects_asked(moto) == 0


def test_boto3_is_loaded_for_s3_only() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from qsit.sources.listing import Listing; from qsit.sources.reader import Reader;"
        "Reader(['/tmp', 's3://photos']); Listing(); print('boto3' in sys.modules or 'botocore' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"
