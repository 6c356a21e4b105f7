"""Loading one photo: it is opened, decoded and cut, unless it needs nothing."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.claims import AlreadyScored, Claim, ClaimedItem, ExistingResults
from qsit.errors import ImageError
from qsit.rating import AS_STORED, UPRIGHT
from qsit.sources.listing import Listing
from qsit.sources.reader import Reader
from qsit.sources.source import parse_source
from qsit.states import UNKNOWN_VERSION, Reason
from tests.support.programs import make_photos
from worker.inference.tiles import Prepared
from worker.loader import PhotoLoader
from worker.scoring import PreparedPhoto


def cut(image: Image.Image) -> Prepared:
    return Prepared(np.asarray(image)[None], *image.size, 1)


def claim(procedure: str = UPRIGHT, *, rescore: bool = False) -> Claim:
    return Claim(1, 1, 1, procedure, rescore, "token", [])


@pytest.fixture
def item(tmp_path: Path) -> ClaimedItem:
    [photo] = parse_source(str(make_photos(tmp_path / "photos", 1))).walk(Listing())
    return ClaimedItem(1, photo.uri, photo.version, False)


def loader_for(item: ClaimedItem, **options: Callable[..., ExistingResults]) -> PhotoLoader:
    folder = Path(item.uri.removeprefix("file://")).parent
    return PhotoLoader(Reader([str(folder)], mounted=True), cut, 10_000, **options)


def test_a_photo_is_read_then_decoded_and_cut(item: ClaimedItem) -> None:
    events: list[str] = []

    photo = loader_for(item).load(item, claim(), lambda: events.append("decoding"))

    assert isinstance(photo, PreparedPhoto)
    assert (photo.prepared.width, photo.prepared.height) == (32, 24)
    assert (photo.version, photo.found) == (None, ExistingResults())
    assert events == ["decoding"]


def test_a_photo_that_is_gone_is_not_decoded(item: ClaimedItem) -> None:
    Path(item.uri.removeprefix("file://")).unlink()
    (Path(item.uri.removeprefix("file://")).parent / "other.jpg").touch()

    with pytest.raises(ImageError) as caught:
        loader_for(item).load(item, claim(), lambda: pytest.fail("nothing was read"))

    assert caught.value.reason is Reason.MISSING


@pytest.mark.parametrize(("procedure", "size"), [(UPRIGHT, (24, 32)), (AS_STORED, (32, 24))])
def test_the_procedure_of_the_claim_says_whether_exif_turns_a_photo(
    tmp_path: Path, procedure: str, size: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (32, 24), "grey").save(tmp_path / "turned.jpg", exif=exif)
    [listed] = parse_source(str(tmp_path)).walk(Listing())
    item = ClaimedItem(1, listed.uri, listed.version, False)

    photo = loader_for(item).load(item, claim(procedure), lambda: None)

    assert isinstance(photo, PreparedPhoto)
    assert (photo.prepared.width, photo.prepared.height) == size


def test_a_version_that_was_read_is_looked_up_and_a_scored_one_is_not_decoded(
    item: ClaimedItem, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []
    unknown = ClaimedItem(1, item.uri, UNKNOWN_VERSION, False)

    def find_results(uri: str, version: str, _: Claim) -> ExistingResults:
        asked.append((uri, version))
        return ExistingResults(0.5)

    loader = loader_for(item, find_results=find_results)
    opened = loader.reader.opened
    monkeypatch.setattr(loader.reader, "opened", lambda uri, version: opened(uri, item.version))  # as S3 opens it

    settled = loader.load(unknown, claim(), lambda: pytest.fail("it has its score"))
    again = loader.load(unknown, claim(rescore=True), lambda: None)

    assert settled == AlreadyScored(1, item.version)
    assert isinstance(again, PreparedPhoto)
    assert again.version == item.version
    assert asked == [(item.uri, item.version)]
