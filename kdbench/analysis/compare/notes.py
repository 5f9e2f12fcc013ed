"""What is to be said of a comparison: its titles, and the small print under its tables."""

from collections.abc import Iterable, Iterator

from kdbench.analysis.aggregate import CellGroup
from kdbench.analysis.compare.axes import options_for
from kdbench.analysis.compare.comparison import Comparison, Sheet
from kdbench.analysis.notes import doubt_notes, footnotes, problem_notes
from kdbench.common.errors import quoted
from kdbench.common.stats import MIN_PROCESSES
from kdbench.common.text import printable

# By order statistics, the median's interval over processes exists from here on.
_MIN_FOR_MEDIAN = MIN_PROCESSES + 1


def title_of(comparison: Comparison, sheet: Sheet) -> str:
    """Head a table: which matrix, which sides, and whether they can be expected to agree."""
    matrix = " → ".join(dict.fromkeys(map(printable, sheet.matrices)))
    loud = ""
    if sheet.places[0].source != sheet.places[1].source:
        loud = f", {sheet.places[0].source.upper()} AGAINST {sheet.places[1].source.upper()}"
    elif sheet.changed:
        loud = ", DIFFERENT ENVIRONMENTS"
    return f"{matrix}: {' → '.join(comparison.names)}{loud}"


def place_lines(sheet: Sheet) -> list[str]:
    """Say what the figures were taken on, and each thing in which that differs."""
    before, after = sheet.places
    if before == after:
        lines = [f"both {before.title}"]
    else:
        lines = [f"before: {before.title}", f"after: {after.title}"]
    lines += [f"environment differs: {change}" for change in sheet.changed]
    if sheet.packages:
        lines.append(f"software differs: {', '.join(map(str, sheet.packages))}")
    return lines


def notes_of(sheet: Sheet) -> list[str]:
    """Write the notes under a table, a line each."""
    lines = [*_meaning(sheet), *_sources(sheet), *_lacking(sheet)]
    cells = [group for pair in sheet.pairs for group in (pair.before, pair.after)]
    shown = [one.metric for pair in sheet.pairs for one in pair.compared]
    lines += footnotes(cells, shown, trained=any(metric.over_seeds for metric in shown))
    lines += _run_notes(sheet)
    for side, groups in (("before", 0), ("after", 1)):
        own = [(pair.before, pair.after)[groups] for pair in sheet.pairs]
        lines += [f"{side}, {note}" for group in own for note in problem_notes(group)]
        lines += [f"{side}, {note}" for note in doubt_notes(own)]
    for before, after in sheet.unclear:
        lines.append(
            f"not compared: {printable(before[0].label)} is several cells: before "
            f"{_names(before)}, after {_names(after)}; --before and --after pick one of each"
        )
    return lines + only_notes(sheet.only_before, sheet.only_after)


def only_notes(before: Iterable[CellGroup], after: Iterable[CellGroup]) -> list[str]:
    """List the cells that one side alone has."""
    found = (("before", list(before)), ("after", list(after)))
    return [f"only {side}: {_names(groups)}" for side, groups in found if groups]


def elsewhere_notes(comparison: Comparison) -> list[str]:
    """List the cells of matrices, environments and predictions that one side alone has."""
    lines = []
    for side, groups in (("before", comparison.only_before), ("after", comparison.only_after)):
        homes: dict[str, list[CellGroup]] = {}
        for group in groups:
            place = group.environment.name
            if group.settings["source"] != "measured":
                place = f"{group.settings['source']} for {group.settings['profile']}"
            homes.setdefault(f"{group.matrix}, {printable(place)}", []).append(group)
        lines += [f"only {side}, {home}: {_names(cells)}" for home, cells in homes.items()]
    return lines


def nothing_compared(comparison: Comparison) -> str:
    """Say why nothing could be compared."""
    pairs = [pair for sheet in comparison.sheets for pair in sheet.pairs]
    if pairs:
        metrics = quoted(metric.name for metric in comparison.metrics)
        return f"nothing comparable: no cell in common has any of {metrics} on both sides"
    if any(sheet.unclear for sheet in comparison.sheets):
        return "nothing comparable: each label in common is that of several cells"
    told = "nothing comparable: the two sides have no label in common"
    options = options_for(
        *(
            [group.label for sheet in comparison.sheets for group in getattr(sheet, side)]
            + [group.label for group in getattr(comparison, side)]
            for side in ("only_before", "only_after")
        )
    )
    return f"{told}; {options} would set the nearest cells side by side" if options else told


def _meaning(sheet: Sheet) -> Iterator[str]:
    """Explain ratios, and their intervals or why there are none."""
    compared = [one for pair in sheet.pairs for one in pair.compared]
    if not compared:
        return
    yield (
        "ratio: after over before, of medians over processes"
        + (" (accuracy: of means over seeds)" if any(c.metric.over_seeds for c in compared) else "")
    )
    if any(one.interval for one in compared):
        yield (
            "95 % interval of the ratio over processes: where it holds 1, chance alone may be the "
            "difference; where nothing changed, one in twenty misses 1 all the same"
        )
        launched = {g.settings["launch"] for p in sheet.pairs for g in (p.before, p.after)}
        if "fork" in launched:
            yield "forked processes share what makes processes differ: their interval is too narrow"
    if any(one.no_interval for one in compared):
        yield (
            f"an interval takes {_MIN_FOR_MEDIAN} processes a side, of accuracies "
            f"{MIN_PROCESSES} seeds: repeats = {_MIN_FOR_MEDIAN} in the matrix file"
        )


def _sources(sheet: Sheet) -> Iterator[str]:
    """Tell of figures that were not got in the same way on both sides."""
    told: dict[str, None] = {}
    for pair in sheet.pairs:
        for one in pair.compared:
            before, after = (", ".join(e.sources) for e in (one.before, one.after))
            if before != after:
                told[f"{one.metric.title.lower()}: by {before} before, by {after} after"] = None
            kinds = [e.extrapolated for e in (one.before, one.after)]
            if kinds[0] != kinds[1]:
                which = "before" if kinds[0] else "after"
                told[f"{one.metric.title.lower()}: extrapolated {which} alone"] = None
    yield from map(printable, told)
    if any(change.name == "launch" for pair in sheet.pairs for change in pair.changed):
        yield "a forked process has another host peak than a fresh one: not to be compared"


def _lacking(sheet: Sheet) -> Iterator[str]:
    """Tell which metrics one side alone has, of all cells in one line, of some cells apart."""
    found: dict[tuple[str, str], list[str]] = {}
    for pair in sheet.pairs:
        for metric, side in pair.lacking:
            found.setdefault((side, metric.title.lower()), []).append(pair.name)
    lacked: dict[tuple[str, str], list[str]] = {}
    for (side, title), names in found.items():
        whose = "" if len(names) == len(sheet.pairs) else f": {', '.join(names)}"
        lacked.setdefault((side, whose), []).append(title)
    for (side, whose), titles in lacked.items():
        yield f"not there {side}: {'; '.join(titles)}{whose}"


def _run_notes(sheet: Sheet) -> Iterator[str]:
    shared = [pair.name for pair in sheet.pairs if pair.shared]
    if shared:
        yield f"the same runs are on both sides, wholly or in part: {', '.join(shared)}"
    older = sum(group.older for pair in sheet.pairs for group in (pair.before, pair.after))
    if older:
        yield (
            f"{older} earlier runs of the same seed and repeat are left out: the latest one counts"
        )


def _names(groups: Iterable[CellGroup]) -> str:
    return ", ".join(group.name for group in groups)
