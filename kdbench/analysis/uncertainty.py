"""How sure a number is, in words: its spread over runs, and why some have no ratio."""

from collections.abc import Iterator, Sequence

from kdbench.analysis.aggregate import CellGroup
from kdbench.analysis.estimates import UNSURE, Estimate
from kdbench.analysis.metrics import Metric
from kdbench.common.stats import MAX_AGREEING_RATIO
from kdbench.common.text import printable
from kdbench.common.units import format_interval, format_rate, format_value

_MARK = "?"
_NOTES = {
    "contended": "others were at work in every run behind it",
    "disagree": "its runs, or its interval, span more than "
    f"{100 * (MAX_AGREEING_RATIO - 1):.0f} %, twice what one constant step was seen to differ by "
    "between processes",
}


def format_estimate(estimate: Estimate, metric: Metric) -> str:
    """Write a number with its marks: `~` for extrapolated, `?` for one that has no ratio."""
    before = "~" if estimate.extrapolated else ""
    return before + format_value(estimate.value, metric.unit) + (_MARK if estimate.marks else "")


def format_spread(estimate: Estimate, metric: Metric) -> str:
    """Write an interval, `264–271`, or the range of too few runs for one, `264 to 271`.

    Empty for one run, and where the ends do not differ in the digits shown.
    """
    if estimate.interval is not None:
        return format_interval(estimate.interval, estimate.value, metric.unit)
    return format_interval(estimate.ends, estimate.value, metric.unit).replace("–", " to ")


def spread_note(sheet: Sequence[CellGroup], shown: Sequence[Metric]) -> str:
    """Say what is written below the numbers, as the end of a sentence."""
    found = [
        estimate
        for group in sheet
        for metric in shown
        if (estimate := group.estimates.get(metric.name)) and format_spread(estimate, metric)
    ]
    parts = []
    if any(estimate.interval for estimate in found):
        parts.append("its 95 % interval over them, as 1–2")
    if any(not estimate.interval for estimate in found):
        parts.append("the range of them, as 1 to 2")
    return f"; below it {'; or '.join(parts)}" if parts else ""


def mark_notes(sheet: Sequence[CellGroup], shown: Sequence[Metric]) -> list[str]:
    """Explain why marked numbers have no ratio, a line for each reason."""
    found = dict.fromkeys(
        mark
        for group in sheet
        for metric in shown
        if (estimate := group.estimates.get(metric.name))
        for mark in estimate.marks
    )
    lines = [f"{_MARK} no ratio is drawn: {_NOTES[mark]}" for mark in found if mark in _NOTES]
    if any(
        group.estimates[metric.name].disturbed
        for group in sheet
        for metric in shown
        if metric.name in group.estimates
    ):
        lines.append("times are of the runs that were not contended, where a cell has such runs")
    if any(metric.name == "utilisation" for metric in shown):
        lines += _yardstick_notes(sheet, unsure=UNSURE in found)
    return lines


def _yardstick_notes(sheet: Sequence[CellGroup], *, unsure: bool) -> Iterator[str]:
    """Say what utilisation is a share of, and what is wrong with that."""
    off = [group for group in sheet if group.yardstick_off]
    if off:
        yield (
            f"utilisation: off, since it would be above 100 %, which no step reaches: the "
            f"yardstick, {_yardsticks(off)}, was measured too low; a run on an idle machine mends "
            "it for all"
        )
    rest = [g for g in sheet if "utilisation" in g.estimates and g.yardstick]
    if rest:
        yield f"utilisation: of {_yardsticks(rest)}, the best that the runs here reached"
    if unsure:
        yield (
            f"{_MARK} no ratio of utilisations: no run here measured the yardstick steady and "
            "undisturbed"
        )


def _yardsticks(groups: Sequence[CellGroup]) -> str:
    rates = {str(g.settings["precision"]): g.yardstick for g in groups if g.yardstick}
    return ", ".join(f"{format_rate(rate)} in {printable(p)}" for p, rate in rates.items())
