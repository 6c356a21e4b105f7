"""`python -m worker`: the same as `celery -A worker.app worker`."""

import sys

from worker.app import app


def main() -> None:
    """Run a worker until it is told to end. Its exit status becomes the program's."""
    sys.exit(app.start(["worker", "--loglevel=INFO", "--without-gossip", "--without-mingle"]))


if __name__ == "__main__":
    main()
