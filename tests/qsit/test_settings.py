"""Settings, read from the environment alone."""

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from qsit import settings
from qsit.errors import UsageError

HOME = Path("~").expanduser()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("QSIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


def test_nothing_needs_to_be_set() -> None:
    loaded = settings.load()

    assert loaded.database_url.startswith("sqlite:///")
    assert loaded.database_url.endswith("qsit.db")
    assert loaded.broker_url is None
    assert loaded.model == "zhangzicheng/q-sit-mini"
    assert loaded.revision is None
    assert loaded.device == "auto"
    assert loaded.dtype is None
    assert loaded.batch_tokens is None
    assert 1 <= loaded.loaders <= 16
    assert loaded.roots == ()
    assert loaded.lease_s == 180
    assert loaded.turn_s == 60
    assert loaded.max_pixels == 200_000_000
    assert loaded.decode_s == 60
    assert loaded.s3_endpoint_url is None
    assert loaded.private_run is None
    assert loaded.private_job is None


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("QSIT_DATABASE_URL", "postgresql://me@db/photos", "database_url", "postgresql://me@db/photos"),
        ("QSIT_BROKER_URL", "redis://broker:6379/3", "broker_url", "redis://broker:6379/3"),
        ("QSIT_BROKER_URL", "sentinel://a:1;sentinel://b:2", "broker_url", "sentinel://a:1;sentinel://b:2"),
        ("QSIT_MODEL", "demo", "model", "demo"),
        ("QSIT_REVISION", "abc123", "revision", "abc123"),
        ("QSIT_DEVICE", "cpu", "device", "cpu"),
        ("QSIT_DEVICE", "cuda", "device", "cuda"),
        ("QSIT_DEVICE", "cuda:0,cuda:11", "device", "cuda:0,cuda:11"),
        ("QSIT_DTYPE", "float32", "dtype", "float32"),
        ("QSIT_DTYPE", "bfloat16", "dtype", "bfloat16"),
        ("QSIT_DTYPE", "float16", "dtype", "float16"),
        ("QSIT_BATCH_TOKENS", "1", "batch_tokens", 1),
        ("QSIT_LOADERS", "256", "loaders", 256),
        ("QSIT_LEASE_S", "1.5", "lease_s", 1.5),
        ("QSIT_LEASE_S", "1.5", "turn_s", 0.5),
        ("QSIT_MAX_PIXELS", "1000", "max_pixels", 1000),
        ("QSIT_DECODE_S", "2.5", "decode_s", 2.5),
        ("QSIT_S3_ENDPOINT_URL", "https://minio.example:9000", "s3_endpoint_url", "https://minio.example:9000"),
        ("QSIT_PRIVATE_RUN", "run", "private_run", "run"),
        ("QSIT_PRIVATE_JOB", "7", "private_job", 7),
    ],
)
def test_every_setting_has_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, field: str, value: object
) -> None:
    monkeypatch.setenv(variable, text)

    assert getattr(settings.load(), field) == value


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in settings.Settings.model_fields:
        monkeypatch.setenv(f"QSIT_{name.upper()}", "")

    loaded = settings.load()

    assert loaded.model == "zhangzicheng/q-sit-mini"
    assert loaded.roots == ()
    assert loaded.lease_s == 180


@pytest.mark.parametrize(
    ("text", "roots"),
    [
        ("/photos", ["/photos"]),
        (f"/photos{os.pathsep}/more photos", ["/photos", "/more photos"]),
        (f"/photos{os.pathsep}{os.pathsep}/b{os.pathsep}", ["/photos", "/b"]),
        ("~/pictures", [HOME / "pictures"]),
        ("pictures", [Path.cwd() / "pictures"]),
        ("/photos/../other", ["/other"]),
        ('["/photos", "/a:b"]', ["/photos", "/a:b"]),
        ("s3://bucket", ["s3://bucket"]),
        (f"s3://bucket/night/{os.pathsep}/photos{os.pathsep}s3://b-2", ["s3://bucket/night/", "/photos", "s3://b-2"]),
        ("[]", []),
    ],
)
def test_roots_are_separated_as_in_path_or_a_json_list(
    monkeypatch: pytest.MonkeyPatch, text: str, roots: list[str | Path]
) -> None:
    monkeypatch.setenv("QSIT_ROOTS", text)

    assert settings.load().roots == tuple(map(str, roots))


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("QSIT_BROKER_URL", "redis://:secret@broker:port/0"),
        ("QSIT_BROKER_URL", "amqp://user:secret@broker"),
        ("QSIT_DEVICE", "gpu"),
        ("QSIT_DEVICE", "cuda:"),
        ("QSIT_DEVICE", "cpu,cuda:0"),
        ("QSIT_DTYPE", "int8"),
        ("QSIT_BATCH_TOKENS", "0"),
        ("QSIT_BATCH_TOKENS", "many"),
        ("QSIT_LOADERS", "0"),
        ("QSIT_LOADERS", "257"),
        ("QSIT_LEASE_S", "0.5"),
        ("QSIT_LEASE_S", "nan"),
        ("QSIT_LEASE_S", "soon"),
        ("QSIT_MAX_PIXELS", "-1"),
        ("QSIT_DECODE_S", "0"),
        ("QSIT_S3_ENDPOINT_URL", "minio:9000"),
        ("QSIT_S3_ENDPOINT_URL", "http://user:secret@minio:9000"),
        ("QSIT_ROOTS", "s3://"),
        ("QSIT_ROOTS", "http://example.org/photos"),
        ("QSIT_PRIVATE_JOB", "last"),
        ("QSIT_ROOTS", '["/photos"'),
        ("QSIT_ROOTS", "[1]"),
        ("QSIT_ROOTS", "~no-such-user-here/photos"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str
) -> None:
    monkeypatch.setenv(variable, text)

    with pytest.raises(UsageError) as refused:
        settings.load()

    assert str(refused.value).startswith(variable)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_settings_do_not_change() -> None:
    loaded = settings.load()

    with pytest.raises(ValidationError, match="frozen"):
        loaded.model = "demo"


def test_a_revision_belongs_to_the_configured_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSIT_MODEL", "demo")
    monkeypatch.setenv("QSIT_REVISION", "abc123")
    loaded = settings.load()

    assert loaded.revision_for(None) == loaded.revision_for("demo") == "abc123"
    assert loaded.revision_for("owner/other") is None


def test_an_unknown_user_in_a_root_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSIT_ROOTS", "~no-such-user-here/photos")

    with pytest.raises(UsageError, match=r"no such user: ~no-such-user-here$"):
        settings.load()
