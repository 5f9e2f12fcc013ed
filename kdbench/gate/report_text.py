"""A report for people: what did not hold, cell by cell, and one line that sums it up."""

from collections.abc import Iterator, Sequence
from itertools import chain

from rich.text import Text

from kdbench.common.text import printable
from kdbench.gate.findings import Finding, Outcome, Report
from kdbench.gate.messages import (
    NAMES,
    by_cell,
    changes,
    difference,
    memories,
    relative,
    total,
    value,
)

_STYLES: dict[Outcome, str] = {
    "failed": "bold red",
    "regressed": "bold red",
    "cannot-tell": "yellow",
    "not-comparable": "yellow",
    "improved": "green",
    "advice": "dim",
    "held": "",
}
_INDENT = "  "


def render(report: Report) -> Iterator[Text]:
    """Yield a report's lines, to be printed as they are: they are not to be wrapped."""
    yield Text(printable(f"{report.matrix}: {report.title}"), style="bold")
    for label, findings in by_cell(report):
        yield Text()
        yield Text(printable(label or "all cells"))
        changed = changes(report, label) if label else ""
        if changed:
            yield Text(printable(f"{_INDENT}changed: {changed}"))
        yield from _rows(findings)
    if report.notes:
        yield Text()
    for note in report.notes:
        yield Text(printable(f"note: {note}"), style="dim")
    yield Text()
    decided = {0: "bold green", 1: "bold red", 3: "bold yellow"}[report.exit_code]
    yield Text(printable(total(report)), style=decided)


def _rows(findings: Sequence[Finding]) -> Iterator[Text]:
    """Yield one line a figure, in columns, and what there is to say below it."""
    figures = [finding for finding in findings if finding.metric]
    whole = [finding for finding in findings if not finding.metric]
    for finding in whole:
        line = Text(_INDENT)
        line.append(NAMES[finding.outcome], style=_STYLES[finding.outcome])
        yield line.append(printable(f": {finding.message}"))
    rows = [_columns(finding) for finding in figures]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for finding, row, grown in zip(figures, rows, memories(figures), strict=True):
        # names at the left, numbers at the right
        padded = [
            text.ljust(width) if place < 2 else text.rjust(width)
            for place, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        line = Text(_INDENT)
        line.append(padded[0], style=_STYLES[finding.outcome])
        yield line.append(_INDENT + _INDENT.join(padded[1:]).rstrip())
        for text in (*filter(None, [finding.message]), *grown):
            yield Text(printable(f"{_INDENT * 2}{text}"))


def _columns(finding: Finding) -> tuple[str, ...]:
    sides = (value(finding, finding.before), "→", value(finding, finding.after))
    change = (difference(finding), relative(finding))
    name = printable(finding.metric)
    return tuple(chain((NAMES[finding.outcome], name), sides, change))
