"""What S3 and the network say when something is wrong, told apart by what is to be done about it."""

import re
from enum import Enum, auto
from typing import Any

from botocore import exceptions as boto
from botocore.exceptions import BotoCoreError, ClientError


class S3ErrorKind(Enum):
    """Whose trouble it is."""

    MISSING = auto()  # there is no such object
    CHANGED = auto()  # the object is no longer at the version asked for
    UNREADABLE = auto()  # this object cannot be had, whoever asks
    REFUSED = auto()  # S3 will not give it: this one object, or any
    FAILED = auto()  # S3 or the way to it failed: on this one object, or on any
    CREDENTIALS = auto()  # there are none, or they are no longer good
    OUT_OF_REACH = auto()  # the whole bucket: server, name, region


MISSING = ("NoSuchKey", "404", "NoSuchVersion")
CHANGED = ("PreconditionFailed", "412")
DENIED = ("AccessDenied", "AllAccessDisabled", "Forbidden", "403")
EXPIRED = ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired")
REFUSED = ("InvalidAccessKeyId", "InvalidClientTokenId", "InvalidToken", "SignatureDoesNotMatch", "NotSignedUp")
ELSEWHERE = (
    "PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed",
    "IllegalLocationConstraintException", "301",
)  # fmt: skip
BUSY = ("SlowDown", "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests", "503", "429")
NO_CREDENTIALS = (
    boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError, boto.TokenRetrievalError,
    boto.SSOError,
)  # fmt: skip


def classify_error(error: Exception, place: str, permission: str, endpoint_url: str | None) -> tuple[S3ErrorKind, str]:
    """
    Whose trouble an error of boto3 is, and a line that tells what to do.

    place: the s3:// URI that was asked for; permission: what asking for it needs.
    """
    server = f"S3 at {endpoint_url}" if endpoint_url else "S3"
    if isinstance(error, ClientError):
        return _answered(error, place, permission, server)
    if isinstance(error, boto.UnauthorizedSSOTokenError | boto.SSOTokenLoadError):
        return S3ErrorKind.CREDENTIALS, f"the session of your sign-on has ended; run: aws sso login ({_line(error)})"
    if isinstance(error, NO_CREDENTIALS):
        return S3ErrorKind.CREDENTIALS, (
            f"no credentials for {server}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, "
            f"or give the machine a role ({_line(error)})"
        )
    if isinstance(error, boto.ParamValidationError):
        return S3ErrorKind.UNREADABLE, f"{place} is no object of S3: {_line(error)}"
    if isinstance(error, boto.ConnectionError | boto.HTTPClientError | boto.IncompleteReadError):
        return S3ErrorKind.FAILED, f"{server} does not answer: {_line(error)}"
    if isinstance(error, boto.FlexibleChecksumError):
        return S3ErrorKind.FAILED, f"{place} arrives with another checksum than it has: {_line(error)}"
    return S3ErrorKind.OUT_OF_REACH, f"{server} cannot be used: {_line(error)}"


def _answered(error: ClientError, place: str, permission: str, server: str) -> tuple[S3ErrorKind, str]:
    said: dict[str, Any] = error.response.get("Error", {})
    code = str(said.get("Code", ""))
    words = " ".join(f"{code}: {said['Message']}".split()) if said.get("Message") else code
    if code == "NoSuchBucket":
        bucket = "/".join(place.split("/")[:3])
        return S3ErrorKind.OUT_OF_REACH, f"{server} has no {bucket}; mind its name, QSIT_S3_ENDPOINT_URL, AWS_PROFILE"
    if code in MISSING:
        return S3ErrorKind.MISSING, "the object is gone"
    if code in CHANGED:
        return S3ErrorKind.CHANGED, "the object changed after it was listed; run the same command again"
    if code == "InvalidObjectState":
        return S3ErrorKind.UNREADABLE, f"the object is archived; restore it first ({words})"
    if code in ("KeyTooLongError", "InvalidURI"):
        return S3ErrorKind.UNREADABLE, f"it can be no object of S3 ({words})"
    if code in DENIED:
        return S3ErrorKind.REFUSED, f"access to {place} is denied; it needs the permission {permission} ({words})"
    if code in EXPIRED:
        return S3ErrorKind.CREDENTIALS, (
            f"the credentials for {server} have expired; renew them, and restart what has them in its environment "
            f"({words})"
        )
    if code in REFUSED:
        return (
            S3ErrorKind.CREDENTIALS,
            f"{server} refuses the credentials; mind AWS_ACCESS_KEY_ID, AWS_PROFILE ({words})",
        )
    if code in ELSEWHERE:
        return S3ErrorKind.OUT_OF_REACH, f"{place} is in another region; set AWS_REGION ({words})"
    if code in BUSY:
        return S3ErrorKind.OUT_OF_REACH, f"{server} asks to slow down ({words})"
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
    if 400 <= status < 500:
        return S3ErrorKind.REFUSED, f"{server} does not give {place} ({words})"
    return S3ErrorKind.FAILED, f"{server} failed on {place} ({words})"


def _line(error: BotoCoreError | Exception) -> str:
    """In one line, and of a URL its server alone: many photos that fail for one reason make one notice."""
    words = " ".join(str(error).split()) or type(error).__name__
    return re.sub(r"(https?://[^/\s\"']+)/[^\s\"']*", r"\1", words)
