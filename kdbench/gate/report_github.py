"""A report for GitHub Actions: annotations, and a table for the summary of the job.

The syntax is that of GitHub's documentation, "Workflow commands for GitHub Actions". Whatever a
label holds must not become a command of its own: line breaks are escaped, and so is the older
`##[command]`, which runners still obey anywhere in a line.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

from kdbench.analysis.markup import Table, markdown, markdown_text
from kdbench.common.errors import os_reason, printable
from kdbench.gate import messages
from kdbench.gate.findings import Finding, Report

Level = Literal["error", "warning", "notice"]

# A job's summary may have 1 MiB; so many rows leave room for other steps.
_MOST_ROWS = 200
_DATA = {"%": "%25", "\r": "%0D", "\n": "%0A"}
_PROPERTY = {**_DATA, ":": "%3A", ",": "%2C"}


def annotate(report: Report) -> list[str]:
    """Write one command per cell that did not just hold, the worst first.

    GitHub shows ten of each level and step: so a cell's figures go into one.
    """
    return [
        annotation(
            _level(findings[0]),
            f"kdbench: {label or 'all cells'}",
            messages.describe_cell(report, label, findings),
        )
        for label, findings in messages.by_cell(report)
    ]


def annotation(level: Level, title: str, lines: Iterable[str]) -> str:
    """Write one workflow command."""
    message = "\n".join(printable(line) for line in lines)
    return f"::{level} title={_escaped(printable(title), _PROPERTY)}::{_escaped(message, _DATA)}"


def summary(report: Report) -> str:
    """Write the markdown for the summary of the job."""
    rows = [
        (
            label or "all cells",
            finding.metric or "",
            messages.value(finding, finding.before) if finding.metric else "",
            messages.value(finding, finding.after) if finding.metric else "",
            messages.difference(finding),
            messages.relative(finding),
            messages.NAMES[finding.outcome],
            "; ".join([*filter(None, [finding.message]), *grown]),
        )
        for label, findings in messages.by_cell(report)
        for finding, grown in zip(findings, messages.memories(findings), strict=True)
    ]
    more = len(rows) - _MOST_ROWS
    notes = [f"{label}: {messages.changes(report, label)}" for label in report.changed]
    notes += [*report.notes, *([f"{more} more are not shown here"] if more > 0 else [])]
    if not rows:
        lines = [markdown_text(line) for line in (report.matrix, messages.total(report), *notes)]
        return "\n\n".join([f"**{lines[0]}**", *lines[1:]]) + "\n"
    head = ("cell", "figure", "before", "after", "difference", "share", "verdict", "what grew")
    numeric = (False, False, True, True, True, True, False, False)
    title = f"{report.matrix}: {messages.total(report)}"
    table = Table(title, head, numeric, tuple(rows[:_MOST_ROWS]), tuple(notes))
    return markdown(table).replace(table.title, markdown_text(table.title), 1) + "\n"


def add_summary(text: str, environment: Mapping[str, str]) -> str | None:
    """Append to the summary file that the CI runner names, if any; return why that failed."""
    path = environment.get("GITHUB_STEP_SUMMARY")
    if not path:
        return None
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        return f"cannot write the job's summary: {os_reason(error)}"
    return None


def _level(finding: Finding) -> Level:
    if finding.outcome in ("failed", "regressed"):
        return "error"
    return "notice" if finding.outcome in ("improved", "advice") else "warning"


def _escaped(text: str, escapes: Mapping[str, str]) -> str:
    return "".join(escapes.get(c, c) for c in text).replace("##[", "# #[")
