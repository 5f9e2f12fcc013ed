"""What a step's memory is for at its peak: a stacked bar per cell, by category."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdbench.analysis.breakdown import STACK, Breakdown, breakdowns, missing_note
from kdbench.analysis.figures import style
from kdbench.analysis.figures.page import Graph, Page, Section, draw_page
from kdbench.analysis.figures.series import Look
from kdbench.analysis.figures.sheet import Sheet, headline, provenance, row_labels, row_positions
from kdbench.analysis.notes import footnotes, problem_notes, sentences
from kdbench.common.units import axis_unit, format_value

_MOST_CELLS = 200
# Inches.
_WIDTH, _BAR, _PADDING = 5.6, 0.3, 0.14
# A smaller share of the bar is less than a dot.
_LEAST_SEEN = 0.001


def refusal(sheet: Sheet) -> str | None:
    """Say why these results cannot give the figure; None where they can."""
    found = breakdowns(sheet.results, sheet.groups)
    if len(found) > _MOST_CELLS:
        return f"{len(found)} cells are more than fit ({_MOST_CELLS}): narrow with --only"
    return None if found else "no run that finished has a ledger's rows of memory"


def draw(sheet: Sheet) -> Figure:
    """Draw the figure for one matrix and environment."""
    found = breakdowns(sheet.results, sheet.groups)
    labels = row_labels([item.group for item in found])
    positions = row_positions([item.group for item in found])
    tallest = max(label.count("\n") + 1 for label in labels)
    row = max(_BAR + _PADDING, tallest * style.line_height(style.BODY) + _PADDING)
    factor, unit = axis_unit((float(_total(item)) for item in found), "bytes")

    def painted(axes: Axes, size: tuple[float, float]) -> None:
        style.bare_axes(axes)
        axes.set_ylim(positions[-1] + 0.5, -0.5)
        _draw_bars(axes, found, positions, factor=factor, room=size[0], thickness=_BAR / row)
        axes.set_yticks(positions, labels)
        for label in axes.get_yticklabels():
            label.set(fontsize=style.BODY, linespacing=1.25, **style.PLAIN)

    graph = Graph("By category, at the peak of a step", (), unit, "", painted)
    page = Page(
        title=headline(sheet, "What a step's memory is for"),
        legend=_legend(found),
        sections=[Section(None, [graph])],
        caption=_caption(sheet, found),
        columns=1,
        panel=(_WIDTH, row * (positions[-1] + 1)),
        handles="patches",
        names=max(style.text_width(label, style.BODY) for label in labels) + 0.12,
        left=0,
    )
    return draw_page(page)


def _legend(found: Sequence[Breakdown]) -> list[Look]:
    """Name the categories that some cell has, in the order of the stack."""
    there = {part.name for item in found for part in item.categories}
    looks = [category_look(name) for name in STACK if name in there]
    hatched = any(_unattributed(item) for item in found)
    return looks + ([Look("unattributed", style.FAINT, hatch=True)] if hatched else [])


def category_look(name: str) -> Look:
    """Say how a category is drawn."""
    return Look(name.replace("_", " "), style.CATEGORY_COLOURS[name])


def _unattributed(item: Breakdown) -> int:
    """Bytes to draw beyond the ledger's: none where they are too few to be seen."""
    known = item.unattributed or 0
    return known if known > _LEAST_SEEN * item.attributed else 0


def _total(item: Breakdown) -> int:
    return item.attributed + _unattributed(item)


def _draw_bars(
    axes: Axes,
    found: Sequence[Breakdown],
    positions: Sequence[float],
    *,
    factor: float,
    room: float,
    thickness: float,
) -> None:
    texts = [format_value(_total(item), "bytes") for item in found]
    # The axis ends where the text behind the longest bar still fits.
    end = max(
        _total(item) / factor * room / (room - style.text_width(text, style.BODY) - 0.1)
        for item, text in zip(found, texts, strict=True)
    )
    axes.set_xlim(0, end)
    for item, at, text in zip(found, positions, texts, strict=True):
        start = 0.0
        for part in item.categories:
            width = part.size / factor
            filling = style.filling(style.CATEGORY_COLOURS[part.name])
            axes.barh(at, width, thickness, left=start, **filling)
            share = f"{100 * part.size / _total(item):.0f} %"
            if style.text_width(share, style.SMALL) + 0.08 < width / end * room:
                axes.text(
                    start + width / 2,
                    at,
                    share,
                    ha="center",
                    va="center_baseline",
                    fontsize=style.SMALL,
                    color=style.ink_on(style.CATEGORY_COLOURS[part.name]),
                    **style.PLAIN,
                )
            start += width
        beyond = _unattributed(item) / factor
        if beyond:
            filling = style.filling(style.FAINT, hatch=True)
            axes.barh(at, beyond, thickness, left=start, **filling)
        axes.annotate(
            text,
            (start + beyond, at),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=style.BODY,
            annotation_clip=False,
            **style.PLAIN,
        )


_PREDICTED = "Bytes at the predicted peak of a steady step, as its device counts them."
_MEASURED = (
    "Live bytes at the peak of one un-timed accounting step, as the ledger of all allocations "
    "tells; of each cell the first run that finished. "
)


def _caption(sheet: Sheet, found: Sequence[Breakdown]) -> list[str]:
    groups = [item.group for item in found]
    lines = [
        provenance(sheet, groups),
        _PREDICTED
        if sheet.environment.profile is not None
        else _MEASURED + " ".join(_unattributed_notes(found)),
    ]
    marks = footnotes(groups, ())
    lines += sentences(marks)
    lines += [line for note in missing_note(sheet.groups, found) for line in sentences([note])]
    return lines + [line for group in sheet.groups for line in problem_notes(group)]


def _unattributed_notes(found: Sequence[Breakdown]) -> list[str]:
    """Say what the second source makes of the ledger's figures."""
    told = [item for item in found if item.unattributed is not None]
    if not told:
        return ["No second source was there to hold it against."]
    source = "the CUDA allocator" if told[0].group.environment.on_gpu else "torch's profiler"
    gaps = [item.unattributed or 0 for item in told]
    low, high = (format_value(size, "bytes") for size in (min(gaps), max(gaps)))
    span = low if low == high else f"{low} to {high}"
    scratch = max(item.scratch or 0 for item in told)
    of_it = f"; of it scratch within operations, up to {format_value(scratch, 'bytes')}"
    return [
        f"Unattributed: what {source} counts beyond the ledger, {span}{of_it if scratch else ''}."
    ]
