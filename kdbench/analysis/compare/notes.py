"""The titles of a comparison's tables, and the small print under them."""

from collections.abc import Iterable, Iterator

from kdbench.analysis.aggregate import CellGroup
from kdbench.analysis.compare.comparison import Comparison, Sheet
from kdbench.analysis.compare.matching import options_for
from kdbench.analysis.notes import footnotes, older_note, problem_notes, warning_notes
from kdbench.common.errors import printable, quoted
from kdbench.common.stats import MIN_PROCESSES

SIDES = ("before", "after")
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
    lines = [*_meaning(sheet), *_sources(sheet), *_missing(sheet)]
    cells = [group for pair in sheet.pairs for group in (pair.before, pair.after)]
    shown = [one.metric for pair in sheet.pairs for one in pair.compared]
    lines += footnotes(cells, shown, trained=any(metric.over_seeds for metric in shown))
    if shared := [pair.name for pair in sheet.pairs if pair.shared]:
        lines.append(f"the same runs are on both sides, wholly or in part: {', '.join(shared)}")
    lines += older_note(cells)
    for side, own in zip(SIDES, (cells[::2], cells[1::2]), strict=True):
        lines += [f"{side}, {note}" for group in own for note in problem_notes(group)]
        lines += [f"{side}, {note}" for note in warning_notes(own)]
    for before, after in sheet.unclear:
        lines.append(
            f"not compared: {printable(before[0].label)} is several cells: before "
            f"{_names(before)}, after {_names(after)}; --before and --after pick one of each"
        )
    found = zip(SIDES, sheet.only, strict=True)
    return lines + [f"only {side}: {_names(groups)}" for side, groups in found if groups]


def elsewhere_notes(comparison: Comparison) -> list[str]:
    """List the cells of matrices, environments and predictions that one side alone has."""
    lines = []
    for side, groups in zip(SIDES, comparison.only, strict=True):
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
    if any(sheet.pairs for sheet in comparison.sheets):
        metrics = quoted(metric.name for metric in comparison.metrics)
        return f"nothing comparable: no cell in common has any of {metrics} on both sides"
    if any(sheet.unclear for sheet in comparison.sheets):
        return "nothing comparable: each label in common is that of several cells"
    only = [*(sheet.only for sheet in comparison.sheets), comparison.only]
    options = options_for(*([g.label for both in only for g in both[side]] for side in (0, 1)))
    hint = f"; {options} would set the nearest cells side by side" if options else ""
    return f"nothing comparable: the two sides have no label in common{hint}"


def _meaning(sheet: Sheet) -> Iterator[str]:
    """Explain ratios, and their intervals or why there are none."""
    compared = [one for pair in sheet.pairs for one in pair.compared]
    if not compared:
        return
    seeds = " (accuracy: of means over seeds)" if any(c.metric.over_seeds for c in compared) else ""
    yield f"ratio: after over before, of medians over processes{seeds}"
    if any(one.interval for one in compared):
        yield (
            "95 % interval of the ratio over processes: where it holds 1, chance alone may be the "
            "difference; where nothing changed, one in twenty misses 1 all the same"
        )
        if any(
            "fork" in (p.before.settings["launch"], p.after.settings["launch"]) for p in sheet.pairs
        ):
            yield "forked processes share what makes processes differ: their interval is too narrow"
    if any(one.no_interval for one in compared):
        yield (
            f"an interval takes {_MIN_FOR_MEDIAN} processes a side, of accuracies "
            f"{MIN_PROCESSES} seeds: repeats = {_MIN_FOR_MEDIAN} in the matrix file"
        )


def _sources(sheet: Sheet) -> Iterator[str]:
    """Name the figures that were not measured in the same way on both sides."""
    lines: dict[str, None] = {}
    for one in (one for pair in sheet.pairs for one in pair.compared):
        title = one.metric.title.lower()
        if one.before.sources != one.after.sources:
            before, after = (", ".join(e.sources) for e in (one.before, one.after))
            lines[f"{title}: by {before} before, by {after} after"] = None
        if one.before.extrapolated != one.after.extrapolated:
            which = "before" if one.before.extrapolated else "after"
            lines[f"{title}: extrapolated {which} alone"] = None
    yield from map(printable, lines)
    if any(change.name == "launch" for pair in sheet.pairs for change in pair.changed):
        yield "a forked process has another host peak than a fresh one: not to be compared"


def _missing(sheet: Sheet) -> Iterator[str]:
    """List the metrics that one side alone has, of all cells in one line, of some cells apart."""
    found: dict[tuple[str, str], list[str]] = {}
    for pair in sheet.pairs:
        for metric, side in pair.missing:
            found.setdefault((side, metric.title.lower()), []).append(pair.name)
    titles: dict[tuple[str, str], list[str]] = {}
    for (side, title), names in found.items():
        whose = "" if len(names) == len(sheet.pairs) else f": {', '.join(names)}"
        titles.setdefault((side, whose), []).append(title)
    for (side, whose), missing in titles.items():
        yield f"not there {side}: {'; '.join(missing)}{whose}"


def _names(groups: Iterable[CellGroup]) -> str:
    return ", ".join(group.name for group in groups)
