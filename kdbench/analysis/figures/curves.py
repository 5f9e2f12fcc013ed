"""Figures 2 and 3: training and validation curves, a line per method, a band over seeds.

Only trainings that ended well are in a mean. One that stopped early is drawn as a thin line of
its own with a cross at its end: a mean over fewer seeds from there on would jump, and leaving it
out would hide that the method can fail.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import pandas as pd
from matplotlib.axes import Axes

from kdbench.analysis.aggregate import CellGroup, Run
from kdbench.analysis.figures import style
from kdbench.analysis.figures.page import Graph, Page
from kdbench.analysis.figures.series import Block, Look, blocks, looks
from kdbench.analysis.figures.sheet import Sheet, excess, headline, provenance, seed_notes
from kdbench.analysis.notes import footnotes, problem_notes, sentences
from kdbench.common.stats import MIN_PROCESSES, mean_interval

# column of `epochs`, the panel's title, the vertical axis' name, its note
_QUANTITIES = (
    ("train_loss", "Training loss", "loss", "each method's own, its distillation term included"),
    ("train_accuracy", "Training accuracy", "accuracy, %", "as seen in training"),
    ("test_loss", "Test loss", "cross entropy", "the same for all methods"),
    ("test_accuracy", "Test accuracy", "accuracy, %", "after each epoch"),
)
MOST_LINES = 16
# Of the height that two lines span together: about as wide as a line is drawn.
_LINE_WIDTH = 0.01
_UPON_ANOTHER = (0, (2.5, 2.5))


@dataclass(frozen=True)
class Curve:
    """A quantity over the epochs: mean over seeds, and how far they lie apart."""

    epochs: tuple[int, ...]  #: counted from 1: an epoch's values are known at its end
    mean: tuple[float, ...]  #: of the seeds, at each epoch
    low: tuple[float, ...]  #: lower end of the band; empty for one seed
    high: tuple[float, ...]  #: its upper end
    seeds: int  #: how many seeds each point stands on
    interval: bool  #: the band is the 95 % interval of the mean, else the range of the seeds


def plan(sheet: Sheet) -> Page | str:
    """Lay the figure out; where these results cannot give it, say why."""
    drawn = _drawn(sheet)
    if not drawn:
        return "no epoch of a training is stored"
    parts = blocks(drawn)
    most = max(len(block.groups) for block in parts)
    if too_many := excess(most, MOST_LINES, "lines are more than a panel shows"):
        return too_many
    rows = {str(key): frame for key, frame in sheet.results.epochs.groupby("run_key")}
    chosen = looks(sheet, drawn)
    return Page(
        title=headline(sheet, "Training and validation curves"),
        legend=list(dict.fromkeys(chosen[id(group)] for group in drawn)),
        graphs=[graph for part in parts for graph in _graphs(part, rows, chosen)],
        caption=_caption(sheet, parts, rows),
        columns=2 if len(parts) == 1 else 4,
        panel=(2.9, 1.9) if len(parts) == 1 else (2.15, 1.75),
    )


def mean_curve(runs: Sequence[tuple[int, Mapping[int, float]]]) -> Curve | None:
    """Average runs, (seed, value by epoch from 0) each, over the epochs that every seed has."""
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
        interval=len(seeds) >= MIN_PROCESSES,
    )


_Rows = Mapping[str, pd.DataFrame]


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
            drawn: list[Curve] = []
            for group in block.groups:
                _draw_cell(axes, group, rows, column, chosen[id(group)], drawn)
            axes.xaxis.set_major_locator(style.ticks(6, whole=True))
            axes.margins(x=0.02)
            if column.endswith("accuracy"):
                style.percent_axis(axes)

        return Graph(title, (note,), "epoch", up, painted)

    first, *others = (graph(*quantity) for quantity in _QUANTITIES)
    return [replace(first, heading=block.title), *others]


def coincide(one: Curve, other: Curve) -> bool:
    """Whether one line would hide the other: nowhere further apart than it is wide."""
    if one.epochs != other.epochs:
        return False
    extent = max((*one.mean, *other.mean)) - min((*one.mean, *other.mean))
    gaps = (abs(a - b) for a, b in zip(one.mean, other.mean, strict=True))
    return max(gaps) <= _LINE_WIDTH * extent


def _draw_cell(
    axes: Axes, group: CellGroup, rows: _Rows, column: str, look: Look, drawn: list[Curve]
) -> None:
    """Draw a cell's line, in dashes upon one that it would hide; `drawn` are those before it."""
    for run, values in _runs(group, rows, column):
        if run.status != "ok" and values:
            _draw_stopped(axes, values, look)
    curve = _mean_of(group, rows, column)
    if curve is None:
        return
    hides = look.dashes == "-" and any(coincide(curve, other) for other in drawn)
    drawn.append(curve)
    axes.plot(
        curve.epochs,
        curve.mean,
        color=look.colour,
        linestyle=_UPON_ANOTHER if hides else look.dashes,
        linewidth=1.5,
        marker=look.marker if len(curve.epochs) == 1 else "",  # which has no line to see
        markersize=4,
        clip_on=False,
    )
    if curve.low:
        axes.fill_between(
            curve.epochs, curve.low, curve.high, color=look.colour, alpha=0.16, linewidth=0
        )


def _runs(group: CellGroup, rows: _Rows, column: str) -> Iterator[tuple[Run, dict[int, float]]]:
    """Yield a cell's trainings, each with a quantity by epoch; accuracies in percent."""
    factor = 100.0 if column.endswith("accuracy") else 1.0
    for run in group.members:
        if run.run_key in rows:
            values = _values(rows[run.run_key], column)
            yield run, {epoch: factor * value for epoch, value in values.items()}


def _mean_of(group: CellGroup, rows: _Rows, column: str) -> Curve | None:
    runs = _runs(group, rows, column)
    return mean_curve([(run.seed, values) for run, values in runs if run.status == "ok"])


def _draw_stopped(axes: Axes, values: Mapping[int, float], look: Look) -> None:
    epochs = sorted(values)
    heights = [values[epoch] for epoch in epochs]
    ends = [epoch + 1 for epoch in epochs]
    axes.plot(ends, heights, color=look.colour, linewidth=0.8, alpha=0.7)
    axes.plot(ends[-1:], heights[-1:], color=look.colour, marker="x", markersize=5)


def _caption(sheet: Sheet, parts: Sequence[Block], rows: _Rows) -> list[str]:
    drawn = [group for part in parts for group in part.groups]
    lines = [provenance(sheet, drawn), _band_note(drawn, rows)]
    if any(_some_coincide(part, rows) for part in parts):
        lines.append("Dashes upon a line of another colour: the two coincide.")
    if any(run.status != "ok" and run.run_key in rows for g in drawn for run in g.members):
        lines.append("Thin lines that end in a cross: trainings that stopped early; no mean.")
    lines += sentences(footnotes(drawn, (), trained=True))
    return lines + [line for group in drawn for line in problem_notes(group)]


def _some_coincide(part: Block, rows: _Rows) -> bool:
    for column, *_ in _QUANTITIES:
        means = [_mean_of(group, rows, column) for group in part.groups]
        known = [curve for curve in means if curve is not None]
        if any(coincide(one, other) for one, other in itertools.combinations(known, 2)):
            return True
    return False


def _band_note(drawn: Sequence[CellGroup], rows: _Rows) -> str:
    seeds = [
        {run.seed for run in group.members if run.status == "ok" and run.run_key in rows}
        for group in drawn
    ]
    counts = {len(each) for each in seeds if each}
    if not counts:
        return "No training finished."
    if counts == {1}:
        return "Lines: one training each, of one seed."
    many = ("Bands", f" (from {MIN_PROCESSES} seeds on)")
    few = ("Bands", f" (under {MIN_PROCESSES})", "from the lowest to the highest seed")
    return f"Lines: {'. '.join(seed_notes(counts, 'line', many, few))}."
