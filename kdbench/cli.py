"""The command line: a thin function per command; what is heavy is imported inside it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdbench import __version__
from kdbench.errors import InputError, KdbenchError, did_you_mean, quoted
from kdbench.words import printable

if TYPE_CHECKING:
    from rich.console import Console

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

MatrixOption = Annotated[Path, typer.Option("--matrix", metavar="FILE", help="The matrix file.")]
PresetOption = Annotated[
    str | None, typer.Option("--preset", metavar="NAME", help="A preset of the matrix file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set a dotted key of the matrix file to a TOML value. Repeatable.",
    ),
]
OnlyOption = Annotated[
    list[str] | None,
    typer.Option(
        "--only",
        metavar="COLUMN=V1,V2",
        help="Keep the rows with these values in a column of `cells`. Repeatable.",
    ),
]
EnvironmentOption = Annotated[
    str | None,
    typer.Option(
        "--environment",
        metavar="NAME",
        help="Results of this environment only (its id, or a part of its name).",
    ),
]
ReferenceOption = Annotated[
    str | None,
    typer.Option(
        "--reference", metavar="LABEL", help="The cell that ratios are taken to; a Teacher-KD one."
    ),
]
ResultsArgument = Annotated[
    Path, typer.Argument(metavar="RESULTS", help="Results root, or one matrix's folder in it.")
]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        typer.echo(f"kdbench {__version__}")
        raise typer.Exit


@app.command()
def run(
    matrix: MatrixOption,
    preset: PresetOption = None,
    set: SetOption = None,
    only: OnlyOption = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda:N", help="Where to run.")] = "auto",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Results root.")] = Path("results"),
    retry: Annotated[
        str,
        typer.Option(
            metavar="STATUS,...",
            help="Run cells again that ended so: failed,oom,timeout,killed,...",
        ),
    ] = "",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Run all again; what there is, is set aside.")
    ] = False,
) -> None:
    """Run what is missing of a matrix and keep the results.

    Each cell runs in a process of its own, and its rows are on disk before the next one starts.
    """
    from kdbench import api
    from kdbench.matrix import load_matrix
    from kdbench.orchestrate.progress import Shown

    loaded = load_matrix(matrix, preset=preset, assignments=set or (), only=only or ())
    done = api.run(
        loaded,
        out=out,
        device=device,
        retry=[s for s in retry.split(",") if s],
        fresh=fresh,
        progress=Shown(_console()),
    )
    for label, status in done.failed:
        typer.echo(f"{status}: {label}", err=True)
    if done.failed:
        statuses = ",".join(sorted({status for _, status in done.failed}))
        typer.echo(
            f"see: kdbench show {done.folder}; --retry {statuses} runs these again", err=True
        )
    if done.tally.interrupted:
        typer.echo("interrupted; the same command goes on from here", err=True)
    elif not done.failed:
        typer.echo(f"done; see: kdbench show {done.folder}; kdbench plot {done.folder}")
    raise typer.Exit(done.tally.exit_code)


@app.command()
def cells(
    matrix: MatrixOption,
    preset: PresetOption = None,
    set: SetOption = None,
    only: OnlyOption = None,
) -> None:
    """List a matrix's cells: id, label, and how often each is run."""
    from collections import Counter

    from kdbench.matrix import load_matrix

    loaded = load_matrix(matrix, preset=preset, assignments=set or (), only=only or ())
    runs = loaded.runs()
    counts = Counter((run.cell.cell_id, run.cell.label) for run in runs)
    width = max(len(label) for _, label in counts)
    typer.echo(f"{'cell_id':16}  {'label':{width}}  runs")
    for (cell_id, label), count in counts.items():
        typer.echo(f"{cell_id}  {label:{width}}  {count:4}")
    typer.echo(f"{len(counts)} cells, {len(runs)} runs, mode {loaded.mode}", err=True)


@app.command()
def show(
    results: ResultsArgument = Path("results"),
    reference: ReferenceOption = None,
    only: OnlyOption = None,
    environment: EnvironmentOption = None,
    format: Annotated[str, typer.Option(metavar="table|csv|json", help="How to print.")] = "table",
    memory: Annotated[
        bool,
        typer.Option(
            "--memory", help="Where each cell's memory is at its peak: categories and modules."
        ),
    ] = False,
) -> None:
    """Print the measured cells as a table, with ratios to a reference cell."""
    from kdbench.analysis import show as cells
    from kdbench.analysis import show_memory
    from kdbench.analysis.results import load_results

    if memory and reference is not None:
        raise InputError("--memory shows no ratios to a reference", where="--reference")
    formats = ("table", "csv", "json")
    if format not in formats:
        raise InputError(
            f"expected one of {quoted(formats)}, found {format!r}",
            where="--format",
            hint=did_you_mean(format, formats),
        )
    loaded = load_results(results, only=only or (), environment=environment)
    if format == "table":
        shown = show_memory.render(loaded) if memory else cells.render(loaded, reference=reference)
        _console().print(*shown, sep="\n\n")
        return
    frame = show_memory.summary(loaded) if memory else cells.summary(loaded, reference=reference)
    if format == "csv":
        typer.echo(frame.to_csv(index=False), nl=False)
    else:
        typer.echo(frame.to_json(orient="records", indent=2))


@app.command()
def plot(
    results: ResultsArgument = Path("results"),
    figure: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="curves (or fig2, fig3), fig4, fig5, breakeven, pareto, memory, timeline; all "
            "that the results allow.",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Draw this instead of the two memory figures, beside accuracy and epoch time: "
            "parameters, allocated, reserved, process, device, host, step_time, "
            "precompute_time, energy. Repeatable.",
        ),
    ] = None,
    format: Annotated[
        str, typer.Option(metavar="png,svg,pdf", help="File formats, by commas.")
    ] = "png",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where; RESULTS/<matrix>/figures.")
    ] = None,
    reference: ReferenceOption = None,
    only: OnlyOption = None,
    environment: EnvironmentOption = None,
) -> None:
    """Draw the figures that the results allow."""
    from kdbench.analysis.plot import plot as draw
    from kdbench.analysis.results import load_results

    loaded = load_results(results, only=only or (), environment=environment)
    formats = [form.strip() for form in format.split(",")]
    for path in draw(
        loaded,
        figure=figure,
        metrics=metric or None,
        formats=formats,
        out=out,
        reference=reference,
    ):
        typer.echo(path)


@app.command()
def tables(
    matrix: MatrixOption,
    preset: PresetOption = None,
    set: SetOption = None,
    format: Annotated[
        str, typer.Option(metavar="markdown|latex", help="How to print.")
    ] = "markdown",
    table: Annotated[
        str | None,
        typer.Option(metavar="teachers|students|training", help="Which one; all of them."),
    ] = None,
) -> None:
    """Print the paper's tables of a matrix: teachers, students, training parameters."""
    from kdbench.analysis.tables import tables as written
    from kdbench.matrix import load_matrix

    loaded = load_matrix(matrix, preset=preset, assignments=set or ())
    typer.echo(written(loaded, table=table, format=format))


@app.command()
def doctor(
    results: Annotated[
        Path | None, typer.Argument(metavar="[RESULTS]", help="A folder to write to.")
    ] = None,
) -> None:
    """Say what this machine offers, and which figures will therefore be missing."""
    from kdbench.orchestrate.doctor import examine, render

    _console().print(render(examine(results)))


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
        error.show()
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


def _console() -> Console:
    from rich.console import Console

    return Console()
