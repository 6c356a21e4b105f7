"""The program `qsit`: signals, errors and standard streams of every command."""

import io
import os
import sys

from producer.exit_codes import Interrupted, raise_on_signals


def main() -> None:
    """Run `qsit` and exit."""
    raise_on_signals()
    try:
        status = run(sys.argv[1:])
    except Interrupted as interrupted:  # while modules were imported
        status = interrupted.exit_status
    sys.exit(status)


def run(arguments: list[str]) -> int:
    """Run a command and return its exit status. Every error that a user can cause ends in one line."""
    # imported after raise_on_signals: it takes a second, in which Ctrl-C must not end in a traceback
    import click

    from producer.cli.commands import cli
    from producer.exit_codes import ExitCode
    from producer.formatting import in_one_line
    from qsit.errors import QsitError, UsageError

    _open_closed_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # file names leave as the bytes that they are
    try:
        if "_QSIT_COMPLETE" in os.environ:
            cli.main(prog_name="qsit")  # completes a word for a shell, and exits
        with cli.make_context("qsit", arguments) as context:  # cli.main would end with 1 on a closed pipe
            status = cli.invoke(context)
        sys.stdout.flush()
        return status if isinstance(status, int) else ExitCode.OK
    except click.exceptions.Exit as ended:  # of --help and --version
        return ended.exit_code
    except click.ClickException as error:
        error.show(text := io.StringIO())  # which may name an argument, and so a file
        click.echo("\n".join(map(in_one_line, text.getvalue().split("\n"))), err=True, nl=False)
        return error.exit_code
    except QsitError as error:
        click.echo(f"qsit: {in_one_line(str(error))}", err=True)
        return ExitCode.WRONG_USAGE if isinstance(error, UsageError) else ExitCode.COULD_NOT_RUN
    except UnicodeEncodeError:  # raised by the database's client
        click.echo("qsit: an argument contains invalid UTF-8", err=True)
        return ExitCode.WRONG_USAGE
    except Interrupted as interrupted:
        return interrupted.exit_status
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter would complain when it flushes stdout
        if isinstance(error, BrokenPipeError):
            return ExitCode.OK
        where = in_one_line(str(error.filename or "writing the output"))
        click.echo(f"qsit: {where}: {error.strerror}", err=True)
        return ExitCode.COULD_NOT_RUN


def _open_closed_streams() -> None:
    """Open closed standard streams (`>&-`) on /dev/null, so that no file opened later becomes stdout."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115 -- for the life of the process
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
