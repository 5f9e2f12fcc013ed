"""Where a report goes: printed in one format, and written to files in others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from kdbench.common.errors import InputError, KdbenchError, did_you_mean, quoted
from kdbench.common.text import printable
from kdbench.gate import report_github
from kdbench.gate.messages import total
from kdbench.gate.report_files import as_json, as_junit, write_report
from kdbench.gate.report_text import render

if TYPE_CHECKING:
    from kdbench.gate.findings import Report

FORMATS = ("table", "github", "json", "junit")


@dataclass(frozen=True, kw_only=True)
class Emitter:
    """Prints reports and writes them."""

    format: str  #: what is printed, one of `FORMATS`
    json: Path | None  #: file that gets the report as JSON; None: none does
    junit: Path | None  #: the same for JUnit's XML
    console: Console  #: where it is printed

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InputError(
                f"expected one of {quoted(FORMATS)}, found {self.format!r}",
                where="--format",
                hint=did_you_mean(self.format, FORMATS),
            )

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Show an error where the annotations go as well; it is raised all the same."""
        try:
            yield
        except KdbenchError as error:
            if self.format == "github":
                self._print(report_github.annotation("error", "kdbench check", [str(error)]))
            raise

    def report(self, report: Report) -> int:
        """Print and write a report; return the exit code."""
        self._write(report)
        if self.format == "table":
            for line in render(report):
                self.console.print(line, soft_wrap=True)
        elif self.format == "github":
            self._annotate(report)
        else:
            text = as_json(report) if self.format == "json" else as_junit(report)
            self._print(text.rstrip("\n"))
        return report.exit_code

    def _write(self, report: Report) -> None:
        if self.json is not None:
            write_report(self.json, as_json(report))
        if self.junit is not None:
            write_report(self.junit, as_junit(report))

    def _annotate(self, report: Report) -> None:
        for line in report_github.annotate(report):
            self._print(line)
        problem = report_github.add_summary(report_github.summary(report), os.environ)
        if problem is not None:
            self._print(report_github.annotation("warning", "kdbench check", [problem]))
        self._print(printable(total(report)))

    def _print(self, text: str) -> None:
        """Print as it is: it is for programs, and not to be wrapped or coloured."""
        self.console.file.write(f"{text}\n")
