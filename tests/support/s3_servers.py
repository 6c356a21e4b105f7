"""Real S3 servers on loopback: rclone over a folder, and moto with the faults that a test injects."""

import contextlib
import logging
import re
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import boto3
from botocore.config import Config
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from tests.support.programs import BIN

KEYS = {"AWS_ACCESS_KEY_ID": "AKIDOFTHETESTS", "AWS_SECRET_ACCESS_KEY": "SECRETOFTHETESTS"}
NO_OTHERS = {
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    "AWS_DEFAULT_REGION": "us-east-1",
}
"""Keeps out credentials and settings of the machine."""


def client(url: str) -> Any:
    """Return boto3's client for a test server."""
    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}),
    )


@contextlib.contextmanager
def rclone(folder: Path, log: Path, *, keys: dict[str, str] = KEYS) -> Iterator[str]:
    """Yield the URL of `rclone serve s3` over a folder whose folders are buckets. `log` has every request."""
    command = [
        str(BIN / "rclone"),
        "serve",
        "s3",
        "--addr",
        "127.0.0.1:0",
        "--force-path-style",
        "--auth-key",
        ",".join(keys.values()),
        "--config",
        "/nonexistent",
        "-vv",
        str(folder),
    ]
    with log.open("ab") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        while not (urls := re.findall(r"Starting s3 server on \[(http://[\d.:]+)/\]", log.read_text())):
            assert server.poll() is None, log.read_text()
            time.sleep(0.02)
        yield urls[-1]
    finally:
        server.kill()
        server.wait()


def objects_read(log: Path) -> int:
    """Return how many objects rclone was asked for."""
    return log.read_text().count("GET OBJECT")


Environ = dict[str, Any]
Answer = Callable[[Environ, Callable[..., Any], Callable[[], Iterable[bytes]]], Iterable[bytes]]
"""Answers a request. Takes the WSGI environment, start_response, and the answer of the real server."""


class Moto:
    """
    The S3 server of moto. A test may replace its answers to GETs of objects and listings.

    spoil: one answer for each of the next GETs.
    always: the answer to all GETs after those.
    asked: method and path of each request.
    """

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.spoil: list[Answer] = []
        self.always: Answer | None = None
        self.asked: list[tuple[str, str]] = []
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self.client = client(self.url)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def reset(self) -> None:
        """Delete all objects and faults."""
        self.spoil, self.always, self.asked = [], None, []
        for bucket in self.client.list_buckets()["Buckets"]:
            versions = self.client.list_object_versions(Bucket=bucket["Name"])
            for entry in (*versions.get("Versions", ()), *versions.get("DeleteMarkers", ())):
                self.client.delete_object(Bucket=bucket["Name"], Key=entry["Key"], VersionId=entry["VersionId"])
            self.client.delete_bucket(Bucket=bucket["Name"])
        self.asked = []

    def _answer(self, environ: Environ, start: Callable[..., Any]) -> Iterable[bytes]:
        def answer() -> Iterable[bytes]:
            answered: Iterable[bytes] = self._app(environ, start)
            return answered

        query = parse_qs(environ["QUERY_STRING"], keep_blank_values=True)
        self.asked.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        is_get = environ["REQUEST_METHOD"] == "GET" and not {"versions", "versioning"} & query.keys()
        if is_get and self.spoil:
            return self.spoil.pop(0)(environ, start, answer)
        if is_get and self.always is not None:
            return self.always(environ, start, answer)
        return answer()


def really(environ: Environ, start: object, answer: Callable[[], Iterable[bytes]]) -> Iterable[bytes]:
    """Answer as the server does."""
    return answer()


def refused(status: int, code: str, message: str = "from the test") -> Answer:
    """Answer with an error of S3."""
    words = {301: "Moved", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 500: "Error", 503: "Busy"}

    def answer(environ: Environ, start: Callable[..., Any], really: object) -> Iterable[bytes]:
        body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        start(f"{status} {words[status]}", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]

    return answer


def reset(environ: Environ, start: object, really: object) -> Iterable[bytes]:
    """Close the connection instead of answering."""
    connection: socket.socket = environ["werkzeug.socket"]
    connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError


def cut(environ: Environ, start: object, really: Callable[[], Iterable[bytes]]) -> Iterable[bytes]:
    """Close the connection after half of the body."""
    body = b"".join(really())
    yield body[: len(body) // 2]
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)


def silent(seconds: float) -> Answer:
    """Answer after so many seconds."""

    def answer(environ: Environ, start: object, really: Callable[[], Iterable[bytes]]) -> Iterable[bytes]:
        time.sleep(seconds)
        return really()

    return answer


def stalled(seconds: float) -> Answer:
    """Pause for so many seconds after half of the body."""

    def answer(environ: Environ, start: object, really: Callable[[], Iterable[bytes]]) -> Iterable[bytes]:
        body = b"".join(really())
        yield body[: len(body) // 2]
        time.sleep(seconds)
        yield body[len(body) // 2 :]

    return answer
