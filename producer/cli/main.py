"""The program qsit: what surrounds every command, whichever it is."""

import io
import os
import sys

from producer.interrupts import Interrupted, raise_on_signals


def main() -> None:
    """The program `qsit`."""
    raise_on_signals()
    try:
        status = run(sys.argv[1:])
    except Interrupted as interrupted:  # before a command was under way
        status = interrupted.exit_status
    sys.exit(status)


def run(arguments: list[str]) -> int:
    """Run a command; its exit status. Whatever the user can cause ends in one line."""
    # imported now that signals end in order: it takes a second
    import click

    from producer.cli.commands import cli
    from producer.exit_codes import COULD_NOT_RUN, OK, WRONG_USAGE
    from qsit.errors import QsitError, UsageError

    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names of files leave as the bytes they are
    try:
        status = cli.main(arguments, prog_name="qsit", standalone_mode=False)
        sys.stdout.flush()
        return status if isinstance(status, int) else OK
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except UsageError as error:
        click.echo(f"qsit: {error}", err=True)
        return WRONG_USAGE
    except QsitError as error:
        click.echo(f"qsit: {error}", err=True)
        return COULD_NOT_RUN
    except UnicodeEncodeError:  # of a database's client
        click.echo("qsit: an argument has bytes that are no text", err=True)
        return WRONG_USAGE
    except Interrupted as interrupted:
        return interrupted.exit_status
    except SystemExit as ended:  # how click ends on a closed pipe
        if not isinstance(ended.__context__, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return OK
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter would complain at its end
        if isinstance(error, BrokenPipeError):
            return OK
        click.echo(f"qsit: {error.filename or 'writing the output'}: {error.strerror}", err=True)
        return COULD_NOT_RUN


def _open_closed_streams() -> None:
    """Started without standard streams (`>&-`), write to nothing: files opened later must not take their places."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 -- for the life of the process
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
