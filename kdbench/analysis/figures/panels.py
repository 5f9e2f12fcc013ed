"""One panel of horizontal bars: each with its value written out, and the paper's beside it."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from kdbench.analysis.figures import style
from kdbench.analysis.figures.sheet import Rows

# Bars' thickness in inches: the same all over a panel, thinner where the paper's stand beside.
_ALONE, _BESIDE = 0.29, 0.17
_PALE = 0.65


@dataclass(frozen=True)
class Bar:
    """One bar of a panel, in the panel's own unit."""

    row: int  #: its row, from the top; a row is a cell
    value: float | None  #: its length; None where there is none, and then `text` says why
    text: str  #: what is written at its end
    colour: str  #: of its method
    interval: tuple[float, float] | None = None  #: the ends of the whisker
    paper: bool = False  #: drawn hatched, below the measured one
    dots: tuple[float, ...] = ()  #: where its runs lie, if they are several
    hollow: tuple[float, ...] = ()  #: where runs lie that are not in it
    faint: bool = False  #: drawn pale, since nothing is to be concluded from it

    @property
    def reach(self) -> float:
        """How far it goes, with its whisker and its dots."""
        whisker = self.interval[1] if self.interval else 0.0
        return max(self.value or 0.0, whisker, *self.dots, *self.hollow)


@dataclass(frozen=True)
class Panel:
    """A panel: what it shows, what that means, and its bars."""

    title: str  #: the metric's name
    notes: tuple[str, ...]  #: what it means and where it comes from, a line each
    unit: str  #: written under the axis
    bars: tuple[Bar, ...]
    #: where the axis ends at the latest, such as 100 %; None for no limit
    limit: float | None = None


def draw_panel(
    panel: Panel, rows: Rows, named: bool, axes: Axes, size: tuple[float, float]
) -> None:
    """Draw a panel, with the rows' names if `named`, into axes whose size is in inches."""
    rows.prepare(axes, named=named)
    end = _end(panel, size[0])
    axes.set_xlim(0, end)
    both = {bar.row for bar in panel.bars if bar.paper}
    thickness = (_BESIDE if both else _ALONE) / rows.height
    for bar in panel.bars:
        offset = (0.5 if bar.paper else -0.5) if bar.row in both else 0.0
        _draw_bar(axes, bar, rows.positions[bar.row] + offset * thickness, thickness)
    axes.set_xticks([tick for tick in _ticks(panel, end) if tick <= end])


def _ticks(panel: Panel, end: float) -> Sequence[float]:
    if panel.limit is not None:
        return [panel.limit * quarter / 4 for quarter in range(5)]
    locator = MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10])
    return [float(tick) for tick in locator.tick_values(0, end)]


def _draw_bar(axes: Axes, bar: Bar, centre: float, height: float) -> None:
    if bar.value is not None:
        colour = style.shade(bar.colour, _PALE) if bar.faint else bar.colour
        filling = style.filling(colour, hatch=bar.paper)
        if bar.paper:
            filling["linewidth"] = 0.8
        axes.barh(centre, bar.value, height, **filling)
    if bar.value is not None and bar.interval is not None and bar.interval[0] < bar.interval[1]:
        low, high = bar.interval
        axes.errorbar(
            bar.value,
            centre,
            xerr=[[max(0.0, bar.value - low)], [max(0.0, high - bar.value)]],
            color=style.INK,
            linewidth=0.9,
            capsize=2,
        )
    _draw_dots(axes, bar, centre)
    style.write_behind(
        axes,
        bar.text,
        (bar.reach, centre),
        points=5 if bar.dots else 3,
        size=style.SMALL if bar.paper else style.BODY,
        colour=style.FAINT if bar.paper or bar.faint or bar.value is None else style.INK,
    )


def _draw_dots(axes: Axes, bar: Bar, centre: float) -> None:
    """Mark every run on the bar: filled those it stands on, hollow those that were left out."""
    for places, face in ((bar.dots, style.INK), (bar.hollow, "white")):
        axes.plot(
            places,
            [centre] * len(places),
            linestyle="",
            marker="o",
            markersize=2.8,
            markerfacecolor=face,
            markeredgecolor=style.INK,
            markeredgewidth=0.6,
            zorder=4,
            clip_on=False,
        )


def _end(panel: Panel, room: float) -> float:
    """Choose the axis' end so that the text behind every bar fits into `room` inches."""
    end = 0.0
    for bar in panel.bars:
        if bar.value is None:
            continue
        size = style.SMALL if bar.paper else style.BODY
        free = max(room - style.text_width(bar.text, size) - 0.1, 0.2 * room)
        end = max(end, bar.reach * room / free)
    return end or 1.0
