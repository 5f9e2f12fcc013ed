"""The commands that look at a machine and measure on it, or predict: each a thin function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdbench.cli import options
from kdbench.cli.output import run_console
from kdbench.common.errors import printable

if TYPE_CHECKING:
    from kdbench.api import Run
    from kdbench.matrix.file import Matrix


def doctor(
    results: Annotated[
        Path | None,
        typer.Argument(metavar="RESULTS", help="Results to look through, or a folder to write to."),
    ] = None,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Move damaged and foreign files out of RESULTS, keeping them; make rows of what "
            "a killed run left behind.",
        ),
    ] = False,
) -> None:
    """Say what this machine offers and what will be missing; of results, what they lack."""
    from kdbench.common.errors import InputError
    from kdbench.runner.doctor import examine_machine, examine_results_folder, render
    from kdbench.runner.repair import describe, examine_results, remedies, repair_store

    if repair and results is None:
        raise InputError("it needs the results folder", where="--repair")
    if results is None or not _has_results(results):
        if repair:
            examine_results(results or Path())  # says what is wrong with it
        options.console().print(render(examine_machine(results)))
        return
    if not repair:
        options.console().print(render(examine_results_folder(results)))
    found = examine_results(results)
    for health in found:
        if repair:
            repair_store(health, lambda line: typer.echo(printable(line)))
    if repair:
        found = examine_results(results)
    for health in found:
        for line in describe(health):
            typer.echo(printable(line))
    for line in dict.fromkeys(line for health in found for line in remedies(health, results)):
        typer.echo(printable(line), err=True)
    if not all(health.good for health in found):
        raise typer.Exit(1)


def _has_results(path: Path) -> bool:
    from kdbench.store import is_store

    return path.is_dir() and (is_store(path) or any(is_store(p) for p in path.iterdir()))


def cells(
    file: options.File = None,
    matrix: options.MatrixFile = None,
    preset: options.Preset = None,
    set: options.Set = None,
    only: options.Only = None,
) -> None:
    """List a matrix's cells: id, label, and how often each is run."""
    from collections import Counter

    from kdbench.spec.cell import describe_dropped_images

    loaded = options.load(file, matrix, preset, set, only)
    runs = loaded.runs()
    counts = Counter((run.cell.cell_id, run.cell.label) for run in runs)
    width = max(len(label) for _, label in counts)
    typer.echo(f"{'cell_id':16}  {'label':{width}}  runs")
    for (cell_id, label), count in counts.items():
        typer.echo(f"{cell_id}  {label:{width}}  {count:4}")
    typer.echo(f"{len(counts)} cells, {len(runs)} runs, mode {loaded.mode}", err=True)
    if left_out := describe_dropped_images(run.cell for run in runs):
        typer.echo(printable(left_out), err=True)


def predict(
    file: options.File = None,
    matrix: options.MatrixFile = None,
    profile: options.Profile = None,
    fits: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Say which cells fit into so much memory of --profile: 24GB, or card for all "
            "that it has; and the largest batch that does.",
        ),
    ] = None,
    preset: options.Preset = None,
    set: options.Set = None,
    only: options.Only = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Results root.")] = Path("results"),
    format: Annotated[str, typer.Option(metavar="table|csv|json", help="How to print.")] = "table",
) -> None:
    """Predict the peak memory of each cell's step, on a device that need not be there.

    Without --profile it is a CPU's.
    """
    from kdbench.analysis import predicted
    from kdbench.common.units import format_value
    from kdbench.runner.prediction import predict_matrix, store_predictions
    from kdbench.spec import device_profile

    options.check_format(format, ("table", "csv", "json"))
    if fits is not None and profile is None:
        raise device_profile.missing_profile_error(fits)
    device = device_profile.load_profile(profile or device_profile.DEFAULT)
    capacity = None if fits is None else device_profile.parse_capacity(fits, device)
    loaded = options.load(file, matrix, preset, set, only)
    with _prediction_progress(loaded) as advance:
        made = predict_matrix(loaded, profile=device, fits_bytes=capacity, tell=advance)
    folder = store_predictions(made, loaded, out)
    rows, fitting = [p.cell for p in made], [p.fit for p in made]
    if format == "table":
        size = format_value(capacity, "bytes") if fits == "card" else fits
        title = f"{loaded.name}, predicted for {device.title} with torch {rows[0]['torch_version']}"
        options.console().print(
            *predicted.render(rows, fitting, title=title, capacity=size), sep="\n\n"
        )
        kept = f"kept; see: kdbench show {folder} --only source=predicted --memory"
        typer.echo(printable(kept), err=True)
    else:
        typer.echo(
            options.format_records(predicted.records(rows, fitting), format), nl=format == "json"
        )
    raise typer.Exit(1 if any(row["status"] != "ok" for row in rows) else 0)


@contextmanager
def _prediction_progress(matrix: Matrix) -> Iterator[Callable[[object], None]]:
    """Show on a terminal how many cells are predicted; say so if Ctrl-C ends it."""
    import sys

    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    screen = Console(file=sys.stderr)
    columns = (TextColumn("predicting"), MofNCompleteColumn(), TextColumn("cells"))
    try:
        with Progress(
            *columns,
            TimeElapsedColumn(),
            console=screen,
            transient=True,
            disable=not screen.is_terminal,
        ) as bar:
            task = bar.add_task("", total=len({run.cell.label for run in matrix.runs()}))
            yield lambda _: bar.advance(task)
    except KeyboardInterrupt:
        typer.echo("interrupted; no prediction is kept", err=True)
        raise


def run(
    file: options.File = None,
    matrix: options.MatrixFile = None,
    preset: options.Preset = None,
    set: options.Set = None,
    only: options.Only = None,
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
    Ctrl-C finishes the running cell and stops; a second one stops at once.
    """
    from kdbench import api
    from kdbench.runner.progress import ConsoleProgress

    loaded = options.load(file, matrix, preset, set, only)
    done = api.run(
        loaded,
        out=out,
        device=device,
        retry=[s for s in retry.split(",") if s],
        fresh=fresh,
        progress=ConsoleProgress(run_console()),
    )
    _report(done, fresh=fresh)
    raise typer.Exit(done.summary.exit_code)


def _report(done: Run, *, fresh: bool) -> None:
    """Say how a run went, and what to do next."""
    # with --fresh it would set aside what is there by now, and start over
    same = "the same command without --fresh" if fresh else "the same command"
    for label, status in done.failed:
        typer.echo(printable(f"{status}: {label}"), err=True)
    if done.failed:
        statuses = ",".join(sorted({status for _, status in done.failed}))
        again = f"see: kdbench show {done.folder}; --retry {statuses} runs these again"
        typer.echo(printable(again), err=True)
    if done.summary.given_up:
        given_up = (
            f"{done.summary.given_up}; the cells that are left were not run. When it is back, "
            f"{same} goes on from here"
        )
        typer.echo(printable(given_up), err=True)
    if done.summary.interrupted:
        typer.echo(f"interrupted; {same} goes on from here", err=True)
    elif not done.failed and not done.summary.given_up:
        typer.echo(printable(f"done; see: kdbench show {done.folder}; kdbench plot {done.folder}"))
