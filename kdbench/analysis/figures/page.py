"""A page of graphs: panels in blocks, with one legend and one caption for all.

Everything is placed in inches from measured text, so that nothing overlaps or is cut.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from kdbench.analysis.figures import style
from kdbench.analysis.figures.series import Look

# All in inches. A panel's axes stand `_LEFT` in, which its numbers and its name need.
_MARGIN, _LEFT, _BELOW, _GUTTER = 0.2, 0.58, 0.46, 0.22
_HANDLE, _APART, _SWATCH = 0.38, 0.24, 0.13


@dataclass(frozen=True)
class Graph:
    """One panel."""

    title: str  #: what it shows
    notes: tuple[str, ...]  #: small print under the title, a paragraph each
    across: str  #: the name of the horizontal axis
    up: str  #: the name of the vertical axis
    #: draws into the axes, whose size is given in inches
    draw: Callable[[Axes, tuple[float, float]], None]
    heading: str = ""  #: stands above the row of graphs that it is the first of


@dataclass(frozen=True)
class Page:
    """A whole figure."""

    title: str  #: its headline
    legend: Sequence[Look]  #: the lines' looks, in order
    graphs: Sequence[Graph]
    caption: Sequence[str]  #: what a reader must know, a paragraph each
    columns: int  #: how many graphs stand side by side
    panel: tuple[float, float]  #: width and height of a graph's axes, in inches
    #: whether the legend shows `lines`, `points`, `both`, or `patches` of colour
    handles: str = "lines"
    #: the legend's entries stand in columns of one width, as a list that is looked up in
    table: bool = False
    left: float = _LEFT  #: room for what is written on the left of each graph's axes, in inches
    names: float = 0.0  #: room on the left of each row of graphs, for the names of what it shows


def side_by_side(count: int) -> int:
    """Choose how many of so many graphs stand in a row."""
    return 2 if count in (2, 4) else min(3, count)


def draw_page(page: Page) -> Figure:
    """Lay a page out and draw it."""
    across = page.columns * (page.left + page.panel[0]) + (page.columns - 1) * _GUTTER
    width = 2 * _MARGIN + page.names + across
    inner = width - 2 * _MARGIN
    top = style.wrapped([page.title], style.TITLE, inner)
    caption = style.wrapped(page.caption, style.SMALL, inner)
    handle = 0.22 if page.handles in ("points", "patches") else _HANDLE
    legend = _flow(page.legend, inner, handle, table=page.table)
    rows = _rows(page)
    height = (
        2 * _MARGIN
        + len(top) * style.line_height(style.TITLE)
        + 0.06
        + _legend_height(legend)
        + sum(row.height for row in rows)
        + 0.12
        + len(caption) * style.line_height(style.SMALL)
    )
    figure = style.new_figure(width, height)
    ceiling = height - _MARGIN
    style.write_lines(figure, top, left=_MARGIN, top=ceiling, size=style.TITLE)
    ceiling -= len(top) * style.line_height(style.TITLE) + 0.06
    _draw_legend(figure, legend, ceiling, page.handles, handle)
    ceiling -= _legend_height(legend)
    for row in rows:
        _draw_row(figure, row, page, ceiling)
        ceiling -= row.height
    style.write_lines(
        figure, caption, left=_MARGIN, top=ceiling - 0.12, size=style.SMALL, colour=style.FAINT
    )
    return figure


@dataclass(frozen=True)
class _Row:
    """Graphs side by side: `head` is the height of their titles and notes."""

    graphs: Sequence[Graph]
    notes: Sequence[Sequence[str]]
    titles: Sequence[Sequence[str]]
    head: float
    height: float


def _rows(page: Page) -> list[_Row]:
    rows = []
    wide = page.panel[0] + page.left - 0.1
    for start in range(0, len(page.graphs), page.columns):
        graphs = page.graphs[start : start + page.columns]
        titles = [style.wrapped([graph.title], style.PANEL, wide) for graph in graphs]
        notes = [style.wrapped(graph.notes, style.SMALL, wide) for graph in graphs]
        head = 0.1 + max(
            len(title) * style.line_height(style.PANEL) + len(note) * style.line_height(style.SMALL)
            for title, note in zip(titles, notes, strict=True)
        )
        above = style.line_height(style.PANEL) + 0.12 if graphs[0].heading else 0.0
        height = above + head + page.panel[1] + _BELOW + 0.08
        rows.append(_Row(graphs, notes, titles, head, height))
    return rows


def _draw_row(figure: Figure, row: _Row, page: Page, ceiling: float) -> None:
    if heading := row.graphs[0].heading:
        top = ceiling - 0.06
        style.write_lines(figure, [heading], left=_MARGIN, top=top, size=style.PANEL, weight="bold")
        ceiling -= style.line_height(style.PANEL) + 0.12
    width, height = page.panel
    across, up = figure.get_size_inches()
    for along, graph in enumerate(row.graphs):
        left = _MARGIN + page.names + along * (page.left + width + _GUTTER)
        title = row.titles[along]
        style.write_lines(figure, title, left=left, top=ceiling, size=style.PANEL)
        style.write_lines(
            figure,
            row.notes[along],
            left=left,
            top=ceiling - len(title) * style.line_height(style.PANEL),
            size=style.SMALL,
            colour=style.FAINT,
        )
        x, y = left + page.left, ceiling - row.head - height
        axes = figure.add_axes((x / across, y / up, width / across, height / up))
        style.graph_axes(axes, across=graph.across, up=graph.up)
        graph.draw(axes, page.panel)


def _flow(
    looks: Sequence[Look], inner: float, handle: float, *, table: bool
) -> list[list[tuple[Look, list[str], float]]]:
    """Break the legend into rows; a label wider than the page is folded."""
    rows: list[list[tuple[Look, list[str], float]]] = []
    room = 0.0
    texts = [style.wrapped([look.label], style.BODY, inner - handle - 0.05) for look in looks]
    widths = [
        handle + max(style.text_width(line, style.BODY) for line in lines) + _APART
        for lines in texts
    ]
    if table and widths:
        widths = [max(widths)] * len(widths)
    for look, lines, wide in zip(looks, texts, widths, strict=True):
        if not rows or wide - _APART > room:
            rows.append([])
            room = inner
        rows[-1].append((look, lines, wide))
        room -= wide
    return rows


def _legend_height(legend: Sequence[Sequence[tuple[Look, list[str], float]]]) -> float:
    tallest = [max(len(lines) for _, lines, _ in row) for row in legend]
    return sum(tallest) * style.line_height(style.BODY) + 0.12


def _draw_legend(
    figure: Figure,
    legend: Sequence[Sequence[tuple[Look, list[str], float]]],
    ceiling: float,
    handles: str,
    handle: float,
) -> None:
    for row in legend:
        left = _MARGIN
        for look, lines, wide in row:
            middle = ceiling - 0.38 * style.line_height(style.BODY)
            if handles == "patches":
                _draw_patch(figure, look, left, middle)
            else:
                _draw_line(figure, look, left, middle, handles, handle)
            style.write_lines(figure, lines, left=left + handle, top=ceiling, size=style.BODY)
            left += wide
        ceiling -= max(len(lines) for _, lines, _ in row) * style.line_height(style.BODY)


def _draw_line(
    figure: Figure, look: Look, left: float, middle: float, handles: str, handle: float
) -> None:
    width, height = figure.get_size_inches()
    ends = [left, left + handle / 2 - 0.04, left + handle - 0.08]
    figure.add_artist(
        Line2D(
            [end / width for end in ends],
            [middle / height] * 3,
            color=look.colour,
            linestyle="" if handles == "points" else look.dashes,
            linewidth=1.6,
            marker=look.marker if handles in ("points", "both") else "",
            markevery=[1],
            markersize=5.5,
        )
    )


def _draw_patch(figure: Figure, look: Look, left: float, middle: float) -> None:
    width, height = figure.get_size_inches()
    corner = (left / width, (middle - _SWATCH / 2) / height)
    swatch = Rectangle(corner, _SWATCH / width, _SWATCH / height, transform=figure.transFigure)
    swatch.set(**style.filling(look.colour, look.hatch))
    figure.add_artist(swatch)
