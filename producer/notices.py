"""Messages for people, on stderr."""

from rich.console import Console

from producer.formatting import in_one_line
from qsit.errors import DatabaseUnavailable


class NoticePrinter:
    """Prints messages in one line each. Remembers the last ones, so that each is shown once until it comes back."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._current: set[str] = set()
        self._outage = ""

    def say(self, line: str) -> None:
        """Print a line above the progress bar, if there is one. Escapes what a terminal would obey."""
        self.console.print(in_one_line(line), markup=False, emoji=False, highlight=False, soft_wrap=True)

    def show_new(self, lines: dict[str, str]) -> None:
        """Print the lines whose keys were not in the last call."""
        for key, line in lines.items():
            if key not in self._current:
                self.say(line)
        self._current = set(lines)

    def on_outage(self, error: DatabaseUnavailable | None) -> None:
        """Say once that the database is away. `error` is None when it is back."""
        outage = "" if error is None else str(error)
        if outage and outage != self._outage:
            self.say(f"{outage}; waiting until it answers")
        self._outage = outage
