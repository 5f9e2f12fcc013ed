"""Findings in words, for every way of showing them."""

from collections.abc import Mapping, Sequence
from itertools import groupby

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


def value(finding: Finding, side: float | None) -> str:
    """Write one side's value in the unit of its figure."""
    if side is None:
        return MISSING
    if finding.unit in ("bytes", "seconds"):
        return format_value(side, finding.unit)
    return f"{side:,}"


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
    """Tell a finding in one line, its cell and its memory left out."""
    parts = [f"{finding.metric or ''} {NAMES[finding.outcome]}".strip()]
    if finding.before is not None and finding.after is not None:
        sides = f"{value(finding, finding.before)} → {value(finding, finding.after)}"
        parts.append(f"{sides} ({difference(finding)}, {relative(finding)})")
    return ": ".join([*parts, *([finding.message] if finding.message else [])])


def memories(findings: Sequence[Finding]) -> list[list[str]]:
    """Say of each finding of a cell which memory grew, a line a category.

    What grew in one peak often grew in another: it is told once.
    """
    seen: dict[tuple[str, ...], str | None] = {}
    told = []
    for finding in findings:
        grown = finding.outcome in ("regressed", "advice")
        lines = tuple(describe(finding.growth)) if grown else ()
        before = seen.setdefault(lines, finding.metric)
        again = lines and before != finding.metric
        told.append([f"memory grew as that of {before}"] if again else list(lines))
    return told


def changes(report: Report, label: str) -> str:
    """Name the settings of a cell that changed: `batch_size 64 → 128`; empty where none did."""
    changed = report.changed.get(label, {})
    if set(changed) == {"cell_id"}:
        return "settings that have no column (cell_id {} → {})".format(*changed["cell_id"])
    return ", ".join(f"{name} {old} → {new}" for name, (old, new) in changed.items())


def by_cell(report: Report) -> list[tuple[str | None, list[Finding]]]:
    """Group what did not just hold by cell, the worst cells first."""
    telling = sorted(
        (finding for finding in report.findings if finding.outcome != "held"),
        key=lambda finding: finding.label or "",
    )
    groups = [
        (label, sorted(found, key=lambda f: OUTCOMES.index(f.outcome)))
        for label, found in groupby(telling, key=lambda finding: finding.label)
    ]
    order = {label: index for index, label in enumerate((None, *report.labels))}
    return sorted(groups, key=lambda g: (OUTCOMES.index(g[1][0].outcome), order[g[0]]))


def total(report: Report) -> str:
    """Sum a report up in a line: `regressed: 2 regressed, 30 held, of 8 cells`."""
    counts = report.counts
    told = [f"{counts[name]} {NAMES[name]}" for name in OUTCOMES if counts[name]]
    cells = f"{len(report.labels)} cell" + ("" if len(report.labels) == 1 else "s")
    return f"{report.outcome}: {', '.join(told) or 'nothing compared'}; {cells}"


def describe_cell(report: Report, label: str | None, findings: Sequence[Finding]) -> list[str]:
    """Tell all there is to say of a cell's findings, in lines."""
    lines = []
    for finding, grown in zip(findings, memories(findings), strict=True):
        lines += [sentence(finding), *grown]
    changed = changes(report, label) if label else ""
    return [*lines, *([f"changed: {changed}"] if changed else [])]
