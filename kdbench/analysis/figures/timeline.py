"""A step's memory over its course: live bytes by category after each allocation and free."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from kdbench.analysis.aggregate import CellGroup
from kdbench.analysis.breakdown import STACK, first_run
from kdbench.analysis.figures import style
from kdbench.analysis.figures.memory import category_look
from kdbench.analysis.figures.page import Graph, Page
from kdbench.analysis.figures.sheet import Sheet, excess, headline, provenance
from kdbench.analysis.notes import footnotes, sentences
from kdbench.common.errors import printable
from kdbench.common.units import axis_unit, format_value

_MOST_CELLS = 60
_PANEL, _COLUMNS = (3.5, 2.0), 2
# A picture has fewer columns than a large step has moments: of those in one, the fullest is drawn.
_MOST_MOMENTS = 700
# Room above the curves, in which the parts' names stand.
_HEADROOM = 1.16
_BANDS = ("#FFFFFF", "#EEEEEE")


@dataclass(frozen=True, eq=False)
class MemoryTimeline:
    """One step."""

    group: CellGroup  #: its cell
    live: NDArray[np.int64]  #: bytes by category, [categories of `STACK`, moments]
    #: (name, first moment, moment behind the last) in order, without the start
    parts: Sequence[tuple[str, int, int]]

    @property
    def totals(self) -> NDArray[np.int64]:
        """Bytes of all categories after each moment."""
        totals: NDArray[np.int64] = self.live.sum(axis=0)
        return totals

    @property
    def peak(self) -> int:
        """The first moment that has most bytes."""
        return int(self.totals.argmax())


def plan(sheet: Sheet) -> Page | str:
    """Lay the figure out; where these results cannot give it, say why."""
    cells = _rows_by_cell(sheet)
    if not cells:
        return "no run that finished has a ledger's timeline"
    if too_many := excess(len(cells), _MOST_CELLS):
        return too_many
    courses = [course(group, rows) for group, rows in cells]
    there = [name for index, name in enumerate(STACK) if any(c.live[index].any() for c in courses)]
    highest = max(float(one.totals[one.peak]) for one in courses)
    factor, unit = axis_unit([highest], "bytes")
    graphs = [_graph(one, highest=highest, factor=factor, unit=unit) for one in courses]
    return Page(
        title=headline(sheet, "Memory over the course of a step"),
        legend=[category_look(name) for name in there],
        graphs=graphs,
        caption=_caption(sheet, courses),
        columns=min(_COLUMNS, len(graphs)),
        panel=_PANEL,
        handles="patches",
    )


def course(group: CellGroup, rows: pd.DataFrame) -> MemoryTimeline:
    """Put a run's rows of `timeline` together."""
    rows = rows.sort_values("moment", kind="stable")
    moments = rows["moment"].to_numpy(dtype=np.int64)
    count = int(moments[-1]) + 1
    live = np.zeros((len(STACK), count), dtype=np.int64)
    for index, name in enumerate(STACK):
        own = (rows["category"] == name).to_numpy(dtype=bool)
        if own.any():
            sizes = rows["live_bytes"].to_numpy(dtype=np.int64)[own]
            # what was reported last holds until it is reported anew
            live[index] = sizes[np.searchsorted(moments[own], np.arange(count), "right") - 1]
    later = rows[rows["part"] != "start"]
    spans = later.groupby("part", sort=False)["moment"].agg(["min", "max"])
    parts = [
        (str(name), int(first), int(last) + 1)
        for name, first, last in zip(spans.index, spans["min"], spans["max"], strict=True)
    ]
    return MemoryTimeline(group, live, parts)


def _rows_by_cell(sheet: Sheet) -> list[tuple[CellGroup, pd.DataFrame]]:
    """Find the cells with a timeline, each with the rows of its first run that finished."""
    rows = {str(key): frame for key, frame in sheet.results.timeline.groupby("run_key")}
    runs = [(group, first_run(group, set(rows))) for group in sheet.groups]
    return [(group, rows[run]) for group, run in runs if run is not None]


def _graph(one: MemoryTimeline, *, highest: float, factor: float, unit: str) -> Graph:
    during = next((name for name, first, end in one.parts if first <= one.peak < end), "start")
    note = f"peak {format_value(float(one.totals[one.peak]), 'bytes')}, in {printable(during)}"
    star = "*" if one.group.settings["student_inferred"] else ""
    return Graph(
        one.group.name + star,
        (note,),
        "allocations and frees, in their order",
        unit,
        partial(_paint, one, highest / factor, factor),
    )


def _paint(
    one: MemoryTimeline, highest: float, factor: float, axes: Axes, size: tuple[float, float]
) -> None:
    count = len(one.totals)
    axes.set_xlim(0, count)
    axes.set_ylim(0, highest * _HEADROOM)
    axes.grid(visible=False, axis="x")
    _paint_parts(axes, one, size)
    drawn = _fullest(one.totals)
    edges = np.append(drawn, count)
    floor = np.zeros(len(edges))
    for name, sizes in zip(STACK, one.live, strict=True):
        held = sizes[drawn] / factor
        if not held.any():
            continue
        ceiling = floor + np.append(held, held[-1])
        filling = style.filling(style.CATEGORY_COLOURS[name])
        axes.fill_between(edges, floor, ceiling, step="post", zorder=2, **filling)
        floor = ceiling
    axes.plot(
        [one.peak + 0.5],
        [one.totals[one.peak] / factor],
        marker="v",
        markersize=5,
        color=style.INK,
        markeredgecolor="white",
        markeredgewidth=0.6,
        linestyle="",
        zorder=4,
        clip_on=False,
    )
    axes.xaxis.set_major_locator(style.ticks(6, whole=True))


def _paint_parts(axes: Axes, one: MemoryTimeline, size: tuple[float, float]) -> None:
    """Shade the parts by turns, and name those that are wide enough for it."""
    _, top = axes.get_ylim()
    inch = size[0] / len(one.totals)
    for index, (name, first, end) in enumerate(one.parts):
        axes.axvspan(first, end, color=_BANDS[index % 2], linewidth=0, zorder=0)
        if style.text_width(name, style.SMALL) + 0.02 > (end - first) * inch:
            continue
        axes.text(
            (first + end) / 2,
            top * 0.985,
            printable(name),
            ha="center",
            va="top",
            fontsize=style.SMALL,
            color=style.FAINT,
            **style.PLAIN,
        )


def _fullest(totals: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose the moments to draw: of each run of neighbours the first with most bytes."""
    ends = np.unique(np.linspace(0, len(totals), _MOST_MOMENTS + 1).astype(np.int64))
    chosen = [a + int(totals[a:b].argmax()) for a, b in pairwise(ends)]
    # the last moment too: what is live at the end
    return np.unique(np.array([0, *chosen, len(totals) - 1]))


_PREDICTED = "Bytes after each predicted allocation and free of a steady step"
_MEASURED = (
    "Live bytes of one un-timed accounting step after each allocation and free that its ledger saw"
)


def _caption(sheet: Sheet, courses: Sequence[MemoryTimeline]) -> list[str]:
    groups = [one.group for one in courses]
    what = _MEASURED if sheet.environment.profile is None else _PREDICTED
    names = dict.fromkeys(name for one in courses for name, _, _ in one.parts)
    lines = [
        provenance(sheet, groups),
        f"{what}: the horizontal axis counts them, and is no time. Shaded by turns: the "
        f"parts of the step, in the order {', '.join(printable(name) for name in names)}; a part "
        "too narrow for its name has none. The mark: the peak. All cells on one scale.",
    ]
    return lines + sentences(footnotes(groups, ()))
