"""Ends a process of the pool whose parent was killed. Nothing else would end it."""

import os
import signal
import threading
import time

CHECK_S = 1.0
GRACE_S = 10.0
"""How long an orphan may take to record the batch in hand."""


def end_with_parent() -> None:
    """
    Watch the parent from now on. When it has ended, send this process the signal that the parent would send, and end
    the process after GRACE_S if it is still busy with a photo or a batch.
    """
    threading.Thread(target=_watch, args=(os.getppid(),), name="parent watch", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(CHECK_S)
    os.kill(os.getpid(), signal.SIGUSR2)
    time.sleep(GRACE_S)
    os._exit(1)
