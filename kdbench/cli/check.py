"""The gate's command."""

from pathlib import Path
from typing import Annotated

import typer

from kdbench.cli import options
from kdbench.common.errors import InputError, printable


def check(
    baseline: Annotated[
        Path, typer.Option("--baseline", metavar="FILE", help="What to compare with.")
    ],
    results: Annotated[
        Path | None,
        typer.Argument(
            metavar="RESULTS|FILE", help="Measured results, or the matrix file that is predicted."
        ),
    ] = None,
    matrix: Annotated[
        Path | None,
        typer.Option(
            "--matrix",
            metavar="FILE",
            help="The matrix file, as an option; beside RESULTS, only its tolerances count.",
        ),
    ] = None,
    profile: options.Profile = None,
    preset: options.Preset = None,
    set: options.Set = None,
    only: options.Only = None,
    environment: options.Environment = None,
    update: Annotated[
        bool, typer.Option("--update", help="Write the baseline anew, and say what changed.")
    ] = False,
    format: Annotated[
        str, typer.Option(metavar="table|github|json|junit", help="How to print.")
    ] = "table",
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report as JSON too.")
    ] = None,
    junit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report as JUnit's XML too.")
    ] = None,
) -> None:
    """Fail where memory or time per step grew over a baseline.

    A prediction is for the baseline's device unless --profile says another.
    Exit codes: 0 held; 1 regressed, or a cell failed; 2 broken input; 3 cannot tell.
    """
    from kdbench.gate import check as gate
    from kdbench.gate.emit import FORMATS, Emitter
    from kdbench.matrix.file import load_matrix

    options.check_format(format, FORMATS)
    emitter = Emitter(format=format, json=json, junit=junit, console=options.console())
    with emitter.errors():
        if results is not None and options.is_matrix_path(results):
            results, matrix = None, options.matrix_file(results, matrix)
        if matrix is None and (preset or set):
            raise InputError("these are laid over a matrix file: --matrix", where="--preset, --set")
        filters = (only or ()) if results is None else ()
        loaded = None
        if matrix is not None:
            loaded = load_matrix(matrix, preset=preset, assignments=set or (), only=filters)
        asked = gate.Gate(
            baseline=baseline,
            matrix=loaded,
            results=results,
            profile=profile,
            only=tuple(only or ()),
            environment=environment,
        )
        if not update:
            raise typer.Exit(emitter.report(gate.check(asked)))
        done = gate.update_baseline(asked)
        if done.report is not None:
            emitter.report(done.report)
        for line in (*done.notes, *done.summary):
            typer.echo(printable(line), err=True)
        raise typer.Exit(done.exit_code)
