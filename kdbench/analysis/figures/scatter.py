"""A panel of named points with the front of those that no other beats."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from kdbench.analysis.figures import style
from kdbench.analysis.figures.labels import TIED_FROM, Box, Placed, place_labels
from kdbench.analysis.figures.series import Look

# From this ratio of the largest to the smallest cost on, the axis is logarithmic.
_LOG_FROM = 12.0
_HALF_BAR = 0.02


@dataclass(frozen=True)
class Point:
    """A cell in a panel, in the panel's units; `low` and `high` are the ends of its bar."""

    cost: float
    accuracy: float
    low: float
    high: float
    look: Look
    text: str
    #: nothing is to be concluded from its cost: it is drawn pale, and is not on the front
    faint: bool = False


@dataclass(frozen=True)
class Scatter:
    """Points with all that is decided about them before anything is drawn."""

    points: Sequence[Point]
    best: Sequence[int]
    logarithmic: bool
    across: tuple[float, float]
    up: tuple[float, float]
    names: Sequence[Placed]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices, by cost, of the (cost, accuracy) points that no other beats.

    One beats another that costs no less and is no better, unless they are equal in both.
    """
    best, kept = -math.inf, list[int]()
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        equal = bool(kept) and points[kept[-1]] == points[index]
        if points[index][1] > best or equal:
            kept.append(index)
            best = points[index][1]
    return kept


def plan_scatter(
    points: Sequence[Point], size: tuple[float, float], *, strict: bool
) -> Scatter | None:
    """Choose the axes, `size` inches wide and high, and a place for every name.

    If `strict`, every name must stand clear of the lines and near its point; None if one cannot.
    """
    costs = [point.cost for point in points]
    logarithmic = min(costs) > 0 and max(costs) / min(costs) >= _LOG_FROM
    across = _limits([math.log10(cost) for cost in costs] if logarithmic else costs, 0.2)
    if not logarithmic and min(costs) >= 0:
        across = (max(across[0], 0.0), across[1])  # no cost is less than nothing
    low, high = _limits([end for point in points for end in (point.low, point.high)], 0.12)
    up = max(low, 0.0), min(high, 100.0)  # there is no accuracy beyond
    sure = [index for index, point in enumerate(points) if not point.faint]
    best = [sure[i] for i in pareto_front([(points[n].cost, points[n].accuracy) for n in sure])]

    def place(cost: float, accuracy: float) -> tuple[float, float]:
        x = math.log10(cost) if logarithmic else cost
        return (
            (x - across[0]) / (across[1] - across[0]) * size[0],
            (accuracy - up[0]) / (up[1] - up[0]) * size[1],
        )

    places = [place(point.cost, point.accuracy) for point in points]
    bars = [
        Box(x - _HALF_BAR, place(p.cost, p.low)[1], x + _HALF_BAR, place(p.cost, p.high)[1])
        for p, (x, _) in zip(points, places, strict=True)
    ]
    sizes = [_text_size(point.text) for point in points]
    stairs = _stairs([places[index] for index in best], size[0])
    names = place_labels(places, sizes, room=size, taken=[*bars, *stairs])
    if names is None and strict:
        return None
    if names is None:
        names = place_labels(places, sizes, room=size, far=True)
    if names is None:
        names = [_beside(at, point.text) for at, point in zip(places, points, strict=True)]
    return Scatter(points, best, logarithmic, across, up, names)


def draw_scatter(scatter: Scatter, axes: Axes, size: tuple[float, float]) -> None:
    """Draw a panel that was planned for axes of this size, in inches."""
    _scale(axes, scatter)
    best = [scatter.points[index] for index in scatter.best]
    # On to the edge: what costs more and is no better lies below the line.
    right = 10 ** scatter.across[1] if scatter.logarithmic else scatter.across[1]
    axes.step(
        [*(point.cost for point in best), *([right] if best else [])],
        [*(point.accuracy for point in best), *([best[-1].accuracy] if best else [])],
        where="post",
        color=style.FAINT,
        linewidth=0.9,
        linestyle=(0, (4, 2)),
        zorder=1,
    )
    for index, (point, placed) in enumerate(zip(scatter.points, scatter.names, strict=True)):
        colour = style.shade(point.look.colour, 0.6) if point.faint else point.look.colour
        if point.low < point.high:
            axes.vlines(point.cost, point.low, point.high, color=colour, linewidth=1.0)
        axes.plot(
            [point.cost],
            [point.accuracy],
            marker=point.look.marker,
            markersize=6.5,
            # Filled: on the front.
            markerfacecolor=colour if index in scatter.best else "white",
            markeredgecolor=colour,
            markeredgewidth=1.3,
            linestyle="",
            zorder=3,
            clip_on=False,
        )
        _write_name(axes, point, placed, size)


def _limits(values: Sequence[float], room: float) -> tuple[float, float]:
    """Span the values, with room for names around them, as a share of the span."""
    low, high = min(values), max(values)
    span = (high - low) or abs(high) * 0.2 or 1.0
    return low - room * span, high + room * span


def _text_size(text: str) -> tuple[float, float]:
    lines = text.count("\n") + 1
    return style.text_width(text, style.SMALL) + 0.04, lines * style.line_height(style.SMALL) + 0.02


def _stairs(places: Sequence[tuple[float, float]], right: float) -> list[Box]:
    """Cover the front's line with thin boxes, which names keep off."""
    boxes = []
    for index, (x, y) in enumerate(places):
        end, top = places[index + 1] if index + 1 < len(places) else (right, y)
        boxes += [Box(x, y - 0.01, end, y + 0.01), Box(end - 0.01, y, end + 0.01, top)]
    return boxes


def _beside(place: tuple[float, float], text: str) -> Placed:
    width, height = _text_size(text)
    left, bottom = place[0] + 0.07, place[1] - height / 2
    return Placed(Box(left, bottom, left + width, bottom + height), 0.07)


def _scale(axes: Axes, scatter: Scatter) -> None:
    axes.set_ylim(*scatter.up)
    if not scatter.logarithmic:
        axes.set_xlim(*scatter.across)
        axes.xaxis.set_major_locator(style.ticks(4))
        return
    low, high = scatter.across
    axes.set_xscale("log")
    axes.set_xlim(10**low, 10**high)
    steps = (1, 2, 5) if high - low < 2.2 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    ticks = [tick for tick in ticks if 10**low <= tick <= 10**high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:,g}" for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())


def _write_name(axes: Axes, point: Point, placed: Placed, size: tuple[float, float]) -> None:
    box = placed.box
    middle = ((box.left + box.right) / 2 / size[0], (box.bottom + box.top) / 2 / size[1])
    tie = {"arrowstyle": "-", "color": style.FAINT, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
    axes.annotate(
        point.text,
        (point.cost, point.accuracy),
        xytext=middle,
        textcoords="axes fraction",
        ha="center",
        va="center",
        fontsize=style.SMALL,
        linespacing=1.2,
        arrowprops=tie if placed.distance > TIED_FROM else None,
        zorder=4,
        **style.PLAIN,
    )
