"""A page of panels for one matrix and environment: layout, legend and caption."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from kdbench.analysis.aggregate import CellGroup
from kdbench.analysis.environments import Environment
from kdbench.analysis.figures import style
from kdbench.analysis.figures.panels import Panel, draw_panel
from kdbench.analysis.metrics import Metric
from kdbench.analysis.notes import count_note, doubt_notes, footnotes, problem_notes
from kdbench.analysis.results import Results
from kdbench.analysis.uncertainty import mark_notes
from kdbench.common.text import fold_label, printable

# All in inches.
_PANEL_WIDTH, _MARGIN, _GUTTER, _ROW = 2.75, 0.2, 0.28, 0.47
_AXIS = 0.42
_LABEL_LETTERS = 26
_TIE = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True, eq=False)
class Sheet:
    """What a figure is drawn from: never more than one matrix and one environment."""

    matrix: str
    environment: Environment
    results: Results  #: the rows
    #: the same, put together by cell, in the order in which they are drawn
    groups: Sequence[CellGroup]
    reference: CellGroup | None  #: the cell that ratios are taken to
    metrics: tuple[Metric, ...] = ()  #: what the user asked for; empty for the figure's own choice

    @property
    def colours(self) -> dict[str, str]:
        """A colour for each of its methods, the same in every figure of the sheet."""
        return style.method_colours(dict.fromkeys(group.method for group in self.groups))


def draw_sheet(
    sheet: Sheet,
    panels: Sequence[Panel],
    shown: Sequence[Metric],
    *,
    title: str,
    paper: Sequence[str],
) -> Figure:
    """Lay panels out, up to three in a row, with the cells' names on the left of each row.

    `shown` are the metrics whose marks the footnotes explain; `paper` says what the paper's bars
    are.
    """
    layout = _layout(sheet, panels, hatched=bool(paper))
    inner = layout.width - 2 * _MARGIN
    top = style.wrapped([headline(sheet, title)], style.TITLE, inner)
    caption = style.wrapped(_caption(sheet, shown, paper), style.SMALL, inner)
    headroom = _height(top, style.TITLE)
    above = headroom + style.line_height(style.BODY) + 0.28
    below = len(caption) * style.line_height(style.SMALL) + 0.1
    middle = sum(head + layout.plot + _AXIS for head in layout.heads)
    height = 2 * _MARGIN + above + middle + below
    figure = style.new_figure(layout.width, height)
    style.write_lines(figure, top, left=_MARGIN, top=height - _MARGIN, size=style.TITLE)
    _draw_legend(figure, _legend(sheet, hatched=bool(paper)), height - _MARGIN - headroom - 0.04)
    ceiling = height - _MARGIN - above
    for down, head in enumerate(layout.heads):
        row = panels[down * layout.across : (down + 1) * layout.across]
        _draw_row(figure, row, layout, ceiling, head)
        ceiling -= head + layout.plot + _AXIS
    style.write_lines(
        figure, caption, left=_MARGIN, top=ceiling - 0.1, size=style.SMALL, colour=style.FAINT
    )
    return figure


def headline(sheet: Sheet, title: str) -> str:
    """Head a figure: what it shows, of which matrix, and whether anything of it was measured."""
    told = f"{title}: {printable(sheet.matrix)}"
    predicted = sheet.environment.profile is not None
    return f"{told} (predicted, not measured)" if predicted else told


@dataclass(frozen=True)
class _Layout:
    """Where things go, in inches: `heads` are the heights of the titles of each row of panels."""

    labels: Sequence[str]
    positions: Sequence[float]
    names: float
    across: int
    panel: float
    row: float
    heads: Sequence[float]

    @property
    def width(self) -> float:
        panels = self.across * self.panel + (self.across - 1) * _GUTTER
        return 2 * _MARGIN + self.names + panels

    @property
    def plot(self) -> float:
        return self.row * (self.positions[-1] + 1)


def _layout(sheet: Sheet, panels: Sequence[Panel], *, hatched: bool) -> _Layout:
    labels = row_labels(sheet.groups)
    across = 2 if len(panels) in (2, 4) else min(3, len(panels))
    names = max(style.text_width(label, style.BODY) for label in labels) + 0.12
    # One panel alone must still be wide enough for the legend above it.
    legend = sum(
        style.text_width(str(h.get_label()), style.BODY) + 0.55
        for h in _legend(sheet, hatched=hatched)
    )
    panel = max(_PANEL_WIDTH, (legend - names - (across - 1) * _GUTTER) / across)
    tallest = max(label.count("\n") + 1 for label in labels)
    heads = [_head(p, panel) for p in panels]
    tall = [_height(title, style.PANEL) + _height(notes, style.SMALL) for title, notes in heads]
    return _Layout(
        labels=labels,
        positions=row_positions(sheet.groups),
        names=names,
        across=across,
        panel=panel,
        row=max(_ROW, tallest * style.line_height(style.BODY) + 0.12),
        heads=[max(tall[i : i + across]) + 0.1 for i in range(0, len(tall), across)],
    )


def _draw_row(
    figure: Figure, panels: Sequence[Panel], layout: _Layout, ceiling: float, head: float
) -> None:
    for along, panel in enumerate(panels):
        left = _MARGIN + layout.names + along * (layout.panel + _GUTTER)
        title, notes = _head(panel, layout.panel)
        style.write_lines(figure, title, left=left, top=ceiling, size=style.PANEL)
        style.write_lines(
            figure,
            notes,
            left=left,
            top=ceiling - _height(title, style.PANEL),
            size=style.SMALL,
            colour=style.FAINT,
        )
        bottom = ceiling - head - layout.plot
        axes = style.place_axes(
            figure, left=left, bottom=bottom, width=layout.panel, height=layout.plot
        )
        draw_panel(
            axes,
            panel,
            layout.positions,
            layout.labels,
            size=(layout.panel, layout.row),
            named=along == 0,
        )


def _head(panel: Panel, width: float) -> tuple[list[str], list[str]]:
    """Break a panel's title and its notes into lines."""
    title = style.wrapped([panel.title], style.PANEL, width)
    return title, style.wrapped(panel.notes, style.SMALL, width)


def _height(lines: Sequence[str], size: float) -> float:
    return len(lines) * style.line_height(size)


def row_labels(groups: Sequence[CellGroup]) -> list[str]:
    """Name each cell by what it differs in: method, student, size, and what else varies."""
    several = len({group.settings["teacher"] for group in groups} - {None}) > 1
    labels = []
    for group in groups:
        settings = group.settings
        star = "*" if settings["student_inferred"] else ""
        lines = [style.method_name(group.method)]
        # A space that is not folded at: "32 px" stays together.
        size = f"{settings['image_size']}{_TIE}px"
        student = f"{printable(settings['student'])}{star}, {size}"
        lines += fold_label(student, _LABEL_LETTERS)
        if several and settings["teacher"]:
            lines += fold_label(printable(settings["teacher"]), _LABEL_LETTERS)
        # Axes beyond the main ones are in the label as name=value; what tells apart cells of one
        # label stands behind it.
        extra = [part for part in printable(group.label).split("/") if "=" in part]
        extra += [group.name[len(printable(group.label)) :].strip()]
        lines += [line for part in extra if part for line in fold_label(part, _LABEL_LETTERS)]
        labels.append("\n".join(lines))
    return labels


def row_positions(groups: Sequence[CellGroup]) -> list[float]:
    """Place rows from the top, a little apart where the method changes."""
    positions = [0.0]
    for before, after in pairwise(groups):
        positions.append(positions[-1] + (1.0 if before.method == after.method else 1.2))
    return positions


def _legend(sheet: Sheet, *, hatched: bool) -> list[Patch]:
    handles = [
        Patch(color=colour, label=style.method_name(method), linewidth=0)
        for method, colour in sheet.colours.items()
    ]
    if hatched:
        label = "reported by the paper (its memory: parameter bytes)"
        paper = Patch(facecolor="white", edgecolor=style.FAINT, hatch="//////", label=label)
        paper.set_linewidth(0.8)
        handles.append(paper)
    return handles


def _draw_legend(figure: Figure, handles: list[Patch], top: float) -> None:
    width, height = figure.get_size_inches()
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(_MARGIN / width, top / height),
        ncols=len(handles),
        frameon=False,
        fontsize=style.BODY,
        borderaxespad=0,
        borderpad=0,
        handlelength=1.6,
        columnspacing=1.4,
    )


def provenance(sheet: Sheet, groups: Sequence[CellGroup]) -> str:
    """Say where, when and by which revision some cells of a sheet were measured."""
    days = sorted({moment.strftime("%Y-%m-%d") for group in groups for moment in group.started})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    revisions = sorted({revision for group in groups for revision in group.revisions})
    made = f"kdbench {', '.join(revisions)}" if revisions else "kdbench"
    how = " and ".join(sorted({group.made for group in groups})).capitalize()
    line = f"{sheet.environment.description}. {how} {when}, {printable(made)}."
    teachers = {group.settings["teacher"] for group in groups} - {None}
    return f"{line} Teacher: {printable(teachers.pop())}." if len(teachers) == 1 else line


def _caption(sheet: Sheet, shown: Sequence[Metric], paper: Sequence[str]) -> list[str]:
    groups = sheet.groups
    lines = [provenance(sheet, groups)]
    if sheet.reference is not None:
        lines.append(f"ref: {sheet.reference.name}; ×2 is twice its value, ÷2 is half of it.")
    whiskers = any(
        (estimate := group.estimates.get(metric.name)) and estimate.interval
        for group in groups
        for metric in shown
    )
    told = count_note(groups, shown)
    dots = "; dots: each run, where they differ" if any(g.finished > 1 for g in groups) else ""
    shown_estimates = [g.estimates[m.name] for g in groups for m in shown if m.name in g.estimates]
    if any(estimate.disturbed for estimate in shown_estimates):
        dots += "; hollow: a contended one, left out"
    lines.append(f"{told}{dots}" + ("; whiskers: 95 % interval over them." if whiskers else "."))
    lines += paper
    marks = footnotes(groups, shown)
    lines += [". ".join(marks) + "."] if marks else []
    lines += [f"{line}." for line in mark_notes(groups, shown)]
    if any(not metric.is_memory or metric.name == "device" for metric in shown):
        lines += [f"{line}." for line in doubt_notes(groups)]
    return lines + [line for group in groups for line in problem_notes(group)]
