"""Opens, decodes and cuts one photo."""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from models.claims import AlreadyScored, Claim, ClaimedItem, ExistingResults
from qsit.rating import AS_STORED
from qsit.sources.reader import Reader
from qsit.states import UNKNOWN_VERSION
from worker.imaging.decode import decode
from worker.inference.tiles import Prepared
from worker.scoring import PreparedPhoto


@dataclass(frozen=True)
class PhotoLoader:
    """
    Loads photos for a pipeline. Serves many threads at once.

    find_results: returns what the ledger has of a URI at a version. It is asked where the version was unknown.
    """

    reader: Reader
    prepare: Callable[[Image.Image], Prepared]
    max_pixels: int
    find_results: Callable[[str, str, Claim], ExistingResults] = lambda *_: ExistingResults()

    def load(self, item: ClaimedItem, claim: Claim, on_decoding: Callable[[], None]) -> PreparedPhoto | AlreadyScored:
        """
        Open, decode and cut the photo of an item, unless the version that is read needs nothing.

        Calls on_decoding when it has read the photo. Raises ImageError when the photo cannot be scored, and WorkerFault
        when this worker cannot read it.
        """
        with self.reader.opened(item.uri, item.version) as photo:
            version_read = photo.version if item.version == UNKNOWN_VERSION else None
            found = item.found
            if version_read is not None and not claim.rescore:
                found = self.find_results(item.uri, version_read, claim)
                if claim.is_settled(found):
                    return AlreadyScored(item.image_id, version_read)
            data = photo.read()
        on_decoding()
        image = decode(data, max_pixels=self.max_pixels, as_stored=claim.procedure == AS_STORED)
        return PreparedPhoto(self.prepare(image), version_read, found)
