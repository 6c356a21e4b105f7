"""Errors of S3, of boto3 and of the network, classified by what to do about them."""

import re
from enum import Enum, auto
from typing import Any

from botocore import exceptions as boto
from botocore.exceptions import ClientError

from qsit.errors import one_line


class S3ErrorKind(Enum):
    """What an error is about."""

    MISSING = auto()  # the object does not exist
    CHANGED = auto()  # the object no longer has the version asked for
    UNREADABLE = auto()  # nobody can read this object
    REFUSED = auto()  # S3 refuses the object, or every object
    FAILED = auto()  # S3 or the network failed on the object, or on every object
    CREDENTIALS = auto()  # credentials are missing or no longer valid
    OUT_OF_REACH = auto()  # the whole bucket: its server, name or region is wrong


MISSING = ("NoSuchKey", "404", "NoSuchVersion")
CHANGED = ("PreconditionFailed", "412")
DENIED = ("AccessDenied", "AllAccessDisabled", "Forbidden", "403")
EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired")
BAD_CREDENTIALS = ("InvalidAccessKeyId", "InvalidClientTokenId", "InvalidToken", "SignatureDoesNotMatch", "NotSignedUp")
OTHER_REGION = (
    "PermanentRedirect",
    "TemporaryRedirect",
    "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException",
    "301",
)
BUSY = ("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "503", "429")
NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.SSOError,
)


def classify_error(error: Exception, uri: str, permission: str, endpoint_url: str | None) -> tuple[S3ErrorKind, str]:
    """
    Return the kind of an error, and one line that says what to do.

    uri: what was requested; permission: what the request needs.
    """
    server = f"S3 at {endpoint_url}" if endpoint_url else "S3"
    if isinstance(error, ClientError):
        return _classify_response(error, uri, permission, server)
    reason = _shorten_urls(one_line(error))
    if isinstance(error, boto.UnauthorizedSSOTokenError | boto.SSOTokenLoadError):
        return S3ErrorKind.CREDENTIALS, f"your single sign-on session has ended; run: aws sso login ({reason})"
    if isinstance(error, NO_CREDENTIALS):
        return S3ErrorKind.CREDENTIALS, (
            f"no credentials for {server}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, "
            f"or give the machine a role ({reason})"
        )
    if isinstance(error, boto.ParamValidationError):
        return S3ErrorKind.UNREADABLE, f"{uri} is not a valid object name ({reason})"
    if isinstance(error, boto.ConnectionError | boto.HTTPClientError | boto.IncompleteReadError):
        return S3ErrorKind.FAILED, f"{server} does not answer: {reason}"
    if isinstance(error, boto.FlexibleChecksumError):
        return S3ErrorKind.FAILED, f"{uri} arrived with a wrong checksum: {reason}"
    return S3ErrorKind.OUT_OF_REACH, f"{server} cannot be used: {reason}"


def _classify_response(error: ClientError, uri: str, permission: str, server: str) -> tuple[S3ErrorKind, str]:
    response: dict[str, Any] = error.response.get("Error", {})
    code = str(response.get("Code", ""))
    reason = " ".join(f"{code}: {response['Message']}".split()) if response.get("Message") else code
    if code == "NoSuchBucket":
        bucket = "/".join(uri.split("/")[:3])
        return S3ErrorKind.OUT_OF_REACH, f"{server} has no {bucket}; check the name, QSIT_S3_ENDPOINT_URL, AWS_PROFILE"
    if code in MISSING:
        return S3ErrorKind.MISSING, "the object is gone"
    if code in CHANGED:
        return S3ErrorKind.CHANGED, "the object changed after it was listed; run the same command again"
    if code == "InvalidObjectState":
        return S3ErrorKind.UNREADABLE, f"the object is archived; restore it first ({reason})"
    if code in ("KeyTooLongError", "InvalidURI"):
        return S3ErrorKind.UNREADABLE, f"the key is not valid ({reason})"
    if code in DENIED:
        return S3ErrorKind.REFUSED, f"access to {uri} is denied; it needs the permission {permission} ({reason})"
    if code in EXPIRED:
        return S3ErrorKind.CREDENTIALS, (
            f"the credentials for {server} have expired; renew them, and restart programs that have them in their "
            f"environment ({reason})"
        )
    if code in BAD_CREDENTIALS:
        return S3ErrorKind.CREDENTIALS, (
            f"{server} refuses the credentials; check AWS_ACCESS_KEY_ID and AWS_PROFILE ({reason})"
        )
    if code in OTHER_REGION:
        return S3ErrorKind.OUT_OF_REACH, f"{uri} is in another region; set AWS_REGION ({reason})"
    if code in BUSY:
        return S3ErrorKind.OUT_OF_REACH, f"{server} asks to slow down ({reason})"
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
    if 400 <= status < 500:
        return S3ErrorKind.REFUSED, f"{server} refuses {uri} ({reason})"
    return S3ErrorKind.FAILED, f"{server} failed on {uri} ({reason})"


def _shorten_urls(text: str) -> str:
    """Keep only the server of each URL, so that the same error of many photos makes one notice."""
    return re.sub(r"(https?://[^/\s\"']+)/[^\s\"']*", r"\1", text)
