"""Figure 4: memory, accuracy and time per epoch by [method][student][image size].

A panel per quantity, a row per cell. The paper's bars stand hatched below the measured ones. Its
memory counts parameters, which the legend says. Its times come from other hardware, where two
bars on one scale would compare machines and not methods: beside them, time is drawn relative to
the reference cell's, each machine's to its own.
"""

from collections.abc import Iterable, Sequence
from functools import partial

from kdbench.analysis.aggregate import CellGroup
from kdbench.analysis.estimates import format_estimate
from kdbench.analysis.figures import style
from kdbench.analysis.figures.page import Graph, Page, side_by_side
from kdbench.analysis.figures.panels import Bar, Panel, draw_panel
from kdbench.analysis.figures.series import Look
from kdbench.analysis.figures.sheet import Rows, Sheet, excess, headline, provenance
from kdbench.analysis.metrics import METRICS, Metric
from kdbench.analysis.notes import (
    count_note,
    footnotes,
    mark_notes,
    problem_notes,
    sentences,
    source_note,
    warning_notes,
)
from kdbench.analysis.paper_figures import PAPER, reported_for
from kdbench.common.units import axis_unit, format_ratio, format_value

# Both by default: one is what the paper reports, the other is where a card runs out.
DEFAULT_METRICS = ("parameters", "allocated")
_ALWAYS = ("accuracy", "epoch_time")
_MOST_CELLS = 200
_PAPER_LABEL = "reported by the paper (its memory: parameter bytes)"
# Inches.
_WIDTH, _WIDTH_ALONE, _ROW = 2.75, 4.4, 0.47


def plan(sheet: Sheet) -> Page | str:
    """Lay the figure out; where these results cannot give it, say why."""
    if not any(group.finished for group in sheet.groups):
        return "no run finished"
    if too_many := excess(len(sheet.groups), _MOST_CELLS):
        return too_many
    wanted = sheet.metrics or tuple(METRICS[name] for name in DEFAULT_METRICS)
    if not _present(sheet, wanted):
        return "; ".join(f"no {m.name}, which is null when {m.missing_when}" for m in wanted)
    always = [METRICS[name] for name in _ALWAYS]
    drawn = _present(sheet, dict.fromkeys([*wanted, *always]))
    panels = [_panel(sheet, metric) for metric in drawn]
    hatched = any(bar.paper for panel in panels for bar in panel.bars)
    legend = [Look(style.method_name(name), colour) for name, colour in sheet.colours.items()]
    if hatched:
        legend.append(Look(_PAPER_LABEL, style.FAINT, hatch=True))
    rows = Rows(sheet.groups, least=_ROW, padding=0.12)
    columns = side_by_side(len(panels))
    graphs = [
        Graph(p.title, p.notes, p.unit, "", partial(draw_panel, p, rows, index % columns == 0))
        for index, p in enumerate(panels)
    ]
    return Page(
        title=headline(sheet, "What a distillation costs"),
        legend=legend,
        graphs=graphs,
        caption=_caption(sheet, drawn, _paper_notes(panels, drawn) if hatched else ()),
        columns=columns,
        panel=(_WIDTH if columns > 1 else _WIDTH_ALONE, rows.total),
        handles="patches",
        names=rows.names,
        left=0,
    )


def _present(sheet: Sheet, metrics: Iterable[Metric]) -> list[Metric]:
    return [m for m in metrics if any(m.name in group.estimates for group in sheet.groups)]


def _panel(sheet: Sheet, metric: Metric) -> Panel:
    reported = [reported_for(group.settings, metric.name) for group in sheet.groups]
    is_time = metric.name == "epoch_time"
    if is_time and any(value is not None for value in reported):
        relative = _relative_panel(sheet, metric, reported)
        if relative is not None:
            return relative
        reported = [None] * len(reported)
    values = [group.value(metric.name) for group in sheet.groups]
    factor, unit = axis_unit((v for v in [*values, *reported] if v is not None), metric.unit)
    against = sheet.reference and reported_for(sheet.reference.settings, metric.name)
    bars = _bars(
        sheet, metric, reported, own=factor, paper=factor, against=against if against else None
    )
    limit = 100.0 if metric.unit == "fraction" else None
    notes = _notes(sheet, metric)
    if metric.name != "parameters" and metric.is_memory and any(bar.paper for bar in bars):
        notes = (*notes, "hatched: the paper's parameter bytes")
    return Panel(metric.title, notes, unit, bars, limit)


def _relative_panel(sheet: Sheet, metric: Metric, reported: Sequence[float | None]) -> Panel | None:
    """Draw both machines' times over their own reference; None without a reference of both."""
    if sheet.reference is None:
        return None
    estimate = sheet.reference.estimates.get(metric.name)
    theirs = reported_for(sheet.reference.settings, metric.name)
    if estimate is None or estimate.marks or theirs is None:
        return None
    bars = _bars(sheet, metric, reported, own=estimate.value, paper=theirs, against=theirs)
    notes = (*_notes(sheet, metric), "each machine's own reference cell = 1")
    return Panel(metric.title + ", relative", notes, "of the reference cell's time", bars)


def _bars(
    sheet: Sheet,
    metric: Metric,
    reported: Sequence[float | None],
    *,
    own: float,
    paper: float,
    against: float | None,
) -> tuple[Bar, ...]:
    """Make the bars: measured ones divided by `own`, the paper's by `paper`."""
    bars = []
    for row, (group, theirs) in enumerate(zip(sheet.groups, reported, strict=True)):
        bars.append(_measured_bar(sheet, group, metric, row, own))
        if theirs is not None:
            ratio = format_ratio(theirs / against) if against and theirs != against else ""
            text = f"paper {format_value(theirs, metric.unit)} {ratio}".strip()
            colour = sheet.colours[group.method]
            bars.append(Bar(row, theirs / paper, text, colour, paper=True))
    return tuple(bars)


def _measured_bar(sheet: Sheet, group: CellGroup, metric: Metric, row: int, factor: float) -> Bar:
    estimate = group.estimates.get(metric.name)
    if estimate is None:
        missing = "none" if metric.kind_column == "precompute_seconds_kind" else "not available"
        if metric.name == "utilisation" and group.yardstick_off:
            missing = "yardstick off"
        why = group.problems[0][0] if group.problems and not group.finished else missing
        return Bar(row, None, why, sheet.colours[group.method])
    text = format_estimate(estimate, metric)
    if group is sheet.reference:
        text += "  ref"
    else:
        text += f"  {format_ratio(group.ratio_to(sheet.reference, metric.name))}".rstrip()
    ends = estimate.interval
    interval = (ends[0] / factor, ends[1] / factor) if ends else None
    every = (*estimate.values, *estimate.disturbed)
    several = min(every) < max(every)
    return Bar(
        row,
        estimate.value / factor,
        text,
        sheet.colours[group.method],
        interval,
        dots=tuple(value / factor for value in estimate.values) if several else (),
        hollow=tuple(value / factor for value in estimate.disturbed),
        faint=bool(estimate.marks),
    )


def _notes(sheet: Sheet, metric: Metric) -> tuple[str, ...]:
    source = source_note(sheet.groups, metric)
    return (metric.note, *([f"source: {source}"] if source else []))


def _paper_notes(panels: Sequence[Panel], drawn: Sequence[Metric]) -> tuple[str, ...]:
    """Say what the hatched bars are, for the panels that have them."""
    pairs = zip(drawn, panels, strict=True)
    with_paper = [metric for metric, panel in pairs if any(bar.paper for bar in panel.bars)]
    names = {metric.name for metric in with_paper}
    notes = [f"Hatched: as the paper reports ({PAPER}, read off its bars)"]
    if any(metric.is_memory for metric in with_paper):
        notes.append("its memory counts parameter bytes alone, in every panel")
    if "accuracy" in names:
        notes.append("its accuracy is after 200 epochs")
    if "epoch_time" in names:
        notes.append("its times are from the author's hardware")
    return ("; ".join(notes) + ".",)


def _caption(sheet: Sheet, drawn: Sequence[Metric], paper: Sequence[str]) -> list[str]:
    groups = sheet.groups
    lines = [provenance(sheet, groups)]
    if sheet.reference is not None:
        lines.append(f"ref: {sheet.reference.name}; ×2 is twice its value, ÷2 is half of it.")
    estimates = [g.estimates[m.name] for g in groups for m in drawn if m.name in g.estimates]
    counted = count_note(groups, drawn)
    if any(group.finished > 1 for group in groups):
        counted += "; dots: each run, where they differ"
    if any(estimate.disturbed for estimate in estimates):
        counted += "; hollow: a contended one, left out"
    if any(estimate.interval for estimate in estimates):
        counted += "; whiskers: 95 % interval over them"
    lines += [f"{counted}.", *paper, *sentences(footnotes(groups, drawn))]
    notes = mark_notes(groups, drawn)
    if any(not metric.is_memory or metric.name == "device" for metric in drawn):
        notes += warning_notes(groups)
    for note in notes:
        lines += sentences([note])
    return lines + [line for group in groups for line in problem_notes(group)]
