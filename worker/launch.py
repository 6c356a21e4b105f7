"""How a worker is started, and with which environment."""

import sys

COMMAND = [sys.executable, "-m", "worker"]
"""Runs a worker; wants SAFE_PATH in its environment."""


TRY_AGAIN = 75
"""The exit status of the worker of a `qsit score` that did not find its database or Redis: start it again."""


SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""So that a folder called worker or models where the user stands is not taken for ours, by no process of a worker."""
