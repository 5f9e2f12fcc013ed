"""The command line: a thin function per command; what is heavy is imported inside it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from kdbench import __version__
from kdbench.cli.checking import check
from kdbench.cli.measuring import cells, doctor, predict, run
from kdbench.cli.reading import compare, plot, show, tables
from kdbench.errors import KdbenchError
from kdbench.words import printable

app = typer.Typer(
    name="kdbench",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Measure what knowledge distillation costs, in memory and time.",
)

# Typer may carry a click of its own, so its errors are reached through what it exports: this is
# the base of all that name their exit code and can show themselves.
_UsageError: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"kdbench {__version__}")
        raise typer.Exit


for _command in (doctor, cells, predict, run, show, plot, tables, compare, check):
    app.command()(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    Every error of ours ends here as one line on stderr.
    """
    try:
        code = app(
            args=list(sys.argv[1:] if arguments is None else arguments),
            prog_name="kdbench",
            standalone_mode=False,
        )
    except KdbenchError as error:
        typer.echo(f"kdbench: {printable(error)}", err=True)
        return error.exit_code
    except _UsageError as error:
        usage = getattr(getattr(error, "ctx", None), "get_usage", str)()
        told = printable(error.format_message())
        typer.echo(f"{usage}\n\nError: {told}".strip(), err=True)
        return int(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:  # the reader had enough, as in `kdbench show | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return int(code or 0)


def entry_point() -> None:
    """Entry point of the console script."""
    sys.exit(main())
