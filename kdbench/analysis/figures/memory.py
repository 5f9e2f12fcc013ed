"""What a step's memory is for at its peak: a stacked bar per cell, by category."""

from collections.abc import Sequence
from functools import partial

from matplotlib.axes import Axes

from kdbench.analysis.breakdown import STACK, Breakdown, breakdowns, missing_note
from kdbench.analysis.figures import style
from kdbench.analysis.figures.page import Graph, Page
from kdbench.analysis.figures.series import Look
from kdbench.analysis.figures.sheet import Rows, Sheet, excess, headline, provenance
from kdbench.analysis.notes import footnotes, problem_notes, sentences
from kdbench.common.units import axis_unit, format_value

_MOST_CELLS = 200
# Inches.
_WIDTH, _BAR, _PADDING = 5.6, 0.3, 0.14
# A smaller share of the bar is less than a dot.
_LEAST_SEEN = 0.001


def plan(sheet: Sheet) -> Page | str:
    """Lay the figure out; where these results cannot give it, say why."""
    found = breakdowns(sheet.results, sheet.groups)
    if not found:
        return "no run that finished has a ledger's rows of memory"
    if too_many := excess(len(found), _MOST_CELLS):
        return too_many
    rows = Rows([item.group for item in found], least=_BAR + _PADDING, padding=_PADDING)
    factor, unit = axis_unit((float(_total(item)) for item in found), "bytes")

    drawn = partial(_draw_bars, found, rows, factor)
    graph = Graph("By category, at the peak of a step", (), unit, "", drawn)
    return Page(
        title=headline(sheet, "What a step's memory is for"),
        legend=_legend(found),
        graphs=[graph],
        caption=_caption(sheet, found),
        columns=1,
        panel=(_WIDTH, rows.total),
        handles="patches",
        names=rows.names,
        left=0,
    )


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
    found: Sequence[Breakdown], rows: Rows, factor: float, axes: Axes, size: tuple[float, float]
) -> None:
    rows.prepare(axes)
    room, thickness = size[0], _BAR / rows.height
    texts = [format_value(_total(item), "bytes") for item in found]
    # The axis ends where the text behind the longest bar still fits.
    end = max(
        _total(item) / factor * room / (room - style.text_width(text, style.BODY) - 0.1)
        for item, text in zip(found, texts, strict=True)
    )
    axes.set_xlim(0, end)
    for item, at, text in zip(found, rows.positions, texts, strict=True):
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
            axes.barh(at, beyond, thickness, left=start, **style.filling(style.FAINT, hatch=True))
        style.write_behind(axes, text, (start + beyond, at))


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
    lines += sentences(footnotes(groups, ()))
    for note in missing_note(sheet.groups, found):
        lines += sentences([note])
    return lines + [line for group in sheet.groups for line in problem_notes(group)]


def _unattributed_notes(found: Sequence[Breakdown]) -> list[str]:
    """Say what the second source makes of the ledger's figures."""
    known = [item for item in found if item.unattributed is not None]
    if not known:
        return ["No second source was there to hold it against."]
    source = "the CUDA allocator" if known[0].group.environment.on_gpu else "torch's profiler"
    gaps = [item.unattributed or 0 for item in known]
    low, high = (format_value(size, "bytes") for size in (min(gaps), max(gaps)))
    span = low if low == high else f"{low} to {high}"
    scratch = max(item.scratch or 0 for item in known)
    of_it = f"; of it scratch within operations, up to {format_value(scratch, 'bytes')}"
    return [
        f"Unattributed: what {source} counts beyond the ledger, {span}{of_it if scratch else ''}."
    ]
