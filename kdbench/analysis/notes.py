"""The small print under tables and figures: what a reader must know to trust a number."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from kdbench.analysis.aggregate import CellGroup
from kdbench.analysis.metrics import Metric
from kdbench.analysis.reference import payback, told_payback
from kdbench.analysis.uncertainty import mark_notes, spread_note
from kdbench.common.text import printable
from kdbench.common.units import format_value

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

_MOST_NAMED = 6

_DOUBTS = {
    "contended": "contended: others were at work, times may be too long, memory is not affected",
    "suspended": "suspended: the machine was, or the process was stopped, in mid-step; such steps "
    "are in no figure",
    "unstable": "unstable: steps changed their level while timed, the median may mislead",
}


def table_notes(
    sheet: Sequence[CellGroup], reference: CellGroup | None, shown: Sequence[Metric]
) -> list[str]:
    """Write the notes under the table of one matrix and environment, a line each."""
    lines = [*_ratio_note(reference), *_run_notes(sheet, shown)]
    for metric in shown:
        sources = _found_sources(sheet, metric)
        if sources:
            told = "; ".join(_SOURCES.get(name, printable(name)) for name in sources)
            lines.append(f"{metric.title.lower()}: {told}")
    lines += footnotes(sheet)
    lines += [line for group in sheet for line in _payback_note(group, sheet)]
    lines += [line for group in sheet for line in problem_notes(group)]
    return lines + mark_notes(sheet, shown) + doubt_notes(sheet)


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
        lines += _precompute_notes(sheet)
    drawn, others = _teachers(sheet, random=True), _teachers(sheet, random=False)
    if drawn:
        told = [f"{name} (in some cells)" if name in others else name for name in sorted(drawn)]
        whose = f" of {printable(', '.join(told))}" if others else ""
        lines.append(
            f"Teacher weights{whose} are random: these accuracies say nothing of a real teacher"
            if trained
            else f"Teacher weights{whose} are random; memory and time do not depend on them"
        )
    caveats = dict.fromkeys(c for g in sheet for text in g.caveats for c in text.split("; "))
    if caveats:
        lines.append(f"Predicted: {printable('; '.join(caveats))}")
    return lines


def _teachers(sheet: Iterable[CellGroup], *, random: bool) -> set[Any]:
    return {
        group.settings["teacher"]
        for group in sheet
        if (group.settings["teacher_weights"] == "random") is random
    } - {None}


def _precompute_notes(sheet: Iterable[CellGroup]) -> Iterator[str]:
    """Name the cells that need more memory before their first step than in any step."""
    found: dict[str, None] = {}  # a comparison has a cell on both sides
    for group in sheet:
        step, before = (group.estimates.get(name) for name in ("allocated", "precompute_memory"))
        if step is not None and before is not None and before.value > step.value:
            found[f"{group.name} ({format_value(before.value, 'bytes')})"] = None
    if found:
        named = _listed(list(found))
        yield f"The precompute, before the first step, peaks higher than a step: {named}"


def count_note(sheet: Sequence[CellGroup], shown: Iterable[Metric]) -> str:
    """Say how many runs a number stands on, and what its interval is."""
    if all(group.is_predicted for group in sheet):
        return "one prediction per cell"
    finished = sorted({group.finished for group in sheet if group.finished})
    if not finished:
        return "no run finished"
    counts = f"{finished[0]}" if len(finished) == 1 else f"{finished[0]} to {finished[-1]}"
    runs = "run" if finished == [1] else "runs"
    how = "" if finished == [1] else ", of which the median is shown"
    if how and any(metric.over_seeds for metric in shown):
        how += " (accuracy: the mean over seeds)"
    return f"{counts} {runs} per cell{how}"


def source_note(sheet: Sequence[CellGroup], metric: Metric) -> str:
    """Name a metric's sources in a few words, for the line under a panel's title."""
    return ", ".join(_found_sources(sheet, metric))


def problem_notes(group: CellGroup) -> Iterator[str]:
    """Tell of each way in which runs of a cell did not finish."""
    for status, error, count in group.problems:
        times = f" ({count} runs)" if count > 1 else ""
        told = f": {printable(error)}" if error else ""
        yield f"{status}{times}: {group.name}{told}"


def doubt_notes(sheet: Iterable[CellGroup]) -> list[str]:
    """Tell which cells' times are to be doubted, a line for each reason."""
    groups = list(sheet)
    finished = sum(group.finished for group in groups)
    found: dict[str, list[tuple[str, str, int]]] = {}
    for group in groups:
        for doubt, words, count in group.doubts:
            found.setdefault(doubt, []).append((group.name, printable(words or ""), count))
    return [_doubt_note(doubt, told, finished) for doubt, told in sorted(found.items())]


def _doubt_note(doubt: str, found: Sequence[tuple[str, str, int]], finished: int) -> str:
    """Tell of one doubt: of which cells, or that it is of all runs."""
    if sum(count for *_, count in found) == finished > 1:
        words = {words for _, words, _ in found}
        same = f" ({words.pop()})" if len(words) == 1 and words != {""} else ""
        return f"all {finished} runs were {_DOUBTS[doubt]}{same}"
    names = [f"{name} ({words})" if words else name for name, words, _ in found]
    return f"{_DOUBTS[doubt]}: {_listed(names)}"


def _listed(names: Sequence[str]) -> str:
    """Join names; of very many, the first."""
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _ratio_note(reference: CellGroup | None) -> Iterator[str]:
    if reference is not None:
        yield f"ref: {reference.name}; ×2 is twice its value, ÷2 is half of it"


def _run_notes(sheet: Sequence[CellGroup], shown: Sequence[Metric]) -> Iterator[str]:
    yield count_note(sheet, shown) + spread_note(sheet, shown)
    put_right = sum(group.put_right for group in sheet)
    if put_right:
        which = "attempt that failed is" if put_right == 1 else "attempts that failed are"
        yield f"{put_right} earlier {which} not shown: a later run put that right"
    older = sum(group.older for group in sheet)
    if older:
        yield (
            f"{older} earlier runs of the same seed and repeat are left out: the latest one counts"
        )


def _found_sources(sheet: Sequence[CellGroup], metric: Metric) -> list[str]:
    estimates = [group.estimates.get(metric.name) for group in sheet]
    return sorted({source for estimate in estimates if estimate for source in estimate.sources})


def _payback_note(group: CellGroup, sheet: Sequence[CellGroup]) -> Iterator[str]:
    found, estimate = payback(group, sheet), group.estimates.get("precompute_time")
    if found is not None and estimate is not None:
        once = ("~" if estimate.extrapolated else "") + format_value(estimate.value, "seconds")
        told = told_payback(found, printable(found.rival.method))
        yield f"{group.name}: its precompute ({once}) {told}"
