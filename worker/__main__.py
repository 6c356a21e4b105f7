"""`python -m worker`: the same as `celery -A worker.app worker`."""

import sys

from worker.app import app


def main() -> None:
    """Run a worker until it is told to end; its exit status becomes the program's."""
    worker = app.Worker(loglevel="INFO", without_gossip=True, without_mingle=True)
    worker.start()
    sys.exit(worker.exitcode)


if __name__ == "__main__":
    main()
