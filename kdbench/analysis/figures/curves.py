"""Figures 2 and 3: training and validation curves, a line per method, a band over seeds.

Only trainings that ended well are in a mean. One that stopped early is drawn as a thin line of
its own with a cross at its end: a mean over fewer seeds from there on would jump, and leaving it
out would hide that the method can fail.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdbench.analysis.aggregate import CellGroup
from kdbench.analysis.figures import style
from kdbench.analysis.figures.page import Graph, Page, Section, draw_page
from kdbench.analysis.figures.series import Block, Look, blocks, looks
from kdbench.analysis.figures.sheet import Sheet, provenance
from kdbench.analysis.notes import footnotes, problem_notes
from kdbench.errors import InputError
from kdbench.stats import FEWEST_PROCESSES, mean_interval
from kdbench.words import printable

# column of `epochs`, the panel's title, the vertical axis' name, its note
_QUANTITIES = (
    ("train_loss", "Training loss", "loss", "each method's own, its distillation term included"),
    ("train_accuracy", "Training accuracy", "accuracy, %", "as seen in training"),
    ("test_loss", "Test loss", "cross entropy", "the same for all methods"),
    ("test_accuracy", "Test accuracy", "accuracy, %", "after each epoch"),
)
MOST_LINES = 16


@dataclass(frozen=True)
class Curve:
    """A quantity over the epochs: mean over seeds, and how far they lie apart.

    Attributes:
        epochs: counted from 1: an epoch's values are known at its end.
        mean: of the seeds, at each epoch.
        low: lower end of the band; empty for one seed.
        high: its upper end.
        seeds: how many seeds each point stands on.
        interval: the band is the 95 % interval of the mean, else the range of the seeds.
    """

    epochs: tuple[int, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    seeds: int
    interval: bool


def refusal(sheet: Sheet) -> str | None:
    """Say why these results cannot give the figure; None where they can."""
    drawn = _drawn(sheet)
    if not drawn:
        return "no epoch of a training is stored"
    most = max(len(block.groups) for block in blocks(drawn))
    if most > MOST_LINES:
        return f"{most} lines are more than a panel shows ({MOST_LINES}): narrow with --only"
    return None


def draw(sheet: Sheet) -> Figure:
    """Draw the figure for one matrix and environment.

    Raises:
        InputError: as `refusal` says.
    """
    reason = refusal(sheet)
    if reason:
        raise InputError(f"no curves from these results: {reason}", where=sheet.matrix)
    drawn = _drawn(sheet)
    rows = _rows_by_run(sheet)
    chosen = looks(sheet, drawn)
    parts = blocks(drawn)
    page = Page(
        title=f"Training and validation curves: {printable(sheet.matrix)}",
        legend=list(dict.fromkeys(chosen[id(group)] for group in drawn)),
        sections=[Section(part.title, _graphs(part, rows, chosen)) for part in parts],
        caption=_caption(sheet, drawn, rows),
        columns=2 if len(parts) == 1 else 4,
        panel=(2.9, 1.9) if len(parts) == 1 else (2.15, 1.75),
    )
    return draw_page(page)


def mean_curve(runs: Sequence[tuple[int, Mapping[int, float]]]) -> Curve | None:
    """Put runs of one cell together.

    Args:
        runs: (seed, value by epoch from 0) of each finished run.

    Returns:
        The curve over the epochs that every seed has; None of nothing.
    """
    seeds: dict[int, list[Mapping[int, float]]] = {}
    for seed, values in runs:
        seeds.setdefault(seed, []).append(values)
    shared = set[int].intersection(*(set(values) for _, values in runs)) if runs else set()
    if not shared:
        return None
    epochs = sorted(shared)
    # Repeats of one seed are no independent trainings.
    points = [
        [fmean(values[epoch] for values in repeats) for repeats in seeds.values()]
        for epoch in epochs
    ]
    intervals = [mean_interval(values) for values in points]
    bands = [
        interval or (min(values), max(values))
        for interval, values in zip(intervals, points, strict=True)
    ]
    several = len(seeds) > 1
    return Curve(
        epochs=tuple(epoch + 1 for epoch in epochs),
        mean=tuple(fmean(values) for values in points),
        low=tuple(low for low, _ in bands) if several else (),
        high=tuple(high for _, high in bands) if several else (),
        seeds=len(seeds),
        interval=len(seeds) >= FEWEST_PROCESSES,
    )


_Rows = Mapping[str, pd.DataFrame]


def _rows_by_run(sheet: Sheet) -> _Rows:
    return {str(key): rows for key, rows in sheet.results.epochs.groupby("run_key")}


def _drawn(sheet: Sheet) -> list[CellGroup]:
    keys = set(sheet.results.epochs["run_key"])
    return [g for g in sheet.groups if any(run.run_key in keys for run in g.members)]


def _values(rows: pd.DataFrame, column: str) -> dict[int, float]:
    """Read a quantity by epoch; what is missing or not finite has no point."""
    known = rows.dropna(subset=["epoch", column])
    pairs = zip(known["epoch"].tolist(), known[column].tolist(), strict=True)
    return {int(epoch): float(value) for epoch, value in pairs if math.isfinite(value)}


def _graphs(block: Block, rows: _Rows, chosen: Mapping[int, Look]) -> list[Graph]:
    def graph(column: str, title: str, up: str, note: str) -> Graph:
        def painted(axes: Axes, _size: tuple[float, float]) -> None:
            for group in block.groups:
                _draw_cell(axes, group, rows, column, chosen[id(group)])
            axes.xaxis.set_major_locator(style.ticks(6, whole=True))
            axes.yaxis.set_major_locator(style.ticks(5))
            axes.margins(x=0.02)

        return Graph(title, (note,), "epoch", up, painted)

    return [graph(*quantity) for quantity in _QUANTITIES]


def _draw_cell(axes: Axes, group: CellGroup, rows: _Rows, column: str, look: Look) -> None:
    factor = 100.0 if column.endswith("accuracy") else 1.0
    finished = []
    for run in group.members:
        if run.run_key not in rows:
            continue
        values = {e: factor * v for e, v in _values(rows[run.run_key], column).items()}
        if run.status == "ok":
            finished.append((run.seed, values))
        elif values:
            _draw_stopped(axes, values, look)
    curve = mean_curve(finished)
    if curve is None:
        return
    # A single epoch has no line to see.
    marker = look.marker if len(curve.epochs) == 1 else ""
    axes.plot(
        curve.epochs,
        curve.mean,
        color=look.colour,
        linestyle=look.dashes,
        linewidth=1.5,
        marker=marker,
        markersize=4,
    )
    if curve.low:
        axes.fill_between(
            curve.epochs, curve.low, curve.high, color=look.colour, alpha=0.16, linewidth=0
        )


def _draw_stopped(axes: Axes, values: Mapping[int, float], look: Look) -> None:
    epochs = sorted(values)
    heights = [values[epoch] for epoch in epochs]
    ends = [epoch + 1 for epoch in epochs]
    axes.plot(ends, heights, color=look.colour, linewidth=0.8, alpha=0.7)
    axes.plot(ends[-1:], heights[-1:], color=look.colour, marker="x", markersize=5)


def _caption(sheet: Sheet, drawn: Sequence[CellGroup], rows: _Rows) -> list[str]:
    lines = [provenance(sheet, drawn), _band_note(drawn, rows)]
    if any(run.status != "ok" and run.run_key in rows for g in drawn for run in g.members):
        lines.append("Thin lines that end in a cross: trainings that stopped early; no mean.")
    marks = footnotes(drawn, (), trained=True)
    lines += [". ".join(marks) + "."] if marks else []
    return lines + [line for group in drawn for line in problem_notes(group)]


def _band_note(drawn: Sequence[CellGroup], rows: _Rows) -> str:
    counts = sorted(
        {
            len({run.seed for run in g.members if run.status == "ok" and run.run_key in rows})
            for g in drawn
        }
        - {0}
    )
    if not counts:
        return "No training finished."
    if counts == [1]:
        return "Lines: one training each, of one seed."
    told = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
    line = f"Lines: mean over seeds ({told} per line)."
    if any(n >= FEWEST_PROCESSES for n in counts):
        few = f" (from {FEWEST_PROCESSES} seeds on)" if counts[0] < FEWEST_PROCESSES else ""
        line += f" Bands{few}: 95 % interval of that mean."
    if any(1 < n < FEWEST_PROCESSES for n in counts):
        fewer = f" (under {FEWEST_PROCESSES})" if counts[-1] >= FEWEST_PROCESSES else ""
        line += f" Bands{fewer}: from the lowest to the highest seed."
    return line
