"""A report in words: the sentences that every format shares, and the lines for a terminal."""

from collections.abc import Iterator, Mapping, Sequence

from rich.text import Text

from kdbench.common.errors import printable
from kdbench.common.units import MISSING, format_value
from kdbench.gate.findings import OUTCOMES, Finding, Outcome, Report
from kdbench.gate.memory_growth import describe

NAMES: Mapping[Outcome, str] = {
    "failed": "failed",
    "regressed": "regressed",
    "cannot-tell": "cannot tell",
    "not-comparable": "not comparable",
    "improved": "improved",
    "advice": "differs",
    "held": "held",
}
_STYLES: Mapping[Outcome, str] = {
    "failed": "bold red",
    "regressed": "bold red",
    "cannot-tell": "yellow",
    "not-comparable": "yellow",
    "improved": "green",
    "advice": "dim",
    "held": "",
}
_INDENT = "  "


def value(finding: Finding, side: float | None) -> str:
    """Write one side's value in the unit of its figure."""
    if side is None:
        return MISSING
    return format_value(side, finding.unit) if finding.unit in ("bytes", "seconds") else f"{side:,}"


def difference(finding: Finding) -> str:
    """Write the growth, of bytes and counts to the last one; empty where there is none."""
    if finding.before is None or finding.after is None:
        return ""
    change = finding.after - finding.before
    if finding.unit == "seconds":
        return ("+" if change > 0 else "") + format_value(change, "seconds")
    return f"{change:+,} B" if finding.unit == "bytes" else f"{change:+,}"


def relative(finding: Finding) -> str:
    """Write the growth as a percentage; empty where there is none."""
    if finding.relative is None:
        return ""
    percent = f"{finding.relative:+.2%}"
    # a byte of a gigabyte is a change, and no 0 %
    small = finding.before != finding.after and float(percent[:-1]) == 0
    return f"{percent[0]}<0.01%" if small else percent


def sentence(finding: Finding) -> str:
    """Write a finding in one line, without its cell and its memory."""
    sides = ""
    if finding.before is not None and finding.after is not None:
        sides = f"{value(finding, finding.before)} → {value(finding, finding.after)}"
        sides += f" ({difference(finding)}, {relative(finding)})"
    head = f"{finding.metric or ''} {NAMES[finding.outcome]}".strip()
    return ": ".join(filter(None, (head, sides, finding.message)))


def memories(findings: Sequence[Finding]) -> list[list[str]]:
    """Name the memory that grew, per finding of a cell and a line per category.

    What grew in one peak often grew in another: it is named once.
    """
    seen: dict[tuple[str, ...], str | None] = {}
    all_lines = []
    for finding in findings:
        grown = finding.outcome in ("regressed", "advice")
        lines = tuple(describe(finding.growth)) if grown else ()
        before = seen.setdefault(lines, finding.metric)
        again = lines and before != finding.metric
        all_lines.append([f"memory grew as that of {before}"] if again else list(lines))
    return all_lines


def changes(report: Report, label: str) -> str:
    """Name the settings of a cell that changed: `batch_size 64 → 128`; empty where none did."""
    changed = report.changed.get(label, {})
    if set(changed) == {"cell_id"}:
        return "settings that have no column (cell_id {} → {})".format(*changed["cell_id"])
    return ", ".join(f"{name} {old} → {new}" for name, (old, new) in changed.items())


def by_cell(report: Report) -> list[tuple[str | None, list[Finding]]]:
    """Group what did not just hold by cell, the worst cells first."""
    groups: dict[str | None, list[Finding]] = {label: [] for label in (None, *report.labels)}
    for finding in sorted(report.findings, key=lambda f: OUTCOMES.index(f.outcome)):
        if finding.outcome != "held":
            groups[finding.label].append(finding)
    found = [(label, findings) for label, findings in groups.items() if findings]
    return sorted(found, key=lambda group: OUTCOMES.index(group[1][0].outcome))


def total(report: Report) -> str:
    """Sum a report up in a line: `regressed: 2 regressed, 30 held, of 8 cells`."""
    counts = report.counts
    found = [f"{counts[name]} {NAMES[name]}" for name in OUTCOMES if counts[name]]
    cells = f"{len(report.labels)} cell" + ("" if len(report.labels) == 1 else "s")
    return f"{report.outcome}: {', '.join(found) or 'nothing compared'}; {cells}"


def describe_cell(report: Report, label: str | None, findings: Sequence[Finding]) -> list[str]:
    """Describe a cell's findings in lines."""
    lines = []
    for finding, grown in zip(findings, memories(findings), strict=True):
        lines += [sentence(finding), *grown]
    changed = changes(report, label) if label else ""
    return [*lines, *([f"changed: {changed}"] if changed else [])]


def render(report: Report) -> Iterator[Text]:
    """Yield a report's lines, which are not to be wrapped: what did not hold, and a total."""
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
    """Yield one line a figure, in columns, and its message and growth below it."""
    for finding in findings:
        if not finding.metric:
            line = Text(_INDENT)
            line.append(NAMES[finding.outcome], style=_STYLES[finding.outcome])
            yield line.append(printable(f": {finding.message}"))
    figures = [finding for finding in findings if finding.metric]
    rows = [
        (
            *(NAMES[finding.outcome], printable(finding.metric)),
            *(value(finding, finding.before), "→", value(finding, finding.after)),
            *(difference(finding), relative(finding)),
        )
        for finding in figures
    ]
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
