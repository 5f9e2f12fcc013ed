"""The command line: a thin function per command; what is heavy is imported inside it."""

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from kdbench import __version__
from kdbench.cli.check import check
from kdbench.cli.examples import epilog
from kdbench.cli.measure import cells, doctor, predict, run
from kdbench.cli.output import Output, standard_streams
from kdbench.cli.results import compare, plot, show, tables
from kdbench.common.errors import (
    InputError,
    KdbenchError,
    OutputError,
    UnreadableFileWarning,
    os_reason,
    printable,
)
from kdbench.common.lifetime import STOP_SIGNALS, ignore_signals

#: the exit code of a run that was stopped by the user, or by a scheduler
STOPPED = 130
# and of one that names no command, as of any that the option parser refuses
_NO_COMMAND = 2

app = typer.Typer(
    name="kdbench",
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Measure what knowledge distillation costs, in memory and time.",
)

# Typer may carry a click of its own, so its errors are reached through what it exports: this is
# the base of all that name their exit code and can show themselves.
_UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"kdbench {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        # The option parser would do so too, but as an error, whose message is one line.
        typer.echo(context.get_help())
        raise typer.Exit(_NO_COMMAND)


for _command in (doctor, cells, predict, run, show, plot, tables, compare, check):
    app.command(epilog=epilog(_command.__name__))(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Every error of ours ends here as one line on stderr, and so does what was left out of results.
    """
    with standard_streams() as output, _unreadable_files_reported():
        code = _run(arguments)
        return code if output is None else _written(output, code)


def _written(output: Output, code: int) -> int:
    """Say whether all was written that was printed; only of a run, it changes no exit code."""
    goes_on = output.steady
    output.finish()
    if output.problem is None:
        return code
    message = "the output could not always be written" if goes_on else "cannot write the output"
    typer.echo(f"kdbench: {message}: {printable(output.problem)}", err=True)
    return code if goes_on else OutputError.exit_code


@contextmanager
def _unreadable_files_reported() -> Iterator[None]:
    """Print each file left out of results once, as a plain line and not as Python's warning."""
    reported: set[str] = set()
    with warnings.catch_warnings():
        show = warnings.showwarning
        warnings.simplefilter("always", UnreadableFileWarning)

        def line(message: Any, category: Any, *where: Any) -> None:  # noqa: ANN401
            if not issubclass(category, UnreadableFileWarning):
                show(message, category, *where)
            elif str(message) not in reported:
                reported.add(str(message))
                typer.echo(f"kdbench: {printable(message)}", err=True)

        warnings.showwarning = line  # type: ignore[assignment]
        yield


def _run(arguments: Sequence[str] | None) -> int:
    try:
        code = app(
            args=list(sys.argv[1:] if arguments is None else arguments),
            prog_name="kdbench",
            standalone_mode=False,
        )
    except KdbenchError as error:
        if not isinstance(error, OutputError):  # reported when all is printed
            typer.echo(f"kdbench: {printable(error)}", err=True)
        return error.exit_code
    except _UsageError as error:
        usage = getattr(getattr(error, "ctx", None), "get_usage", str)()
        message = printable(error.format_message())
        typer.echo(f"{usage}\n\nError: {message}".strip(), err=True)
        return int(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return STOPPED
    except BrokenPipeError:  # the reader had enough, as in `kdbench show | head`
        return 0
    except OSError as error:  # the system's word on a file that nobody who read it expected
        problem = InputError(os_reason(error), where=error.filename)
        typer.echo(f"kdbench: {printable(problem)}", err=True)
        return problem.exit_code
    return int(code or 0)


def entry_point() -> None:
    """Entry point of the console script."""
    code = main()
    if code == STOPPED:
        # One more signal is meant for the run that has just ended, and is to change no exit code.
        ignore_signals(STOP_SIGNALS)
    sys.exit(code)
