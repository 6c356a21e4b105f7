"""A process of the pool whose parent was killed: nobody else would end it."""

import os
import signal
import threading
import time

LOOK_S = 1.0
GRACE_S = 10.0
"""How long an orphan may take to record the batch in hand."""


def end_with_parent() -> None:
    """
    From now on, this process is told to end when its parent has ended, as the parent would tell it; and it ends without
    more ado when it does not, being stuck in a photo or a batch.
    """
    threading.Thread(target=_watch, args=(os.getppid(),), name="orphan", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os.kill(os.getpid(), signal.SIGUSR2)
    time.sleep(GRACE_S)
    os._exit(1)
