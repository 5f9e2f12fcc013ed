"""The commands that show results: each a thin function."""

from pathlib import Path
from typing import Annotated

import typer

from kdbench.analysis.metrics import METRICS
from kdbench.cli import options
from kdbench.common.errors import IncomparableError, InputError, printable


def show(
    results: options.Results = Path("results"),
    reference: options.Reference = None,
    only: options.Only = None,
    environment: options.Environment = None,
    format: Annotated[str, typer.Option(metavar="table|csv|json", help="How to print.")] = "table",
    memory: Annotated[
        bool,
        typer.Option(
            "--memory", help="Where each cell's memory is at its peak: categories and modules."
        ),
    ] = False,
) -> None:
    """Print the measured cells as a table, with ratios to a reference cell."""
    from kdbench.analysis import cell_tables as cells
    from kdbench.analysis import memory_tables
    from kdbench.analysis.results import load_results

    if memory and reference is not None:
        raise InputError("--memory shows no ratios to a reference", where="--reference")
    options.check_format(format, ("table", "csv", "json"))
    loaded = load_results(results, only=only or (), environment=environment)
    if format == "table":
        shown = (
            memory_tables.render(loaded) if memory else cells.render(loaded, reference=reference)
        )
        options.console().print(*shown, sep="\n\n")
        return
    frame = memory_tables.summary(loaded) if memory else cells.summary(loaded, reference=reference)
    options.print_frame(frame, format)


def plot(
    results: options.Results = Path("results"),
    figure: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="curves (or fig2, fig3), fig4, fig5, breakeven, pareto, memory, timeline; all "
            "that the results allow. Repeatable.",
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Draw this instead of the two memory figures, beside accuracy and epoch time: "
            f"{', '.join(METRICS)}. Repeatable.",
        ),
    ] = None,
    format: Annotated[
        str, typer.Option(metavar="png,svg,pdf", help="File formats, by commas.")
    ] = "png",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where; RESULTS/<matrix>/figures.")
    ] = None,
    reference: options.Reference = None,
    only: options.Only = None,
    environment: options.Environment = None,
) -> None:
    """Draw the figures that the results allow."""
    from kdbench.analysis.plot import plot as draw
    from kdbench.analysis.results import load_results

    loaded = load_results(results, only=only or (), environment=environment)
    formats = [form.strip() for form in format.split(",")]
    for path in draw(
        loaded, figure=figure, metrics=metric or None, formats=formats, out=out, reference=reference
    ):
        typer.echo(printable(path))


def tables(
    file: options.File = None,
    matrix: options.MatrixFile = None,
    preset: options.Preset = None,
    set: options.Set = None,
    format: Annotated[
        str, typer.Option(metavar="markdown|latex", help="How to print.")
    ] = "markdown",
    table: Annotated[
        str | None,
        typer.Option(metavar="teachers|students|training", help="Which one; all of them."),
    ] = None,
) -> None:
    """Print the paper's tables of a matrix: teachers, students, training parameters."""
    from kdbench.analysis.paper_tables import tables as written

    typer.echo(written(options.load(file, matrix, preset, set), table=table, format=format))


def compare(
    before: Annotated[
        Path, typer.Argument(metavar="BEFORE", help="Results root, or one matrix's folder in it.")
    ],
    after: Annotated[
        Path | None,
        typer.Argument(
            metavar="AFTER",
            help="The other one; without it --before and --after pick both from the first.",
        ),
    ] = None,
    only_before: Annotated[
        list[str] | None,
        typer.Option(
            "--before",
            metavar="COLUMN=V1,V2",
            help="Keep these rows alone on the side before. Repeatable.",
        ),
    ] = None,
    only_after: Annotated[
        list[str] | None,
        typer.Option(
            "--after", metavar="COLUMN=V1,V2", help="The same for the side after. Repeatable."
        ),
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Compare this instead of the usual ones; all: whatever there is. Repeatable.",
        ),
    ] = None,
    only: options.Only = None,
    environment: options.Environment = None,
    format: Annotated[
        str, typer.Option(metavar="table|csv|json|markdown", help="How to print.")
    ] = "table",
) -> None:
    """Set two runs side by side: ratios, their intervals, differences to the byte.

    Cells are joined by their labels. Changed settings and different environments are named.
    """
    from kdbench.analysis.compare import notes, tables
    from kdbench.analysis.compare.frame import summary
    from kdbench.analysis.compare.join import compare as compared
    from kdbench.analysis.compare.sides import load_sides
    from kdbench.analysis.metrics import find_metrics

    options.check_format(format, ("table", "csv", "json", "markdown"))
    names = list(METRICS) if metric and "all" in metric else metric
    metrics = find_metrics(names) if names else None
    sides = load_sides(
        before,
        after,
        only=only or (),
        only_before=only_before or (),
        only_after=only_after or (),
        environment=environment,
    )
    comparison = compared(*sides, metrics=metrics)
    if format == "table":
        options.console().print(*tables.render(comparison), sep="\n\n")
    elif format == "markdown":
        typer.echo(tables.markdown(comparison))
    else:
        options.print_frame(summary(comparison), format)
    if comparison.count == 0:
        raise IncomparableError(notes.nothing_compared(comparison))
