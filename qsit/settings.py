"""All settings, read once from the environment."""

import json
import os
import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

import platformdirs
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from qsit.checkpoints import DEFAULT
from qsit.errors import SourceError, UsageError
from qsit.sources.source import parse_source

BROKERS = ("redis", "rediss", "sentinel", "redis+socket")


def load() -> "Settings":
    """Return the settings of this process. Raises UsageError when a variable has a bad value; names the variable."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        name = f"QSIT_{first['loc'][0]}".upper()
        value = "" if "://" in str(first["input"]) else f"={first['input']}"  # a URL may contain a password
        raise UsageError(f"{name}{value}: {first['msg'].removeprefix('Value error, ')}") from error


def default_database_url() -> str:
    """Return `QSIT_DATABASE_URL`, or SQLite in the user's data folder."""
    path = platformdirs.user_data_path("qsit") / "qsit.db"
    return os.environ.get("QSIT_DATABASE_URL") or f"sqlite:///{path}"


def _parse_root(root: str) -> str:
    expanded = os.path.expanduser(root)
    if expanded.startswith("~"):
        raise ValueError(f"no such user: {expanded.split('/')[0]}")
    try:
        return parse_source(expanded).name
    except SourceError as error:
        raise ValueError(str(error)) from error


class Settings(BaseSettings):
    """The values of the `QSIT_*` variables."""

    model_config = SettingsConfigDict(
        env_prefix="QSIT_", frozen=True, env_ignore_empty=True, use_attribute_docstrings=True
    )

    database_url: str = Field(default_factory=default_database_url)
    """`sqlite:////path/qsit.db` or `postgresql://user:password@host/name`. When unset, SQLite in the user's data
    folder."""
    broker_url: str | None = None
    """The Redis or Valkey that holds the queue. When unset, `submit` and `worker` use `redis://localhost:6379/0`, and
    `score` starts a private queue."""
    model: str = DEFAULT
    """The default of `--model`: a Hub id, a checkpoint folder or `demo`."""
    revision: str | None = None
    """The default of `--revision`: a commit, tag or branch. When unset, the newest; it applies to `QSIT_MODEL` only."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?(,cuda:\d+)*)$")
    """The default of `--device`: `auto` (every GPU, or the CPU if there is none), `cpu`, `cuda` (the first GPU), or a
    list such as `cuda:0,cuda:1`."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """The precision of the model: `float32`, `bfloat16` or `float16`. When unset, `float16` on CUDA and `float32` on a
    CPU."""
    batch_tokens: int | None = Field(default=None, gt=0)
    """Image tokens in one batch; halved when memory runs out. When unset, 65536 on CUDA, fewer on a GPU with little
    memory, and 8192 on a CPU."""
    loaders: int = Field(default_factory=lambda: min(os.cpu_count() or 1, 16), gt=0, le=256)
    """Threads per worker process that read photos and cut them into tiles. When unset, the number of cores, at most
    16."""
    roots: Annotated[tuple[str, ...], NoDecode] = ()
    """Folders and `s3://` places that a worker may read, separated as in `PATH`, or a JSON list. When unset, and
    without `--root`, a worker opens no photos."""
    lease_s: float = Field(default=180.0, ge=1.0, allow_inf_nan=False)
    """Seconds after which the chunk of a silent worker is sent again. It must be the same on every machine."""
    max_pixels: int = Field(default=200_000_000, gt=0)
    """The most pixels of a photo that is opened."""
    decode_s: float = Field(default=60.0, gt=0, allow_inf_nan=False)
    """Seconds that decoding one photo may take."""
    s3_endpoint_url: str | None = None
    """The URL of an S3-compatible server. When unset, AWS or what boto3's own settings say."""

    # `qsit score` sets these for its private worker
    private_run: str | None = None
    private_job: int | None = None

    @field_validator("roots", mode="before")
    @classmethod
    def _split_roots(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if value.startswith("["):  # a JSON list, for folders with the separator in their names
            return tuple(json.loads(value))
        return tuple(filter(None, re.split(f"{os.pathsep}(?!//)", value)))  # s3://bucket is not split

    @field_validator("roots")
    @classmethod
    def _parse_roots(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_parse_root, value))

    @field_validator("broker_url")
    @classmethod
    def _check_broker_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = [urlsplit(one) for one in value.split(";")]  # there may be several sentinels
            is_known = all(part.scheme in BROKERS and part.port != 0 for part in parts)
        except ValueError:  # the port is not a number
            is_known = False
        if not is_known:
            raise ValueError("write redis://host:6379/0, rediss://... or redis+socket:///path?virtual_host=0")
        return value

    @field_validator("s3_endpoint_url")
    @classmethod
    def _check_endpoint_url(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^/@]+(/.*)?", value):
            raise ValueError("write http://host:port or https://host; set credentials in AWS_ACCESS_KEY_ID and so on")
        return value

    @property
    def turn_s(self) -> float:
        """Seconds that a task works before it releases the rest of its chunk."""
        return min(60.0, self.lease_s / 3)

    def revision_for(self, model: str | None) -> str | None:
        """Return the revision of a model, or of the configured one if None. Only the configured model has one."""
        return self.revision if model in (None, self.model) else None
