"""What a user names, parsed once: a local folder or file, or a place in S3."""

from qsit.sources.local_source import LocalSource
from qsit.sources.s3_source import S3Source
from qsit.sources.uris import S3_SCHEME, local_path, split_s3_uri, uri_of

Source = LocalSource | S3Source


def parse_source(text: str) -> Source:
    """Parse a path, a file:/// URI or an s3:// URI. Raises SourceError when it is none of these."""
    return S3Source(*split_s3_uri(text)) if text.startswith(S3_SCHEME) else LocalSource(local_path(text))


def parse_below(text: str, folder: Source) -> Source:
    """Parse a path or URI. A relative path is below the folder. Raises SourceError when it is neither."""
    if text.startswith("/") or "://" in text:
        return parse_source(text)
    return parse_source(f"{folder.name.rstrip('/')}/{text}")


def parse_uri_pattern(text: str) -> str:
    """
    Parse what `--under` takes into a pattern for URIs: a photo or folder, with all below it. A `*` at the end stands
    for every URI that begins with the text before it. The pattern is the same whether or not the folder exists here.

    Raises SourceError when the text is neither a path nor a file:/// or s3:// URI.
    """
    if text.startswith(S3_SCHEME):
        return parse_source(text).name
    name = text.removesuffix("*")
    uri = uri_of(local_path(name))
    if (not name or name.endswith("/")) and not uri.endswith("/"):
        uri += "/"
    return uri if name == text else f"{uri}*"
