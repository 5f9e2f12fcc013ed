"""The command line: a thin function per command; what is heavy is imported inside it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kdbench import __version__
from kdbench.errors import IncomparableError, InputError, KdbenchError, did_you_mean, quoted
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
    _check_format(format, ("table", "csv", "json"))
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
def compare(
    before: Annotated[
        Path, typer.Argument(metavar="BEFORE", help="Results root, or one matrix's folder in it.")
    ],
    after: Annotated[
        Path | None,
        typer.Argument(
            metavar="[AFTER]",
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
    only: OnlyOption = None,
    environment: EnvironmentOption = None,
    format: Annotated[
        str, typer.Option(metavar="table|csv|json|markdown", help="How to print.")
    ] = "table",
) -> None:
    """Set two runs side by side: ratios, their intervals, differences to the byte.

    Cells are joined by their labels. Changed settings and different environments are named.
    """
    from kdbench.analysis.compare import notes
    from kdbench.analysis.compare import show as tables
    from kdbench.analysis.compare.frame import summary
    from kdbench.analysis.compare.join import compare as compared
    from kdbench.analysis.compare.sides import load_sides
    from kdbench.analysis.metrics import METRICS, find_metrics

    _check_format(format, ("table", "csv", "json", "markdown"))
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
        _console().print(*tables.render(comparison), sep="\n\n")
    elif format == "markdown":
        typer.echo(tables.markdown(comparison))
    elif format == "csv":
        typer.echo(summary(comparison).to_csv(index=False), nl=False)
    else:
        typer.echo(summary(comparison).to_json(orient="records", indent=2))
    if comparison.count == 0:
        raise IncomparableError(notes.nothing_compared(comparison))


@app.command()
def check(
    baseline: Annotated[
        Path, typer.Option("--baseline", metavar="FILE", help="What to compare with.")
    ],
    results: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RESULTS]", help="Measured results; without them the matrix is predicted."
        ),
    ] = None,
    matrix: Annotated[
        Path | None,
        typer.Option(
            "--matrix",
            metavar="FILE",
            help="The matrix file to predict; beside RESULTS, only its tolerances count.",
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Device profile of the prediction; the baseline's."),
    ] = None,
    preset: PresetOption = None,
    set: SetOption = None,
    only: OnlyOption = None,
    environment: EnvironmentOption = None,
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

    Exit codes: 0 held; 1 regressed, or a cell failed; 2 broken input; 3 cannot tell.
    """
    from kdbench import gate
    from kdbench.analysis.gate.emit import Emitter
    from kdbench.matrix import load_matrix

    emitter = Emitter(format=format, json=json, junit=junit, console=_console())
    with emitter.errors():
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
        done = gate.update(asked)
        if done.report is not None:
            emitter.report(done.report)
        for line in (*done.notes, *done.told):
            typer.echo(printable(line), err=True)
        raise typer.Exit(done.exit_code)


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
def predict(
    matrix: MatrixOption,
    profile: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE.toml", help="The device: cpu, h100, ... or a profile of your own."
        ),
    ] = "cpu",
    fits: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Say which cells fit into so much memory: 24GiB, or card."
        ),
    ] = None,
    preset: PresetOption = None,
    set: SetOption = None,
    only: OnlyOption = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Results root.")] = Path("results"),
    format: Annotated[str, typer.Option(metavar="table|csv|json", help="How to print.")] = "table",
) -> None:
    """Predict the peak memory of each cell's step, on a device that need not be there."""
    from kdbench.analysis import predicted
    from kdbench.device_profile import capacity_of, load_profile
    from kdbench.matrix import load_matrix
    from kdbench.orchestrate.prediction import predict_matrix, store_predictions

    _check_format(format, ("table", "csv", "json"))
    device = load_profile(profile)
    capacity = None if fits is None else capacity_of(fits, device)
    loaded = load_matrix(matrix, preset=preset, assignments=set or (), only=only or ())
    made = predict_matrix(loaded, profile=device, fits_bytes=capacity)
    folder = store_predictions(made, loaded, out)
    rows, fitting = [p.cell for p in made], [p.fit for p in made]
    if format == "table":
        title = f"{loaded.name}, predicted for {device.title} with torch {rows[0]['torch_version']}"
        _console().print(*predicted.render(rows, fitting, title=title, capacity=fits), sep="\n\n")
        typer.echo(f"kept; see: kdbench show {folder} --only source=predicted --memory", err=True)
    else:
        typer.echo(_printed(predicted.records(rows, fitting), format), nl=format == "json")
    raise typer.Exit(1 if any(row["status"] != "ok" for row in rows) else 0)


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


def _check_format(found: str, known: Sequence[str]) -> None:
    """Check what `--format` asks for.

    Raises:
        InputError: there is no such format.
    """
    if found not in known:
        raise InputError(
            f"expected one of {quoted(known)}, found {found!r}",
            where="--format",
            hint=did_you_mean(found, known),
        )


def _printed(records: list[dict[str, Any]], format: str) -> str:
    """Write records as csv or json."""
    import csv
    import io
    import json

    if format == "json":
        return json.dumps(records, indent=2)
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()


def _console() -> Console:
    from rich.console import Console

    return Console()
