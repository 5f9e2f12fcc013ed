"""Options that several commands share, and how they print."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdbench.common.errors import InputError, did_you_mean, printable, quoted
from kdbench.spec.profiles import known_profiles

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import Console

    from kdbench.matrix.file import Matrix

File = Annotated[
    Path | None, typer.Argument(metavar="FILE", help="The matrix file; - is the standard input.")
]
MatrixFile = Annotated[
    Path | None, typer.Option("--matrix", metavar="FILE", help="The same, as an option.")
]
Profile = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="NAME|FILE.toml",
        help=f"The device: {', '.join(known_profiles())}, or a profile of your own.",
    ),
]
Preset = Annotated[
    str | None, typer.Option("--preset", metavar="NAME", help="A preset of the matrix file.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a dotted key of the matrix file to a TOML value. Repeatable.",
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="COLUMN=V1,V2",
        help="Keep the rows with these values in a column of `cells`. Repeatable.",
    ),
]
Environment = Annotated[
    str | None,
    typer.Option(
        "--environment",
        metavar="NAME",
        help="Results of this environment only (its id, or a part of its name).",
    ),
]
Reference = Annotated[
    str | None,
    typer.Option(
        "--reference", metavar="LABEL", help="The cell that ratios are taken to; a Teacher-KD one."
    ),
]
Results = Annotated[
    Path, typer.Argument(metavar="RESULTS", help="Results root, or one matrix's folder in it.")
]


def load(
    argument: Path | None,
    option: Path | None,
    preset: str | None,
    assignments: Sequence[str] | None,
    only: Sequence[str] | None = None,
) -> Matrix:
    """Load the matrix of a command, as its argument and its options have it."""
    from kdbench.matrix.file import load_matrix

    path = matrix_file(argument, option)
    return load_matrix(path, preset=preset, assignments=assignments or (), only=only or ())


def matrix_file(argument: Path | None, option: Path | None) -> Path:
    """Return the one matrix file that a command was given, as its argument or as an option."""
    if argument is not None and option is not None:
        raise InputError(
            f"one matrix file is expected, found {quoted((argument, option), ' and ')}",
            where="--matrix",
        )
    named = argument or option
    if named is None:
        raise InputError(
            "a matrix file is needed, found none",
            where="FILE, or --matrix FILE",
            hint="such as benchmarks/fig4.toml",
        )
    return named


def is_matrix_path(path: Path) -> bool:
    """Whether a path names a matrix file and no folder of results."""
    from kdbench.common.document import is_stream

    return path.suffix == ".toml" or is_stream(path)


def check_format(found: str, known: Sequence[str]) -> None:
    """Check what `--format` asks for."""
    if found not in known:
        raise InputError(
            f"expected one of {quoted(known)}, found {found!r}",
            where="--format",
            hint=did_you_mean(found, known),
        )


def format_records(records: list[dict[str, Any]], format: str) -> str:
    """Write records as csv or json."""
    import csv
    import io
    import json

    if format == "json":
        return json.dumps(records, indent=2)
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_value(value) for name, value in row.items()} for row in records)
    return file.getvalue()


def csv_value(value: Any) -> Any:  # noqa: ANN401
    """Make a value safe for a terminal and a spreadsheet; one of our own stays as it is.

    A terminal obeys control characters, and a spreadsheet computes a text that begins like a
    formula, unless an apostrophe stands in front.
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def print_frame(frame: DataFrame, format: str) -> None:
    """Print a frame as csv or json."""
    if format == "csv":
        typer.echo(frame.map(csv_value).to_csv(index=False), nl=False)
    else:
        typer.echo(frame.to_json(orient="records", indent=2))


# A file has no width: the widest table of cells fits into this.
_FILE_WIDTH = 100


def console() -> Console:
    """Return the console of the standard output."""
    import os

    from rich.console import Console

    made = Console()
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = _FILE_WIDTH
    return made
