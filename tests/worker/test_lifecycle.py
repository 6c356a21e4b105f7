"""How a worker starts: the devices of its processes, and what it says when it cannot start."""

import logging
import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from migrations.upgrade import upgrade
from qsit.errors import CheckpointError, UsageError
from worker import devices, lifecycle, process
from worker.app import app


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, broker_url: str, tmp_path: object) -> Iterator[None]:
    """Settings with which a worker can start."""
    url = f"sqlite:///{tmp_path}/qsit.db"
    upgrade(url)
    monkeypatch.setenv("QSIT_DATABASE_URL", url)
    monkeypatch.setenv("QSIT_MODEL", "demo")
    monkeypatch.setattr(app.conf, "broker_url", broker_url)
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():  # what the parent hands down
        del os.environ[name]


def configure() -> SimpleNamespace:
    conf = SimpleNamespace()
    lifecycle.configure_worker(conf)
    return conf


def test_every_gpu_gets_a_process_and_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_count_gpus", lambda: 3)
    assert configure().worker_concurrency == 3

    monkeypatch.setattr(devices, "_count_gpus", lambda: 2)  # one has failed since
    started: list[str] = []
    monkeypatch.setattr(lifecycle, "current_process", lambda: SimpleNamespace(index=2))
    monkeypatch.setattr(lifecycle, "start_thread", lambda *_: None)
    monkeypatch.setattr(process, "start_process", lambda app, settings, device: started.append(device))
    monkeypatch.setattr(process, "current_process", lambda: SimpleNamespace(stopping=None))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    lifecycle.begin_process()

    assert started == ["cuda:2"]


def test_cuda_alone_is_one_gpu_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(devices, "_count_gpus", lambda: 4)
    monkeypatch.setenv("QSIT_DEVICE", "cuda")

    assert configure().worker_concurrency == 1

    [line] = [record.getMessage() for record in caplog.records if "cuda" in record.getMessage()]
    assert "cuda:0" in line


@pytest.mark.parametrize("error", [UsageError("no such device"), CheckpointError("no such model")])
def test_a_worker_that_cannot_start_says_why_in_one_line(
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: str) -> list[str]:
        raise error

    monkeypatch.setattr(lifecycle, "find_devices", fail)

    with pytest.raises(SystemExit) as ended:
        configure()

    assert ended.value.code == lifecycle.COULD_NOT_RUN
    assert capsys.readouterr().err == f"qsit worker: {error}\n"
    assert not [record for record in caplog.records if record.exc_info]


def test_a_bug_at_the_start_is_logged_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lifecycle, "find_devices", lambda _: 1 / 0)

    with pytest.raises(SystemExit) as ended:
        configure()

    assert ended.value.code == lifecycle.COULD_NOT_RUN
    assert "qsit worker:" not in capsys.readouterr().err
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
