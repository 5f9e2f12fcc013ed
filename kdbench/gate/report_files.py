"""A report for programs: JSON, and JUnit's XML for the tools that show tests."""

import html
import json
from collections.abc import Iterator
from dataclasses import asdict

from kdbench.common.errors import printable
from kdbench.gate.findings import OUTCOMES, Finding, Report
from kdbench.gate.messages import describe_cell, sentence

JSON_FORMAT = 1
# The element of a test, by the worst finding of its cell.
_ELEMENTS = {
    "failed": "error",
    "regressed": "failure",
    "cannot-tell": "skipped",
    "not-comparable": "skipped",
}


def as_json(report: Report) -> str:
    """Write all findings, held ones too; values in base units."""
    content = {
        "format": JSON_FORMAT,
        "outcome": report.outcome,
        "exit_code": report.exit_code,
        "matrix": report.matrix,
        "title": report.title,
        "baseline": report.baseline,
        "labels": list(report.labels),
        "counts": {name: report.counts[name] for name in OUTCOMES},
        "findings": [
            {**asdict(finding), "unit": finding.unit, "relative": finding.relative}
            for finding in report.findings
        ],
        "changed_settings": {
            label: {name: {"before": old, "after": new} for name, (old, new) in changed.items()}
            for label, changed in report.changed.items()
        },
        "notes": list(report.notes),
    }
    return json.dumps(content, indent=2) + "\n"


def as_junit(report: Report) -> str:
    """Write one test a cell, and one for what is said of all of them.

    Letters beyond ASCII are written as references, as JSON has its own: any output takes those.
    """
    whole: list[str | None] = [None] if report.of(None) else []
    cases = [(label, report.of(label)) for label in (*whole, *report.labels)]
    elements = [_element(found) for _, found in cases]
    numbers = (
        f'tests="{len(cases)}" failures="{elements.count("failure")}" '
        f'errors="{elements.count("error")}" skipped="{elements.count("skipped")}"'
    )
    suite = f'name="{_escaped(f"kdbench check: {report.matrix}")}" {numbers}'
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', f"<testsuites {numbers}>"]
    lines.append(f"  <testsuite {suite}>")
    for (label, found), element in zip(cases, elements, strict=True):
        lines += _case(report, label, found, element)
    text = "\n".join([*lines, "  </testsuite>", "</testsuites>", ""])
    return text.encode("ascii", "xmlcharrefreplace").decode()


def _element(found: list[Finding]) -> str | None:
    if not found:  # what bars all cells is reported once
        return "skipped"
    worst = min((finding.outcome for finding in found), key=OUTCOMES.index)
    return _ELEMENTS.get(worst)


def _case(
    report: Report, label: str | None, found: list[Finding], element: str | None
) -> Iterator[str]:
    start = f'classname="{_escaped(report.matrix)}" name="{_escaped(label or "all cells")}"'
    telling = [finding for finding in found if finding.outcome != "held"]
    lines = [_escaped(line) for line in describe_cell(report, label, telling)]
    if element is None and not lines:
        yield f"    <testcase {start}/>"
        return
    wrong = [sentence(finding) for finding in found if _ELEMENTS.get(finding.outcome) == element]
    message = _escaped("; ".join(wrong) or "nothing of it could be compared")
    opened = f'{element} message="{message}"' if element else "system-out"
    yield f"    <testcase {start}>"
    yield f"      <{opened}>"
    yield from lines
    yield f"      </{element or 'system-out'}>"
    yield "    </testcase>"


def _escaped(text: str) -> str:
    return html.escape(printable(text))
