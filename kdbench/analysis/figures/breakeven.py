"""Cumulative cost against epochs: when has a precompute paid for itself?

A method that precomputes starts at what that took; one that runs the teacher on every batch
starts at 0 and rises faster, if it does. Which is which is read from what was measured, not from
the methods' names.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from kdbench.analysis.aggregate import CellGroup
from kdbench.analysis.figures import style
from kdbench.analysis.figures.page import Graph, Page, side_by_side
from kdbench.analysis.figures.series import Look, blocks, distinguishing_settings, variant_name
from kdbench.analysis.figures.sheet import Sheet, block_title, excess, headline, provenance
from kdbench.analysis.notes import footnotes, sentences, warning_notes
from kdbench.analysis.reference import (
    Payback,
    find_rivals,
    is_extrapolated,
    payback,
    payback_text,
    span,
    step_cost,
)
from kdbench.common.units import axis_unit, format_value

_MOST_PANELS = 24
_EXTRAPOLATED = (0, (5, 1.6))
_BEHIND = 2.2  # how far the axis goes on behind the last break-even


@dataclass(frozen=True, eq=False)
class Family:
    """Cells that differ in the method alone."""

    once: Sequence[tuple[CellGroup, Payback]]  #: with a precompute, each with when it has paid
    rivals: Sequence[CellGroup]  #: those that run the teacher on every batch

    @property
    def groups(self) -> list[CellGroup]:
        """All its cells, the rivals first."""
        return [*self.rivals, *(group for group, _ in self.once)]


@dataclass(frozen=True)
class Axis:
    """The horizontal axis: `per_unit` steps are one unit of it, and it ends at `end` units."""

    name: str
    per_unit: int
    end: float


def plan(sheet: Sheet) -> Page | str:
    """Lay the figure out; where these results cannot give it, say why."""
    found = families(sheet.groups)
    if not found:
        return (
            "no cell with a precompute finished beside one of the same settings that runs the "
            "teacher on every batch"
        )
    if too_many := excess(len(found), _MOST_PANELS, "panels are more than fit"):
        return too_many
    drawn = [group for family in found for group in family.groups]
    chosen = _looks(sheet, drawn)
    names = distinguishing_settings([family.groups[0] for family in found])
    graphs = [_graph(family, names, chosen) for family in found]
    return Page(
        title=headline(sheet, "When the precompute has paid for itself"),
        legend=list(chosen.values()),
        graphs=graphs,
        caption=_caption(sheet, drawn),
        columns=side_by_side(len(graphs)),
        panel=(4.4, 2.6) if len(graphs) == 1 else (2.75, 2.0),
    )


def families(groups: Sequence[CellGroup]) -> list[Family]:
    """Find the cells that can be set against each other, by student and image size."""
    found: list[Family] = []
    seen: set[int] = set()
    for block in blocks(groups):
        for group in block.groups:
            rivals = [g for g in find_rivals(group, groups) if step_cost(g) is not None]
            paid = payback(group, groups)
            if id(group) in seen or paid is None:
                continue
            once = [(group, paid)]
            # The others with a precompute have the very same rivals.
            for other in block.groups:
                same = other is not group and find_rivals(other, groups) == rivals
                if same and (also := payback(other, groups)) is not None:
                    once.append((other, also))
            seen |= {id(other) for other, _ in once}
            found.append(Family(once, rivals))
    return found


def choose_axis(family: Family) -> Axis:
    """Choose how far to draw: the whole training, or less where all has paid long before.

    A break-even that the training never reaches stays beyond the axis: the panel says where.
    """
    first, _ = family.once[0]
    epochs = int(first.settings["epochs"])
    per_epoch = first.steps_per_epoch
    paid = [end for _, p in family.once for end in _ends(p) if math.isfinite(end)]
    if per_epoch is None:
        return Axis("optimizer steps", 1, _BEHIND * max(paid, default=1000.0))
    within = [steps for steps in paid if steps <= epochs * per_epoch]
    end = float(epochs)
    if within and len(within) == len(family.once):
        end = min(end, _BEHIND * max(within) / per_epoch)
    return (
        Axis("epochs", per_epoch, end)
        if end >= 1
        else Axis("optimizer steps", 1, max(end * per_epoch, 1.0))
    )


def _looks(sheet: Sheet, drawn: Sequence[CellGroup]) -> dict[str, Look]:
    """Choose a line per method, dashed where all its times are extrapolated."""
    chosen = {}
    for method, colour in sheet.colours.items():
        if own := [group for group in drawn if group.method == method]:
            dashes = _EXTRAPOLATED if all(map(is_extrapolated, own)) else "-"
            chosen[method] = Look(style.method_name(method), colour, dashes)
    return chosen


def _graph(family: Family, names: Sequence[str], chosen: Mapping[str, Look]) -> Graph:
    axis = choose_axis(family)
    costs = [(group, *_line(group, axis)) for group in family.groups]
    factor, unit = axis_unit((start + slope * axis.end for _, start, slope in costs), "seconds")

    ends = [0, axis.end]

    def heights(start: float, slope: float) -> list[float]:
        return [(start + slope * end) / factor for end in ends]

    def painted(axes: Axes, _size: tuple[float, float]) -> None:
        for group, start, slope in costs:
            colour = chosen[group.method].colour
            low, high = _band(group, axis)
            if low != high:
                lower, upper = heights(*low), heights(*high)
                axes.fill_between(ends, lower, upper, color=colour, alpha=0.16, linewidth=0)
            dashes = _EXTRAPOLATED if is_extrapolated(group) else "-"
            line = heights(start, slope)
            axes.plot(ends, line, color=colour, linestyle=dashes, linewidth=1.6)
        for group, found in family.once:
            _mark(axes, group, found, axis, factor, chosen[group.method].colour)
        axes.set_xlim(0, axis.end)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(style.ticks(5))

    first = family.groups[0]
    title = ", ".join(filter(None, (block_title(first), variant_name(first, names))))
    return Graph(title, tuple(_notes(family)), axis.name, f"cumulative time, {unit}", painted)


def _line(group: CellGroup, axis: Axis) -> tuple[float, float]:
    """Return where a cell's line starts and how much it rises per unit of the axis, in seconds."""
    cost = step_cost(group)
    return group.value("precompute_time") or 0.0, (cost.value if cost else 0.0) * axis.per_unit


def _band(group: CellGroup, axis: Axis) -> list[tuple[float, float]]:
    """Return the same of the runs, or of the medians' intervals: the lowest and the highest."""
    once, cost = group.estimates.get("precompute_time"), step_cost(group)
    starts = span(once) if once else (0.0, 0.0)
    slopes = cost.ends if cost else (0.0, 0.0)
    return [(a, b * axis.per_unit) for a, b in zip(starts, slopes, strict=True)]


def _ends(found: Payback) -> tuple[float, ...]:
    """Return what of a break-even is to be seen, in steps: one point, two ends, or none."""
    if found.is_one_number:
        return (found.steps,)
    return found.ends if found.is_range else ()


def _mark(
    axes: Axes, group: CellGroup, found: Payback, axis: Axis, factor: float, colour: str
) -> None:
    ends = [end / axis.per_unit for end in _ends(found)]
    if len(ends) == 2:
        axes.axvspan(*ends, color=colour, alpha=0.1, linewidth=0, zorder=0)
    if len(ends) != 1 or not ends[0] <= axis.end:
        return
    place = ends[0]
    start, slope = _line(group, axis)
    height = (start + slope * place) / factor
    axes.vlines(place, 0, height, color=colour, linewidth=0.9, linestyle=":")
    axes.plot(
        [place],
        [height],
        marker="o",
        markersize=6.5,
        markerfacecolor="white",
        markeredgecolor=colour,
        markeredgewidth=1.5,
        zorder=4,
    )


def _notes(family: Family) -> Iterator[str]:
    """Write when each has paid, with whom it was compared where there are several."""
    for group, found in family.once:
        once = group.estimates["precompute_time"]
        mark = "~" if once.extrapolated else ""
        text = f"{style.method_name(group.method)}: {mark}{format_value(once.value, 'seconds')}"
        rival = style.method_name(found.rival.method) if len(family.rivals) > 1 else ""
        text += f" of precompute {payback_text(found, rival)}"
        epochs = int(group.settings["epochs"])
        if found.is_one_number and found.epochs is not None and epochs < found.epochs < math.inf:
            text += f", beyond the training's {epochs:,} epochs"
        yield text


def _caption(sheet: Sheet, drawn: Sequence[CellGroup]) -> list[str]:
    lines = [
        provenance(sheet, drawn),
        "Training time alone (no evaluation, no loading of models): the precompute, then the "
        "median time per epoch times the epochs. A circle, or an upright band where the runs "
        "differ: there a precompute has paid. One that was reused from a cache counts with what "
        "it cost when it was made.",
    ]
    if any(group.finished > 1 for group in drawn):
        lines.append(
            "Bands along lines: from the lowest to the highest of the runs, from 6 runs on the "
            "medians' 95 % intervals."
        )
    marks = footnotes(drawn, ())
    if any(e.extrapolated for group in drawn for e in group.estimates.values()):
        marks.append("~ extrapolated from the steps or batches that were timed")
    if any(is_extrapolated(group) for group in drawn):
        marks.append("Dashed: the median step times the steps, not whole epochs")
    return lines + sentences(marks + warning_notes(drawn))
