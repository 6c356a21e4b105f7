"""What keeps a worker from working: logged once, and shown by `qsit status`."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from sqlalchemy import Engine

from models.ledger import workers
from models.retry import retry_while_unavailable
from qsit.errors import DatabaseUnavailable, QsitError

log = logging.getLogger("qsit")

T = TypeVar("T")


class Notices:
    """Reports what fails in a worker process, and waits while the database is unavailable. Serves several threads."""

    def __init__(self, engine: Engine, owner: str, stopping: threading.Event) -> None:
        self.standing: str | None = None  # what `qsit status` shows while nothing fails
        self.progress_at = time.monotonic()  # when a call of the ledger last returned or failed
        self._engine, self._owner, self._stopping = engine, owner, stopping
        self._errors: dict[str, str] = {}  # the last error of each activity that fails
        self._notices: dict[str, str] = {}  # by subject
        self._shown: str | None = None
        self._lock = threading.Lock()

    def retry(self, call: Callable[[], T]) -> T:
        """
        Return what a call of the ledger returns. While the database is unavailable, log that once and call again.

        Raises DatabaseUnavailable when the worker is stopping.
        """
        result = retry_while_unavailable(call, self._note_outage)
        self.progress_at = time.monotonic()
        return result

    def show(self, notice: str | None, about: str = "photos") -> None:
        """Log a notice once and show it in `qsit status`, or remove the one about this subject."""
        with self._lock:
            if notice is None:
                self._notices.pop(about, None)
            elif self._notices.get(about) != notice:
                log.error("%s", notice)
                self._notices[about] = notice
            shown = "; ".join(self._notices.values()) or self.standing
            if shown != self._shown:
                self.retry(lambda: workers.set_notice(self._engine, self._owner, notice=shown))
                self._shown = shown

    @contextmanager
    def logging_errors(self, activity: str) -> Iterator[None]:
        """Log what fails in a thread that must go on; the caller tries again in its next round."""
        try:
            yield
            self._errors.pop(activity, None)
        except QsitError as error:
            self._log_once(activity, error)
        except Exception:
            log.exception("unexpected error; please report it")

    def _note_outage(self, error: DatabaseUnavailable | None) -> None:
        self.progress_at = time.monotonic()
        if error is None:
            self._errors.pop("retry", None)
        elif self._stopping.is_set():
            raise error
        else:
            self._log_once("retry", error)

    def _log_once(self, activity: str, error: QsitError) -> None:
        """Log an error, unless another activity has failed with the same one."""
        if str(error) not in tuple(self._errors.values()):  # a copy, because other threads change them
            log.error("%s; trying again until it works", error)
        self._errors[activity] = str(error)
