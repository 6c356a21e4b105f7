"""Signals that end a command in order."""

import signal


class Interrupted(BaseException):
    """Raised in the main thread by SIGINT, SIGTERM and SIGHUP. Not a KeyboardInterrupt, which click would catch."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.exit_status = 128 + signum


def raise_on_signals() -> None:
    """Make the three signals raise Interrupted. A signal that the caller ignores, as nohup does, stays ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise)


def _raise(signum: int, _: object) -> None:
    raise Interrupted(signum)
