"""The small print under tables and figures: what a reader must know to trust a number."""

from collections.abc import Iterable, Iterator, Sequence

from kdbench.analysis.aggregate import CellGroup
from kdbench.analysis.estimates import UNSURE, Estimate, format_spread
from kdbench.analysis.metrics import Metric
from kdbench.analysis.reference import payback, payback_text
from kdbench.common.errors import printable
from kdbench.common.stats import MAX_AGREEING_RATIO
from kdbench.common.units import format_rate, format_value

_SOURCES = {
    "ledger": "ledger: one accounting step, exact for all that passes through dispatch",
    "profiler": "profiler: torch's own record of one accounting step, for a compiled student",
    "cuda-allocator": "cuda-allocator: exact, the highest of the timed steps",
    "trace": "trace: predicted, exact bytes of what passes through dispatch",
    "simulation": "simulation: predicted, by a model of the CUDA caching allocator",
    "vmhwm": "vmhwm: the kernel's exact high-water mark",
    "polled": "polled: the highest sample, a lower bound",
    "nvml-polled": "nvml-polled: the highest sample, a lower bound",
    "nvml-counter": "nvml-counter: the card's energy counter",
    "nvml-power": "nvml-power: integrated samples of the power draw",
}
_WHY_NO_RATIO = {
    "contended": "others were at work in every run behind it",
    "disagree": "its runs, or its interval, span more than "
    f"{100 * (MAX_AGREEING_RATIO - 1):.0f} %, twice what one constant step was seen to differ by "
    "between processes",
}
_RUN_WARNINGS = {
    "contended": "contended: others were at work, times may be too long, memory is not affected",
    "suspended": "suspended: the machine was, or the process was stopped, in mid-step; such steps "
    "are in no figure",
    "unstable": "unstable: steps changed their level while timed, the median may mislead",
}
_MOST_NAMED = 6


def table_notes(
    sheet: Sequence[CellGroup], reference: CellGroup | None, shown: Sequence[Metric]
) -> list[str]:
    """Write the notes under the table of one matrix and environment, a line each."""
    lines = []
    if reference is not None:
        lines.append(f"ref: {reference.name}; ×2 is twice its value, ÷2 is half of it")
    lines.append(count_note(sheet, shown) + _spread_note(sheet, shown))
    retried = sum(group.retried for group in sheet)
    if retried:
        which = "attempt that failed is" if retried == 1 else "attempts that failed are"
        lines.append(f"{retried} earlier {which} not shown: a later run succeeded")
    lines += older_note(sheet)
    for metric in shown:
        if sources := _found_sources(sheet, metric):
            words = "; ".join(_SOURCES.get(name, printable(name)) for name in sources)
            lines.append(f"{metric.title.lower()}: {words}")
    lines += footnotes(sheet)
    lines += [line for group in sheet for line in _payback_note(group, sheet)]
    lines += [line for group in sheet for line in problem_notes(group)]
    return lines + mark_notes(sheet, shown) + warning_notes(sheet)


def footnotes(
    sheet: Sequence[CellGroup], shown: Iterable[Metric] | None = None, *, trained: bool = False
) -> list[str]:
    """Explain the marks: inferred students, random teachers, extrapolated times, predictions.

    `shown` are the metrics shown (None: all). `trained`: accuracies count, which a random teacher
    makes worthless.
    """
    lines = []
    if any(group.settings["student_inferred"] for group in sheet):
        lines.append("* shape inferred from the memory the paper reports")
    names = None if shown is None else {metric.name for metric in shown}
    if any(
        estimate.extrapolated and (names is None or name in names)
        for group in sheet
        for name, estimate in group.estimates.items()
    ):
        lines.append("~ extrapolated from the steps or batches that were timed")
    if names is None or "allocated" in names:
        lines += _precompute_note(sheet)
    weights: dict[str, set[bool]] = {}
    for settings in (group.settings for group in sheet if group.settings["teacher"] is not None):
        random = settings["teacher_weights"] == "random"
        weights.setdefault(settings["teacher"], set()).add(random)
    drawn = {name: kinds for name, kinds in sorted(weights.items()) if True in kinds}
    if drawn:
        named = ", ".join(f"{n} (in some cells)" if len(k) > 1 else n for n, k in drawn.items())
        whose = f" of {printable(named)}" if any(False in k for k in weights.values()) else ""
        lines.append(
            f"Teacher weights{whose} are random: these accuracies say nothing of a real teacher"
            if trained
            else f"Teacher weights{whose} are random; memory and time do not depend on them"
        )
    caveats = dict.fromkeys(c for g in sheet for text in g.caveats for c in text.split("; "))
    if caveats:
        lines.append(f"Predicted: {printable('; '.join(caveats))}")
    return lines


def sentences(notes: Iterable[str]) -> list[str]:
    """Put notes into one paragraph, if there are any; each starts with a capital."""
    text = ". ".join(note[:1].upper() + note[1:] for note in notes)
    return [f"{text}."] if text else []


def count_note(sheet: Sequence[CellGroup], shown: Iterable[Metric]) -> str:
    """Say how many runs a number stands on."""
    if all(group.is_predicted for group in sheet):
        return "one prediction per cell"
    finished = sorted({group.finished for group in sheet if group.finished})
    if not finished:
        return "no run finished"
    if finished == [1]:
        return "1 run per cell"
    counts = " to ".join(str(count) for count in dict.fromkeys((finished[0], finished[-1])))
    seeds = " (accuracy: the mean over seeds)" if any(m.over_seeds for m in shown) else ""
    return f"{counts} runs per cell, of which the median is shown{seeds}"


def older_note(groups: Iterable[CellGroup]) -> Iterator[str]:
    """Say how many runs are left out since there are later ones."""
    if older := sum(group.older for group in groups):
        yield (
            f"{older} earlier runs of the same seed and repeat are left out: the latest one counts"
        )


def source_note(sheet: Sequence[CellGroup], metric: Metric) -> str:
    """Name a metric's sources in a few words, for the line under a panel's title."""
    return ", ".join(_found_sources(sheet, metric))


def problem_notes(group: CellGroup) -> Iterator[str]:
    """Report each way in which runs of a cell did not finish."""
    for status, error, count in group.problems:
        times = f" ({count} runs)" if count > 1 else ""
        why = f": {printable(error)}" if error else ""
        yield f"{status}{times}: {group.name}{why}"


def warning_notes(sheet: Iterable[CellGroup]) -> list[str]:
    """Name the cells whose runs are flagged, a line for each reason."""
    groups = list(sheet)
    finished = sum(group.finished for group in groups)
    lines = []
    for flag in sorted({name for group in groups for name, _, _ in group.flags}):
        found = [
            (group.name, printable(by or ""), count)
            for group in groups
            for name, by, count in group.flags
            if name == flag
        ]
        causes = {by for _, by, _ in found}
        if sum(count for *_, count in found) == finished > 1:
            cause = f" ({causes.pop()})" if len(causes) == 1 and causes != {""} else ""
            lines.append(f"all {finished} runs were {_RUN_WARNINGS[flag]}{cause}")
        else:
            names = [f"{name} ({by})" if by else name for name, by, _ in found]
            lines.append(f"{_RUN_WARNINGS[flag]}: {_listed(names)}")
    return lines


def mark_notes(sheet: Sequence[CellGroup], shown: Sequence[Metric]) -> list[str]:
    """Explain why marked numbers have no ratio, a line for each reason."""
    found = _estimates(sheet, shown)
    marks = dict.fromkeys(mark for estimate in found for mark in estimate.marks)
    lines = [
        f"? no ratio is drawn: {_WHY_NO_RATIO[mark]}" for mark in marks if mark in _WHY_NO_RATIO
    ]
    if any(estimate.disturbed for estimate in found):
        lines.append("times are of the runs that were not contended, where a cell has such runs")
    if all(metric.name != "utilisation" for metric in shown):
        return lines
    if off := [group for group in sheet if group.yardstick_off]:
        lines.append(
            "utilisation: off, since it would be above 100 %, which no step reaches: the "
            f"yardstick, {_yardsticks(off)}, was measured too low; a run on an idle machine mends "
            "it for all"
        )
    if rest := [g for g in sheet if "utilisation" in g.estimates and g.yardstick]:
        lines.append(f"utilisation: of {_yardsticks(rest)}, the best that the runs here reached")
    if UNSURE in marks:
        lines.append(
            "? no ratio of utilisations: no run here measured the yardstick steady and undisturbed"
        )
    return lines


def _estimates(sheet: Iterable[CellGroup], shown: Sequence[Metric]) -> list[Estimate]:
    return [g.estimates[m.name] for g in sheet for m in shown if m.name in g.estimates]


def _precompute_note(sheet: Iterable[CellGroup]) -> Iterator[str]:
    """Name the cells that need more memory before their first step than in any step."""
    found: dict[str, None] = {}  # a comparison has a cell on both sides
    for group in sheet:
        step, before = group.value("allocated"), group.value("precompute_memory")
        if step is not None and before is not None and before > step:
            found[f"{group.name} ({format_value(before, 'bytes')})"] = None
    if found:
        yield f"The precompute, before the first step, peaks higher than a step: {_listed(found)}"


def _spread_note(sheet: Sequence[CellGroup], shown: Sequence[Metric]) -> str:
    """Say what is written below the numbers, as the end of a sentence."""
    kinds = {
        bool(estimate.interval)
        for metric in shown
        for estimate in _estimates(sheet, [metric])
        if format_spread(estimate, metric)
    }
    words = {True: "its 95 % interval over them, as 1–2", False: "the range of them, as 1 to 2"}
    below = "; or ".join(text for kind, text in words.items() if kind in kinds)
    return f"; below it {below}" if below else ""


def _yardsticks(groups: Sequence[CellGroup]) -> str:
    rates = {str(g.settings["precision"]): g.yardstick for g in groups if g.yardstick}
    return ", ".join(f"{format_rate(rate)} in {printable(p)}" for p, rate in rates.items())


def _listed(names: Iterable[str]) -> str:
    """Join names; of very many, the first."""
    first, more = list(names)[:_MOST_NAMED], len(list(names)) - _MOST_NAMED
    return ", ".join(first) + (f" and {more} more" if more > 0 else "")


def _found_sources(sheet: Sequence[CellGroup], metric: Metric) -> list[str]:
    return sorted({source for one in _estimates(sheet, [metric]) for source in one.sources})


def _payback_note(group: CellGroup, sheet: Sequence[CellGroup]) -> Iterator[str]:
    found, estimate = payback(group, sheet), group.estimates.get("precompute_time")
    if found is not None and estimate is not None:
        once = ("~" if estimate.extrapolated else "") + format_value(estimate.value, "seconds")
        when = payback_text(found, printable(found.rival.method))
        yield f"{group.name}: its precompute ({once}) {when}"
